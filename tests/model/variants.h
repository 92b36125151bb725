/* variants.h - kinds of checkpoints that neither the goldens nor the bundled model are, through the
 * whole forward pass, and how far two right ways through it may be apart. */
#ifndef TD_TESTS_MODEL_VARIANTS_H
#define TD_TESTS_MODEL_VARIANTS_H
#include "tests/model/harness.h"
#include "tests/model/made_model.h"

#define TD_VARIANT_TOKENS 70 /* three times index_topk, two pages */
#define TD_VARIANT_LAYERS 2
#define TD_MOST_VARIANTS 32

typedef struct {
    const char *name;
    td_made_model m;
    uint32_t n_ranks;
    td_moe_mode moe;
} td_variant;

typedef struct {
    float *logits, *mtp_logits, *layer_out[TD_VARIANT_LAYERS]; /* [TD_VARIANT_TOKENS, ..] */
    int32_t *selected[TD_VARIANT_LAYERS], first;
} td_variant_result;

/* The odd model. With its seeds precise mode meets no tie: no row's expert or position on either
 * side of a cut is nearer to the other than f32 can tell. */
td_made_model td_variant_base(int fp8);
/* v [TD_MOST_VARIANTS]: every one differs from the odd model in one thing. Returns how many. */
int td_variants(td_variant *v);

const int32_t *td_variant_prompt(int vocab); /* [TD_VARIANT_TOKENS] */
void *td_variant_zeros(size_t n);            /* of 4 bytes; aborts when it cannot */
/* The prompt through the checkpoint in dir. backend: whose memory; ops: NULL or others that work
 * there. */
td_variant_result td_variant_run(const char *dir, const td_variant *v, int precise,
                                 td_backend_kind backend, const td_ops *ops);
void td_variant_drop(td_variant_result *r);

/* Fail the test when the two are too far apart. bounds: of quantised runs that differ in
 * the order of sums alone. */
typedef struct {
    size_t rows;     /* equal from the first on, before anything fell otherwise */
    double kl, top1; /* of the target's logits and the draft layer's */
} td_variant_bounds;
void td_variant_check_precise(const td_variant *v, const float *logits, const float *mtp_logits,
                              const td_variant_result *r);
void td_variant_check_quantised(const td_variant *v, const td_variant_result *want,
                                const td_variant_result *got, td_variant_bounds bounds);
#endif
