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

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_argmax_valid(const td_argmax_args *a)
{
    if (a->T < 0 || a->V < 1)
        return 0;
    return a->T == 0 || (a->logits != NULL && a->ids != NULL && (a->T == 1 || a->stride >= a->V));
}

td_status td_argmax_ref(const td_argmax_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_argmax_cpu(const td_argmax_args *a, td_stream *stream);
td_status td_argmax_cuda(const td_argmax_args *a, td_stream *stream); /* in the plug-in */
#endif
