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

td_status td_ep_plan_ref(const td_ep_plan_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_ep_plan_cpu(const td_ep_plan_args *a, td_stream *stream);
#endif
