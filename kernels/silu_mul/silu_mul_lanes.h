/* silu_mul_lanes.h - groups of 128 begin..end-1 of all rows' groups, per instruction set
 * (each_isa.h). */
#include "kernels/cpu/silu_lanes.h"

LANES_TARGET static void L(silu_mul_groups)(const td_silu_mul_args *a, int64_t begin, int64_t end)
{
    const int n_groups = td_ceil_div(a->I, TD_QUANT_GROUP);
    for (int64_t at = begin; at < end; at++) {
        const int i0 = (int)(at % n_groups) * TD_QUANT_GROUP;
        const int n = a->I - i0 < TD_QUANT_GROUP ? a->I - i0 : TD_QUANT_GROUP;
        const int64_t first = at / n_groups * a->I + i0;
        float rounded[TD_QUANT_GROUP];
        for (int i = 0; i < n; i += LANES) {
            const int n_i = n - i < LANES ? n - i : LANES;
            L(v16) g = L(load_act)(a->gate, first + i, n_i, a->act);
            L(v16) y = L(vsilu_mul)(g, L(load_act)(a->up, first + i, n_i, a->act));
            L(store_act)(a->y, first + i, n_i, a->act, y);
            L(vstore)(rounded + i, L(vround_bf16)(y));
        }
        if (a->q != NULL)
            a->qs[at] = L(quant_group)(rounded, n, a->q + first, a->ue8m0);
    }
}
