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

td_status td_ep_combine_ref(const td_ep_combine_args *a,
                            td_stream *stream); /* plain judge: tests only */
td_status td_ep_combine_cpu(const td_ep_combine_args *a, td_stream *stream);
#endif
