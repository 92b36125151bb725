/* sparse_mla_lanes.h - the five steps of one row's attention, per instruction set (each_isa.h).
 * Sums are f64: products of f32 are exact there, so scores and outputs are right to their last f32
 * bit, and hardly any bf16 that follows rounds the other way than exact arithmetic would. Every
 * order is fixed by C, R and the number of keys: a score is 8 chains of multiply-adds over the dims
 * (lane l: dims l, l + 8, ..), then the lanes' tree; the sum of p and an output are one chain. */
#define V L(v16)
#define D L(d8)
#define DL 8 /* lanes of a D */

/* Score tiles of HEADS x KEYS sums, value tiles of HEADS x COLS; all of D. */
#if LANES_REGS >= 32
#define HEADS 4
#define KEYS 4
#define COLS 4
#elif LANES_REGS >= 8
#define HEADS 2
#define KEYS 2
#define COLS 2
#else
#define HEADS 2
#define KEYS 1
#define COLS 1
#endif

/* n numbers from bf16 or f32, zeros behind them up to `to`. */
LANES_TARGET static void L(mla_widen)(const void *x, td_dtype dtype, int n, int to, float *out)
{
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        L(vstore)(out + i, L(load_act)(x, i, LANES, dtype));
    if (i < n)
        L(vstoren)(out + i, L(load_act)(x, i, n - i, dtype), n - i);
    for (i = n; i < to; i++)
        out[i] = 0.0f;
}

/* 128 codes times their scale. The short way loads 2^-8 of the codes and puts the 2^8 into the
 * scale: the same product, if the scale has room for it and no code is NaN. */
LANES_TARGET TD_BODY void L(mla_group)(const uint8_t *codes, float scale, float *out)
{
    const int general = L(nan_e4m3)(codes) || L(nan_e4m3)(codes + 64) || !(scale < 0x1p119f);
    V s = L(vset)(general ? scale : scale * 256.0f);
    if (general) {
        for (int i = 0; i < TD_QUANT_GROUP; i += LANES)
            L(vstore)(out + i, L(vmul)(L(vload_e4m3)(codes + i), s));
        return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < TD_QUANT_GROUP; i += LANES)
        L(vstore)(out + i, L(vmul)(L(vload_e4m3_256th)(codes + i), s));
}

/* A cached fp8 row to C + R numbers, zeros behind them up to ld. */
LANES_TARGET static void L(mla_fp8)(const unsigned char *row, int C, int R, int ld, float *out)
{
    for (int g = 0; g < C / TD_QUANT_GROUP; g++) {
        float scale;
        memcpy(&scale, row + C + 4 * g, 4);
        L(mla_group)(row + g * TD_QUANT_GROUP, scale, out + g * TD_QUANT_GROUP);
    }
    L(mla_widen)(row + C + C / TD_QUANT_GROUP * 4, TD_BF16, R, ld - C, out + C);
}

LANES_TARGET TD_BODY double L(mla_dsum)(D sum)
{
    double t[DL];
    L(dstore)(t, sum);
    return ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7]));
}

LANES_TARGET TD_BODY void L(mla_score_tile)(const mla_tile *m, int h, int i, int heads)
{
    const float *q = m->q + (int64_t)h * m->ld, *k = m->keys + (int64_t)i * m->ld;
    float *p = m->p + h * m->ldp + m->first + i;
    const int64_t ld = m->ld;
    D sum[HEADS * KEYS];
#pragma GCC unroll 16
    for (int j = 0; j < heads * KEYS; j++)
        sum[j] = L(dset)(0.0);
    for (int64_t d = 0; d < m->dims; d += DL) {
        D kd[KEYS];
#pragma GCC unroll 4
        for (int b = 0; b < KEYS; b++)
            kd[b] = L(dwiden)(k + b * ld + d);
#pragma GCC unroll 4
        for (int a = 0; a < heads; a++) {
            D qd = L(dwiden)(q + a * ld + d);
#pragma GCC unroll 4
            for (int b = 0; b < KEYS; b++)
                sum[a * KEYS + b] = L(dfma)(qd, kd[b], sum[a * KEYS + b]);
        }
    }
#pragma GCC unroll 4
    for (int a = 0; a < heads; a++)
#pragma GCC unroll 4
        for (int b = 0; b < KEYS; b++)
            p[a * m->ldp + b] = (float)L(mla_dsum)(sum[a * KEYS + b]) * m->scale;
}

/* Scores of m->n keys, and of up to 3 behind them, for all heads. A few keys at a time stay in the
 * first cache for all heads. */
