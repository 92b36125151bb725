/* layernorm_lanes.h - one row, per instruction set (each_isa.h): mean, then variance, then the
 * result; lane l adds elements l, l + 16, .., then the lanes are added. */
#define V L(v16)

LANES_TARGET static void L(layernorm_row)(const td_layernorm_args *a, int64_t t)
{
    const size_t row_bytes = (size_t)a->D * td_dtype_bytes(a->act);
    const unsigned char *x = (const unsigned char *)a->x + (size_t)t * row_bytes;
    unsigned char *y = (unsigned char *)a->y + (size_t)t * row_bytes;
    const int whole = a->D / LANES * LANES, rest = a->D - whole;

    V sum = L(vzero)();
    for (int i = 0; i < whole; i += LANES)
        sum = L(vadd)(sum, L(load_act)(x, i, LANES, a->act));
    if (rest > 0)
        sum = L(vadd)(sum, L(load_act)(x, whole, rest, a->act));
    V mean = L(vset)(L(vsum)(sum) / (float)a->D);

    V squares = L(vzero)();
    for (int i = 0; i < whole; i += LANES) {
        V d = L(vsub)(L(load_act)(x, i, LANES, a->act), mean);
        squares = L(vfma)(d, d, squares);
    }
    if (rest > 0) { /* the lanes behind the row's end must not count */
        float d[LANES];
        L(vstore)(d, L(vsub)(L(load_act)(x, whole, rest, a->act), mean));
        V last = L(vloadn)(d, rest);
        squares = L(vfma)(last, last, squares);
    }
    V r = L(vset)(1.0f / sqrtf(L(vsum)(squares) / (float)a->D + a->eps));

    for (int i = 0; i < a->D; i += LANES) {
        int n = a->D - i < LANES ? a->D - i : LANES;
        V w = n == LANES ? L(vload)(a->w + i) : L(vloadn)(a->w + i, n);
        V b = n == LANES ? L(vload)(a->b + i) : L(vloadn)(a->b + i, n);
        V v = L(vmul)(L(vmul)(L(vsub)(L(load_act)(x, i, n, a->act), mean), r), w);
        L(store_act)(y, i, n, a->act, L(vadd)(v, b));
    }
}
#undef V
