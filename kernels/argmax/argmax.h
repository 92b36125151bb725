/* argmax.h - id of the largest logit per row, lowest id among equals, NaN counts as -inf. */
#ifndef TD_KERNELS_ARGMAX_H
#define TD_KERNELS_ARGMAX_H
#include "kernels/shapes.h"

typedef struct {
    const float *logits; /* [T, V], row stride stride */
    int32_t *ids;        /* [T] */
    int T, V;
    int64_t stride;
} td_argmax_args;

td_status td_argmax_ref(const td_argmax_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_argmax_cpu(const td_argmax_args *a, td_stream *stream);
#endif