LANES_TARGET static void L(mla_scores)(const mla_tile *m)
{
    for (int i0 = 0; i0 < m->n; i0 += MLA_SCORE_KEYS)
        for (int h = 0; h < m->H; h += HEADS)
            for (int i = i0; i < m->n && i < i0 + MLA_SCORE_KEYS; i += KEYS)
                switch (m->H - h < HEADS ? m->H - h : HEADS) {
                case 1: L(mla_score_tile)(m, h, i, 1); break;
#if HEADS == 4
                case 2: L(mla_score_tile)(m, h, i, 2); break;
                case 3: L(mla_score_tile)(m, h, i, 3); break;
#endif
                default: L(mla_score_tile)(m, h, i, HEADS); break;
                }
}

/* p[0..n-1] from scores to r(exp(s - max) / sum). p has room up to the next multiple of 16. */
LANES_TARGET static void L(mla_softmax)(float *p, int n, int round)
{
    V max = L(vset)(-INFINITY);
    double sum = 0.0;
    for (int i = n; i % LANES != 0; i++)
        p[i] = -INFINITY;
    for (int i = 0; i < n; i += LANES) /* vmax drops NaN in its first operand */
        max = L(vmax)(L(vload)(p + i), max);
    max = L(vset)(L(vhmax)(max));
    for (int i = 0; i < n; i += LANES)
        L(vstore)(p + i, L(vexp)(L(vsub)(L(vload)(p + i), max)));
    for (int i = 0; i < n; i++)
        sum += (double)p[i];
    for (int i = 0; i < n; i++)
        p[i] = (float)((double)p[i] / sum);
    for (int i = 0; i < n && round; i += LANES)
        L(vstore)(p + i, L(vround_bf16)(L(vload)(p + i)));
}

/* Keys i..end-1. */
LANES_TARGET TD_BODY void L(mla_value_tile)(const mla_tile *m, int i, int end, int h, int c,
                                            int heads, int cols)
{
    double *u = m->u + (int64_t)h * m->ldu + c;
    const float *p = m->p + (int64_t)h * m->ldp + m->first, *k = m->keys + i * m->ld + c;
    D sum[HEADS][COLS];
#pragma GCC unroll 4
    for (int a = 0; a < heads; a++)
#pragma GCC unroll 4
        for (int b = 0; b < cols; b++)
            sum[a][b] = L(dload)(u + a * m->ldu + b * DL);
    for (; i < end; i++, k += m->ld) {
        D x[HEADS];
#pragma GCC unroll 4
        for (int a = 0; a < heads; a++)
            x[a] = L(dset)((double)p[a * m->ldp + i]);
#pragma GCC unroll 4
        for (int b = 0; b < cols; b++) {
            D v = L(dwiden)(k + b * DL);
#pragma GCC unroll 4
            for (int a = 0; a < heads; a++)
                sum[a][b] = L(dfma)(x[a], v, sum[a][b]);
        }
    }
#pragma GCC unroll 4
    for (int a = 0; a < heads; a++)
#pragma GCC unroll 4
        for (int b = 0; b < cols; b++)
            L(dstore)(u + a * m->ldu + b * DL, sum[a][b]);
}

LANES_TARGET TD_BODY void L(mla_value_heads)(const mla_tile *m, int i, int end, int h, int c,
                                             int cols)
{
    switch (m->H - h < HEADS ? m->H - h : HEADS) {
    case 1: L(mla_value_tile)(m, i, end, h, c, 1, cols); break;
#if HEADS == 4
    case 2: L(mla_value_tile)(m, i, end, h, c, 2, cols); break;
    case 3: L(mla_value_tile)(m, i, end, h, c, 3, cols); break;
#endif
    default: L(mla_value_tile)(m, i, end, h, c, HEADS, cols); break;
    }
}

/* u += p * keys for all heads; columns up to the next multiple of 16 behind C. Some columns of some
 * keys stay in the first cache for all heads. */
LANES_TARGET static void L(mla_values)(const mla_tile *m)
{
    for (int i = 0; i < m->n; i += MLA_VALUE_KEYS) {
        int end = m->n - i < MLA_VALUE_KEYS ? m->n : i + MLA_VALUE_KEYS;
        int c = 0;
        for (; c + (COLS - 1) * DL < m->C; c += COLS * DL)
            for (int h = 0; h < m->H; h += HEADS)
                L(mla_value_heads)(m, i, end, h, c, COLS);
        for (; c < m->C; c += DL)
            for (int h = 0; h < m->H; h += HEADS)
                L(mla_value_heads)(m, i, end, h, c, 1);
    }
}

LANES_TARGET static void L(mla_finish)(const double *u, int C, td_dtype act, void *out)
{
    for (int c = 0; c < C; c += LANES) {
        int n = C - c < LANES ? C - c : LANES;
        float y[LANES];
        for (int l = 0; l < LANES; l++)
            y[l] = (float)u[c + l];
        L(store_act)(out, c, n, act, L(vload)(y));
    }
}

static const mla_steps L(mla_steps) = {L(mla_widen),   L(mla_fp8),    L(mla_scores),
                                       L(mla_softmax), L(mla_values), L(mla_finish)};
#undef HEADS
#undef KEYS
#undef COLS
#undef V
#undef D
#undef DL
