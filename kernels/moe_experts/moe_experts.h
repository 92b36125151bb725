/* moe_experts.h - the routed experts that this rank holds (model-spec A.8): y[t] = sum over k in
 * top-k order of weights[t,k] * f_e(x[t]), e = ids[t,k], for expert_lo <= e < expert_hi; others are
 * left out. f(x) = down( act( silu(gate(x)) * up(x) ) ), silu as in silu_mul; gate(x), up(x) are
 * rounded to act; down(...) stays f32; the weighted sum is not fused. dtype e4m3: x comes quantised
 * and the product is quantised again (AQ_128). */
#ifndef TD_KERNELS_MOE_EXPERTS_H
#define TD_KERNELS_MOE_EXPERTS_H
#include "kernels/shapes.h"

typedef struct {
    const void *x;        /* [T, D] dtype */
    const float *xs;      /* [T, ceil(D/128)] e4m3 only */
    const int32_t *ids;   /* [T, K]; < 0: none (padding) */
    const float *weights; /* [T, K] */
    const void *gate;     /* [E_local, I, D] dtype */
    const void *up;       /* [E_local, I, D] */
    const void *down;     /* [E_local, D, I] */
    const float *gate_s;  /* [E_local, ceil(I/128), ceil(D/128)] e4m3 only */
    const float *up_s;
    const float *down_s; /* [E_local, ceil(D/128), ceil(I/128)] */
    float *y;            /* [T, D], overwritten (zeros where no expert is ours; also when I is 0) */
    int T, D, I, K, expert_lo, expert_hi;
    int ue8m0;
    td_dtype dtype; /* of x and the weights: e4m3, bf16 or f32 */
} td_moe_experts_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_moe_experts_valid(const td_moe_experts_args *a)
{
    if (a->T < 0 || a->D < 0 || a->I < 0 || a->K < 0)
        return 0;
    if (a->expert_lo < 0 || a->expert_hi < a->expert_lo)
        return 0;
    if (a->dtype != TD_F32 && a->dtype != TD_BF16 && a->dtype != TD_E4M3)
        return 0;
    if (a->T == 0 || a->D == 0)
        return 1;
    if (a->y == NULL || (a->K > 0 && (a->ids == NULL || a->weights == NULL)))
        return 0;
    if (a->K == 0 || a->I == 0 || a->expert_lo == a->expert_hi)
        return 1;
    if (a->x == NULL || a->gate == NULL || a->up == NULL || a->down == NULL)
        return 0;
    return a->dtype != TD_E4M3 ||
           (a->xs != NULL && a->gate_s != NULL && a->up_s != NULL && a->down_s != NULL);
}

td_status td_moe_experts_ref(const td_moe_experts_args *a,
                             td_stream *stream); /* plain judge: tests only */
td_status td_moe_experts_cpu(const td_moe_experts_args *a, td_stream *stream);
td_status td_moe_experts_cuda(const td_moe_experts_args *a, td_stream *stream); /* in the plug-in */
#endif
