/* sample.h - a token per row (model-spec D.3): temperature 0 takes the argmax (lowest id among
 * equals); otherwise p = softmax(logits / temperature), top-k renormalised, top-p renormalised
 * (smallest set of the largest p whose sum reaches top_p), then the inverse CDF over tokens in
 * descending p (ties: lowest id) at u = td_uniform(seed, position, purpose). Keyed by the token's
 * absolute position, so drafts, batch and worker do not change the outcome. All f32 sums in
 * descending order of p. */
#ifndef TD_KERNELS_SAMPLE_H
#define TD_KERNELS_SAMPLE_H
#include "kernels/shapes.h"

typedef struct {
    const float *logits;            /* [T, V], row stride stride */
    const float *temperature;       /* [T] */
    const float *top_p;             /* [T] in (0, 1] */
    const int32_t *top_k;           /* [T] 0: off */
    const uint64_t *seed;           /* [T] */
    const int32_t *position;        /* [T] absolute position of the token to draw */
    const uint8_t *forbid_ids_mask; /* [T, ceil(V/8)] bit set: token may not be drawn (min_tokens);
                                       NULL: none */
    int32_t *token;                 /* [T] */
    int T, V;
    int64_t stride;
} td_sample_args;

td_status td_sample_ref(const td_sample_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_sample_cpu(const td_sample_args *a, td_stream *stream);
#endif
