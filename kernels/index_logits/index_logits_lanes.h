/* index_logits_lanes.h - a tile of keys, then a row against it, per instruction set (each_isa.h).
 * A lane is a key; every dot product is one chain of fused multiply-adds over the dims, ascending;
 * heads are added in ascending order. */
#define V L(v16)
#define TILE TD_INDEX_TILE

#if LANES_REGS >= 32
#define KEYS 4 /* x16, side by side */
#else
#define KEYS 1
#endif
#if LANES_REGS >= 8
#define HEADS 4
#else
#define HEADS 2
#endif

/* 16 keys from k0 on of an f32 tile. */
LANES_TARGET TD_BODY void L(index_keys_f32)(const float *keys, int dim, int k0, int n, float *kt)
{
    for (int d0 = 0; d0 < dim; d0 += LANES) {
        int dims = dim - d0 < LANES ? dim - d0 : LANES;
        V v[LANES];
        for (int j = 0; j < LANES; j++)
            v[j] = k0 + j < n ? L(load_act)(keys, (int64_t)(k0 + j) * dim + d0, dims, TD_F32)
                              : L(vzero)();
        L(vtranspose)(v);
        for (int d = 0; d < dims; d++)
            L(vstore)(kt + (int64_t)(d0 + d) * TILE + k0, v[d]);
    }
}

/* kt[d][key]: dims of keys row..row+n-1 of the page, n <= TILE, zeros behind them up to a multiple
 * of 16; ks: their scales. */
LANES_TARGET static void L(index_tile)(const td_index_logits_args *a, const unsigned char *page,
                                       int row, int n, float *kt, float *ks)
{
    const int dim = a->dim;
    for (int i = 0; i < TILE; i++)
        ks[i] = i < n ? 1.0f : 0.0f;
    if (a->kv.dtype == 2) {
        const float *keys = (const float *)(const void *)page + (size_t)row * (size_t)dim;
        for (int k0 = 0; k0 < n; k0 += LANES)
            L(index_keys_f32)(keys, dim, k0, n, kt);
        return;
    }
    const unsigned char *keys = page + (size_t)row * (size_t)dim;
    for (int k0 = 0; k0 < n; k0 += LANES)
        for (int d0 = 0; d0 < dim; d0 += LANES) {
            uint8_t codes[LANES * LANES];
            L(btranspose)(keys + (size_t)(k0 * dim + d0), dim, n - k0, codes);
            for (int d = 0; d < LANES; d++)
                L(vstore)(kt + (d0 + d) * TILE + k0, L(vload_e4m3)(codes + LANES * d));
        }
    memcpy(ks, page + (size_t)a->kv.page_rows * (size_t)dim + (size_t)row * 4, (size_t)n * 4);
}

/* y[j] += relu( q[h] . keys ) * w[h] for `heads` heads. */
LANES_TARGET TD_BODY void L(index_heads)(const float *q, int dim, const float *w, const float *kt,
                                         int heads, int keys, V *y)
{
    V dot[HEADS][KEYS];
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int j = 0; j < keys; j++)
            dot[h][j] = L(vzero)();
    for (int d = 0; d < dim; d++) {
        V k[KEYS];
#pragma GCC unroll 4
        for (int j = 0; j < keys; j++)
            k[j] = L(vload)(kt + d * TILE + j * LANES);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            V x = L(vset)(q[h * dim + d]);
#pragma GCC unroll 4
            for (int j = 0; j < keys; j++)
                dot[h][j] = L(vfma)(x, k[j], dot[h][j]);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int j = 0; j < keys; j++) { /* vmax keeps NaN in its second operand */
            V relu = L(vmax)(L(vzero)(), dot[h][j]);
            y[j] = L(vadd)(y[j], L(vmul)(relu, L(vset)(w[h])));
        }
}

LANES_TARGET TD_BODY void L(index_keys)(const float *q, int Hi, int dim, const float *w,
                                        const float *kt, const float *ks, int keys, float *y)
{
    V sum[KEYS];
    for (int j = 0; j < keys; j++)
        sum[j] = L(vzero)();
    int h = 0;
    for (; h + HEADS <= Hi; h += HEADS)
        L(index_heads)(q + h * dim, dim, w + h, kt, HEADS, keys, sum);
    for (; h < Hi; h++)
        L(index_heads)(q + h * dim, dim, w + h, kt, 1, keys, sum);
    for (int j = 0; j < keys; j++)
        L(vstore)(y + j * LANES, L(vmul)(L(vload)(ks + j * LANES), sum[j]));
}

/* y[0..n-1], n <= TILE, of one row; q [Hi, dim] f32. */
LANES_TARGET static void L(index_row)(const td_index_logits_args *a, const float *q, const float *w,
                                      const float *kt, const float *ks, int n, float *y)
{
    float out[TILE];
    int k = 0;
    for (; k + (KEYS - 1) * LANES < n; k += KEYS * LANES)
        L(index_keys)(q, a->Hi, a->dim, w, kt + k, ks + k, KEYS, out + k);
    for (; k < n; k += LANES)
        L(index_keys)(q, a->Hi, a->dim, w, kt + k, ks + k, 1, out + k);
    memcpy(y, out, (size_t)n * sizeof(float));
}

/* n e4m3 numbers, a multiple of 16, to f32. */
LANES_TARGET static void L(index_widen)(const uint8_t *q, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i += LANES)
        L(vstore)(out + i, L(vload_e4m3)(q + i));
}
#undef TILE
#undef HEADS
#undef KEYS
#undef V
