/* sample.h - a token per row (model-spec D.3). After the exponential all arithmetic is in integers,
 * so no order of summation, no number of threads and no machine can change what is drawn:
 *   l = logits, NaN counts as -inf; forbidden tokens do not exist; m = the largest l
 *   temperature 0 (or below, or NaN), or m = -inf: the lowest id with l = m
 *   weight w = floor( 2^40 * e ), e = 1 where l = m, else td_expf( (l - m) / temperature ), f32
 *   top-k: the k largest l stay (equal: lowest ids)
 *   top-p: of these, in descending order of l (equal: lowest id first), the fewest whose weights
 *   sum to at least ceil( top_p * W ) (in double), W the sum over all that stayed
 *   draw: the first id, ascending, at which the running sum of the weights that stayed exceeds
 *   floor( r * W' / 2^64 ), W' their sum, r = td_random_u64(seed, position, TD_RANDOM_TOKEN)
 * So p = softmax(logits / temperature) to 2^-40 of the largest p, top-k and top-p renormalised, and
 * the inverse CDF in the order of ids, where a small change of the logits moves few draws. Keyed by
 * the token's absolute position: drafts, batch and worker do not change the outcome. No token to
 * draw from (all forbidden): -1. */
#ifndef TD_KERNELS_SAMPLE_H
#define TD_KERNELS_SAMPLE_H
#include "kernels/shapes.h"

#include <math.h>

typedef struct {
    const float *logits;            /* [T, V], row stride stride */
    const float *temperature;       /* [T] */
    const float *top_p;             /* [T] in (0, 1]; 1 or above, NaN: off */
    const int32_t *top_k;           /* [T] 0 or below, V or above: off */
    const uint64_t *seed;           /* [T] */
    const int32_t *position;        /* [T] absolute position of the token to draw */
    const uint8_t *forbid_ids_mask; /* [T, ceil(V/8)] bit id % 8 of byte id / 8 set: token may not
                                       be drawn (min_tokens); NULL: none */
    int32_t *token;                 /* [T] */
    int T, V;
    int64_t stride;
} td_sample_args;

#define TD_SAMPLE_ONE 0x1p40f /* weight of the largest logit */

/* How much weight top-p keeps of `total`: 1..total. */
TD_FN uint64_t td_sample_need(float top_p, uint64_t total)
{
    double need = top_p > 0.0f ? ceil((double)top_p * (double)total) : 1.0;
    return need < 1.0 ? 1 : need < (double)total ? (uint64_t)need : total;
}

/* What any backend takes; otherwise TD_BAD_SHAPE. V: so that weights add up in 64 bits. */
static inline int td_sample_valid(const td_sample_args *a)
{
    if (a->T < 0 || a->V < 1 || a->V > (1 << 22))
        return 0;
    return a->T == 0 || (a->logits != NULL && a->temperature != NULL && a->top_p != NULL &&
                         a->top_k != NULL && a->seed != NULL && a->position != NULL &&
                         a->token != NULL && (a->T == 1 || a->stride >= a->V));
}

td_status td_sample_ref(const td_sample_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_sample_cpu(const td_sample_args *a, td_stream *stream);
td_status td_sample_cuda(const td_sample_args *a, td_stream *stream); /* in the plug-in */
#endif
