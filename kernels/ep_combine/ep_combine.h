/* ep_combine.h - y[t] = sum over ranks p, in rank order, of parts[p][slot[t,p]] (slot -1: left
 * out); f32. */
#ifndef TD_KERNELS_EP_COMBINE_H
#define TD_KERNELS_EP_COMBINE_H
#include "kernels/shapes.h"

typedef struct {
    const float *parts;  /* [P, cap, D] */
    const int32_t *slot; /* [T, P] */
    float *y;            /* [T, D], overwritten */
    int T, P, D, cap;
} td_ep_combine_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_ep_combine_valid(const td_ep_combine_args *a)
{
    if (a->T < 0 || a->P < 1 || a->D < 0 || a->cap < 0)
        return 0;
    return a->T == 0 || a->D == 0 ||
           (a->slot != NULL && a->y != NULL && (a->cap == 0 || a->parts != NULL));
}

td_status td_ep_combine_ref(const td_ep_combine_args *a,
                            td_stream *stream); /* plain judge: tests only */
td_status td_ep_combine_cpu(const td_ep_combine_args *a, td_stream *stream);
td_status td_ep_combine_cuda(const td_ep_combine_args *a, td_stream *stream); /* in the plug-in */
#endif
