/* rmsnorm_lanes.h - one row, per instruction set (each_isa.h). Lane l of sum (i / 16) % 4 adds the
 * squares of elements i, the four sums are added in pairs, then the lanes. */
#define V L(v16)

LANES_TARGET static void L(rmsnorm_row)(const td_rmsnorm_args *a, int64_t t, float *z)
{
    const size_t es = td_dtype_bytes(a->act);
    const unsigned char *x = (const unsigned char *)a->x + (size_t)(t * a->x_stride) * es;
    const unsigned char *res = (const unsigned char *)a->res;
    unsigned char *res_out = (unsigned char *)a->res_out;
    unsigned char *y = (unsigned char *)a->y + (size_t)(t * a->y_stride) * es;
    res = res == NULL ? NULL : res + (size_t)(t * a->D) * es;
    res_out = res_out == NULL ? NULL : res_out + (size_t)(t * a->D) * es;

    V sum[4] = {L(vzero)(), L(vzero)(), L(vzero)(), L(vzero)()};
    for (int i0 = 0; i0 < a->D; i0 += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            int i = i0 + j * LANES, n = a->D - i < LANES ? a->D - i : LANES;
            if (n <= 0)
                break;
            V v = L(load_act)(x, i, n, a->act);
            if (res != NULL)
                v = L(vadd)(v, L(load_act)(res, i, n, a->act));
            if (res_out != NULL)
                L(store_act)(res_out, i, n, a->act, v);
            L(vstore)(z + i, v);
            sum[j] = L(vfma)(v, v, sum[j]);
        }
    float total = L(vsum)(L(vadd)(L(vadd)(sum[0], sum[1]), L(vadd)(sum[2], sum[3])));
    V r = L(vset)(1.0f / sqrtf(total / (float)a->D + a->eps));
    for (int i = 0; i < a->D; i += LANES) {
        int n = a->D - i < LANES ? a->D - i : LANES;
        V w = n == LANES ? L(vload)(a->w + i) : L(vloadn)(a->w + i, n);
        V v = L(vmul)(w, L(vmul)(L(vload)(z + i), r));
        L(store_act)(y, i, n, a->act, v);
        L(vstore)(z + i, L(vround_bf16)(v));
    }
    if (a->q == NULL)
        return;
    const int groups = td_ceil_div(a->D, TD_QUANT_GROUP);
    for (int g = 0; g < groups; g++) {
        int i = g * TD_QUANT_GROUP, n = a->D - i < TD_QUANT_GROUP ? a->D - i : TD_QUANT_GROUP;
        a->qs[t * groups + g] = L(quant_group)(z + i, n, a->q + t * a->D + i, a->ue8m0);
    }
}
#undef V
