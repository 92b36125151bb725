/* rope_lanes.h - one head of one row, per instruction set (each_isa.h). Products and sums are
 * rounded as in the formula, so the bits are the reference's. */
#define V L(v16)

LANES_TARGET TD_BODY void L(rope_interleaved)(void *x, const float *cos_sin, int R, td_dtype act)
{
    static const float even_minus[LANES] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    const V sign = L(vload)(even_minus);
    for (int i = 0; i < R; i += LANES) {
        int n = R - i < LANES ? R - i : LANES;
        V cs = n == LANES ? L(vload)(cos_sin + i) : L(vloadn)(cos_sin + i, n);
        V v = L(load_act)(x, i, n, act);
        V across = L(vmul)(L(vmul)(L(vswap1)(v), L(vdup_odd)(cs)), sign);
        L(store_act)(x, i, n, act, L(vadd)(L(vmul)(v, L(vdup_even)(cs)), across));
    }
}

LANES_TARGET TD_BODY void L(rope_halves)(void *x, const float *cos_sin, int R, td_dtype act)
{
    const int half = R / 2;
    for (int i = 0; i < half; i += LANES) {
        int n = half - i < LANES ? half - i : LANES;
        const float *p = cos_sin + 2 * (int64_t)i;
        float last[2 * LANES] = {0};
        if (n < LANES)
            p = memcpy(last, p, 2 * (size_t)n * sizeof(float));
        V c, s;
        L(vsplit)(L(vload)(p), L(vload)(p + LANES), &c, &s);
        V x1 = L(load_act)(x, i, n, act), x2 = L(load_act)(x, half + i, n, act);
        L(store_act)(x, i, n, act, L(vsub)(L(vmul)(x1, c), L(vmul)(x2, s)));
        L(store_act)(x, half + i, n, act, L(vadd)(L(vmul)(x1, s), L(vmul)(x2, c)));
    }
}

LANES_TARGET static void L(rope_row)(const td_rope_args *a, int64_t t)
{
    const float *cos_sin = a->cos_sin + (int64_t)a->positions[t] * a->R;
    const size_t es = td_dtype_bytes(a->act);
    for (int h = 0; h < a->heads; h++) {
        int64_t at = t * a->row_stride + h * a->head_stride;
        void *x = (unsigned char *)a->x + (size_t)at * es;
        if (a->interleaved)
            L(rope_interleaved)(x, cos_sin, a->R, a->act);
        else
            L(rope_halves)(x, cos_sin, a->R, a->act);
    }
}
#undef V
