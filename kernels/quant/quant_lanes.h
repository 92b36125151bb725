/* quant_lanes.h - groups begin..end-1 of all rows' groups, per instruction set (each_isa.h). */
LANES_TARGET static void L(quant_groups)(const td_quant_args *a, int64_t begin, int64_t end)
{
    const int n_groups = td_ceil_div(a->K, TD_QUANT_GROUP);
    for (int64_t at = begin; at < end; at++) {
        const int64_t t = at / n_groups;
        const int k0 = (int)(at % n_groups) * TD_QUANT_GROUP;
        const int n = a->K - k0 < TD_QUANT_GROUP ? a->K - k0 : TD_QUANT_GROUP;
        const td_bf16 *x = (const td_bf16 *)a->x + t * a->x_stride + k0;
        float v[TD_QUANT_GROUP];
        for (int k = 0; k < n; k += LANES)
            L(vstore)(v + k, L(load_act)(x, k, n - k < LANES ? n - k : LANES, TD_BF16));
        a->qs[at] = L(quant_group)(v, n, a->q + t * a->K + k0, a->ue8m0);
    }
}
