/* widen.h - y = x as f32, exactly: what a weight that the checkpoint keeps in f32 is multiplied
 * with (model-spec A.10: gate, weights_proj, head). */
#ifndef TD_KERNELS_WIDEN_H
#define TD_KERNELS_WIDEN_H
#include "kernels/shapes.h"

typedef struct {
    const void *x; /* [T, D] bf16, contiguous */
    float *y;      /* [T, D] */
    int T, D;
} td_widen_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_widen_valid(const td_widen_args *a)
{
    if (a->T < 0 || a->D < 0)
        return 0;
    return a->T == 0 || a->D == 0 || (a->x != NULL && a->y != NULL);
}

td_status td_widen_ref(const td_widen_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_widen_cpu(const td_widen_args *a, td_stream *stream);
td_status td_widen_cuda(const td_widen_args *a, td_stream *stream); /* in the plug-in */
#endif
