/* Kinds of checkpoints that neither the goldens nor the bundled model are, through the whole
 * forward pass on CUDA: against the CPU backend. Ranks share the GPU. */
#include "tests/cuda/cuda_test.h"
#include "tests/model/scratch.h"
#include "tests/model/variants.h"

TD_TEST_MAIN

/* Those of the golden sets. */
static const td_variant_bounds golden = {1, 0.3, 0.7};

static void agree(int precise)
{
    ct_need_gpu();
    td_variant v[TD_MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = td_variants(v); i < n; i++) {
        td_variant one = v[i];
        one.n_ranks = 1;
        td_make_model(dir, &v[i].m);
        td_variant_result want = td_variant_run(dir, &one, precise, TD_BACKEND_CPU, NULL);
        td_variant_result got = td_variant_run(dir, &v[i], precise, TD_BACKEND_CUDA, NULL);
        if (precise) {
            td_variant_check_precise(&v[i], want.logits, want.mtp_logits, &got);
            TD_EQ(want.first, got.first);
        } else {
            td_variant_check_quantised(&v[i], &want, &got, golden);
        }
        td_variant_drop(&want);
        td_variant_drop(&got);
    }
}

TEST(precise_mode_agrees_with_the_cpus_in_every_kind)
{
    agree(1);
}

TEST(quantised_mode_agrees_with_the_cpus_in_every_kind)
{
    agree(0);
}
