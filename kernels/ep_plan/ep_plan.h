/* ep_plan.h - which rows go to which rank (design.md, ep mode). Rank p owns experts floor(p*E/P) ..
 * floor((p+1)*E/P)-1. A row goes once to every rank that owns one of its experts; rows stand in
 * ascending order. */
#ifndef TD_KERNELS_EP_PLAN_H
#define TD_KERNELS_EP_PLAN_H
#include "kernels/shapes.h"

typedef struct {
    const int32_t *ids; /* [T, K]; < 0: none */
    int32_t *rows;      /* [P, T] row numbers for rank p; -1 behind them */
    int32_t *counts;    /* [P] */
    int32_t *slot;      /* [T, P] where row t stands in rank p's list; -1: not sent */
    int T, K, E, P;
} td_ep_plan_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_ep_plan_valid(const td_ep_plan_args *a)
{
    if (a->T < 0 || a->K < 0 || a->E < 0 || a->P < 1 || a->counts == NULL)
        return 0;
    return a->T == 0 || (a->rows != NULL && a->slot != NULL && (a->K == 0 || a->ids != NULL));
}

td_status td_ep_plan_ref(const td_ep_plan_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_ep_plan_cpu(const td_ep_plan_args *a, td_stream *stream);
td_status td_ep_plan_cuda(const td_ep_plan_args *a, td_stream *stream); /* in the plug-in */
#endif
