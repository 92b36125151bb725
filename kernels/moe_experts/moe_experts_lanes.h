/* moe_experts_lanes.h - silu(gate) * up of up to 128 columns of one row, per instruction set
 * (each_isa.h): the product as the second matrix reads it. */
#include "kernels/cpu/silu_lanes.h"

LANES_TARGET static void L(moe_product)(const float *gate, const float *up, int n, td_dtype dtype,
                                        int ue8m0, void *h, float *scale)
{
    float rounded[TD_QUANT_GROUP];
    for (int i = 0; i < n; i += LANES) {
        const int n_i = n - i < LANES ? n - i : LANES;
        L(v16) g = L(load_act)(gate, i, n_i, TD_F32), u = L(load_act)(up, i, n_i, TD_F32);
        if (dtype == TD_F32) {
            L(store_act)(h, i, n_i, TD_F32, L(vsilu_mul)(g, u));
            continue;
        }
        L(v16) v = L(vsilu_mul)(L(vround_bf16)(g), L(vround_bf16)(u));
        if (dtype == TD_BF16)
            L(store_act)(h, i, n_i, TD_BF16, v);
        else
            L(vstore)(rounded + i, L(vround_bf16)(v));
    }
    if (dtype == TD_E4M3)
        *scale = L(quant_group)(rounded, n, h, ue8m0);
}
