/* lanes_math.h - what several kernels compute over lanes.h. No include guard: each_isa.h includes
 * it once per instruction set. */
#define V L(v16)

/* td_expf of sixteen numbers, the same bits. */
LANES_TARGET TD_BODY V L(vexp)(V x)
{
    V n = L(vround)(L(vmul)(x, L(vset)(1.44269504f)));
    V r = L(vsub)(x, L(vmul)(n, L(vset)(0.693359375f)));
    r = L(vsub)(r, L(vmul)(n, L(vset)(-2.12194440e-4f)));
    V p = L(vadd)(L(vmul)(L(vset)(1.9875691500e-4f), r), L(vset)(1.3981999507e-3f));
    p = L(vadd)(L(vmul)(p, r), L(vset)(8.3334519073e-3f));
    p = L(vadd)(L(vmul)(p, r), L(vset)(4.1665795894e-2f));
    p = L(vadd)(L(vmul)(p, r), L(vset)(1.6666665459e-1f));
    p = L(vadd)(L(vmul)(p, r), L(vset)(5.0000001201e-1f));
    V y = L(vadd)(L(vadd)(L(vmul)(L(vmul)(r, r), p), r), L(vset)(1.0f));
    y = L(vscale2)(y, n);
    y = L(vselect_lt)(x, L(vset)(-87.33654f), L(vzero)(), y);
    return L(vselect_lt)(L(vset)(88.72283f), x, L(vset)(INFINITY), y);
}

/* Numbers i..i+n-1 of a row of f32 or bf16; n 1..16, zeros behind them. */
LANES_TARGET TD_BODY V L(load_act)(const void *row, int64_t i, int n, td_dtype act)
{
    if (act == TD_F32) {
        const float *p = (const float *)row + i;
        return n == LANES ? L(vload)(p) : L(vloadn)(p, n);
    }
    const td_bf16 *p = (const td_bf16 *)row + i;
    if (n == LANES)
        return L(vload_bf16)(p);
    td_bf16 all[LANES] = {0};
    memcpy(all, p, (size_t)n * 2);
    return L(vload_bf16)(all);
}

LANES_TARGET TD_BODY void L(store_act)(void *row, int64_t i, int n, td_dtype act, V v)
{
    if (act == TD_F32) {
        float *p = (float *)row + i;
        if (n == LANES)
            L(vstore)(p, v);
        else
            L(vstoren)(p, v, n);
        return;
    }
    td_bf16 *p = (td_bf16 *)row + i;
    if (n == LANES) {
        L(vstore_bf16)(p, v);
        return;
    }
    td_bf16 all[LANES];
    L(vstore_bf16)(all, v);
    memcpy(p, all, (size_t)n * 2);
}

/* AQ_128 of one group of n <= 128 numbers; returns the scale. */
LANES_TARGET TD_BODY float L(quant_group)(const float *x, int n, uint8_t *q, int ue8m0)
{
    V amax = L(vzero)();
    for (int i = 0; i < n; i += LANES) {
        V v = n - i >= LANES ? L(vload)(x + i) : L(vloadn)(x + i, n - i);
        amax = L(vmax)(L(vabs)(v), amax);
    }
    float scale = td_quant_scale(L(vhmax)(amax), ue8m0);
    V s = L(vset)(scale);
    for (int i = 0; i < n; i += LANES) {
        if (n - i >= LANES) {
            L(vstore_e4m3)(q + i, L(vdiv)(L(vload)(x + i), s));
        } else {
            uint8_t all[LANES];
            L(vstore_e4m3)(all, L(vdiv)(L(vloadn)(x + i, n - i), s));
            memcpy(q + i, all, (size_t)(n - i));
        }
    }
    return scale;
}
#undef V
