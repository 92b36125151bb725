/* Kinds of checkpoints that neither the goldens nor the bundled model are, through the whole
 * forward pass: the CPU's operations against the plain judges, and against checkpoints that say the
 * same in another way. */
#include "tests/model/compare.h"
#include "tests/model/plain_model.h"
#include "tests/model/scratch.h"
#include "tests/model/variants.h"
#include "tests/td_test.h"

TD_TEST_MAIN

#define STRIDE (TD_SANITIZED ? 12 : 1) /* the judges are slow: every twelfth kind then */

/* For two right runs that differ in the order of sums KL is about 0.1, and 80 to 90 % of top-1
 * agree (tests/golden/README.md). */
static const td_variant_bounds judged = {4, 0.1, 0.8};

static td_variant_result forward(const char *dir, const td_variant *v, int precise,
                                 const td_ops *ops)
{
    return td_variant_run(dir, v, precise, TD_BACKEND_CPU, ops);
}

TEST(precise_mode_is_a_plain_double_precision_forward_pass)
{
    td_variant v[TD_MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = td_variants(v); i < n; i += STRIDE) {
        td_make_model(dir, &v[i].m);
        size_t size = TD_VARIANT_TOKENS * (size_t)v[i].m.vocab;
        float *logits = td_variant_zeros(size), *mtp_logits = td_variant_zeros(size);
        td_plain_model(dir, &v[i].m, td_variant_prompt(v[i].m.vocab), TD_VARIANT_TOKENS, logits,
                       mtp_logits);
        td_variant_result r = forward(dir, &v[i], 1, NULL);
        td_variant_check_precise(&v[i], logits, mtp_logits, &r);
        td_variant_drop(&r);
        free(logits);
        free(mtp_logits);
    }
}

TEST(precise_mode_agrees_with_the_judges)
{
    td_variant v[TD_MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = td_variants(v); i < n; i += STRIDE) {
        td_make_model(dir, &v[i].m);
        td_variant_result want = forward(dir, &v[i], 1, td_ops_ref()),
                          got = forward(dir, &v[i], 1, NULL);
        td_variant_check_precise(&v[i], want.logits, want.mtp_logits, &got);
        TD_EQ(want.first, got.first);
        td_variant_drop(&want);
        td_variant_drop(&got);
    }
}

static void quantised_agrees(int first, int stride)
{
    td_variant v[TD_MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = first, n = td_variants(v); i < n; i += stride) {
        if (v[i].n_ranks > 1) /* ranks_of_any_share_agree_with_one; the judges are slow */
            continue;
        td_make_model(dir, &v[i].m);
        td_variant_result want = forward(dir, &v[i], 0, td_ops_ref()),
                          got = forward(dir, &v[i], 0, NULL);
        td_variant_check_quantised(&v[i], &want, &got, judged);
        td_variant_drop(&want);
        td_variant_drop(&got);
    }
}

TEST(quantised_mode_agrees_with_the_judges)
{
    quantised_agrees(0, TD_SANITIZED ? 9 : 3);
}

TEST(quantised_mode_agrees_with_the_judges_in_all_other_kinds)
{
    quantised_agrees(1, 3);
    quantised_agrees(2, 3);
}

TEST(ranks_of_any_share_agree_with_one)
{
    td_variant v[TD_MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = td_variants(v); i < n; i++) {
        td_variant one = v[i];
        one.n_ranks = 1;
        for (int precise = 0; precise < 2 && v[i].n_ranks > 1; precise++) {
            td_make_model(dir, &v[i].m);
            td_variant_result want = forward(dir, &one, precise, NULL);
            td_variant_result got = forward(dir, &v[i], precise, NULL);
            if (precise)
                td_variant_check_precise(&v[i], want.logits, want.mtp_logits, &got);
            else
                td_variant_check_quantised(&v[i], &want, &got, judged);
            td_variant_drop(&want);
            td_variant_drop(&got);
        }
    }
}

/* Two checkpoints that say the same give the same bits. */
static void check_same(const td_made_model *a, const td_made_model *b)
{
    const char *dir = td_scratch_dir();
    for (int precise = 0; precise < 2; precise++) {
        td_variant va = {"", *a, 1, TD_MOE_FUSED}, vb = {"", *b, 1, TD_MOE_FUSED};
        td_make_model(dir, a);
        td_variant_result ra = forward(dir, &va, precise, NULL);
        td_make_model(dir, b);
        td_variant_result rb = forward(dir, &vb, precise, NULL);
        size_t size = TD_VARIANT_TOKENS * (size_t)a->vocab * sizeof(float);
        TD_MEM(ra.logits, rb.logits, size);
        TD_MEM(ra.mtp_logits, rb.mtp_logits, size);
        TD_EQ(ra.first, rb.first);
        td_variant_drop(&ra);
        td_variant_drop(&rb);
    }
}

TEST(scales_in_bf16_are_the_same_scales_in_f32)
{
    td_made_model a = td_variant_base(1), b;
    a.plain_scales = 1;
    a.bf16_scales = 1;
    b = a;
    b.bf16_scales = 2;
    check_same(&a, &b);
}

TEST(tied_embeddings_are_a_head_with_the_same_numbers)
{
    td_made_model a = td_variant_base(1), b = a;
    a.tied = 1;
    b.tied = 2;
    check_same(&a, &b);
}

/* The published files have copies of the target's there, whose storage is shared. */
TEST(an_embedding_and_a_head_in_the_draft_layer_are_not_used)
{
    td_made_model a = td_variant_base(1), b = a;
    b.draft_copies = 1;
    check_same(&a, &b);
}

/* Products of two bf16 numbers are exact in f32, and the order of sums is the same. */
TEST(weights_used_as_f32_may_be_stored_so)
{
    td_made_model a = td_variant_base(1), b = a;
    b.f32_gates = 2;
    check_same(&a, &b);
}
