/* sample_lanes.h - passes over one row, per instruction set (each_isa.h). Every number is computed
 * on its own by the reference's formula; arrays have room up to the next multiple of 16. */
#define V L(v16)

/* l = x with NaN as -inf. */
LANES_TARGET static void L(sample_logits)(const float *x, int n, float *l)
{
    const V low = L(vset)(-INFINITY);
    int i = 0;
    for (; i + LANES <= n; i += LANES) /* vmax drops NaN in its first operand */
        L(vstore)(l + i, L(vmax)(L(vload)(x + i), low));
    if (i < n) {
        L(vstore)(l + i, L(vset)(-INFINITY));
        L(vstoren)(l + i, L(vmax)(L(vloadn)(x + i, n - i), low), n - i);
    }
}

/* The largest of l[0..n-1], no NaN among them, -inf behind them. */
LANES_TARGET static float L(sample_max)(const float *l, int n)
{
    V max = L(vset)(-INFINITY);
    for (int i = 0; i < n; i += LANES)
        max = L(vmax)(L(vload)(l + i), max);
    return L(vhmax)(max);
}

/* w = TD_SAMPLE_ONE * exp((l - m) / temperature), or TD_SAMPLE_ONE where l = m. */
LANES_TARGET static void L(sample_weights)(const float *l, int n, float m, float temperature,
                                           float *w)
{
    const V max = L(vset)(m), t = L(vset)(temperature), one = L(vset)(TD_SAMPLE_ONE);
    for (int i = 0; i < n; i += LANES) {
        V x = L(vload)(l + i);
        V e = L(vmul)(L(vexp)(L(vdiv)(L(vsub)(x, max), t)), one);
        L(vstore)(w + i, L(vselect_lt)(x, max, e, one));
    }
}

LANES_TARGET static void L(sample_keys)(const float *l, int n, int32_t *keys)
{
    for (int i = 0; i < n; i += LANES)
        L(kstore)(keys + i, L(vkey)(L(vload)(l + i)));
}

static const sample_steps L(sample_steps) = {L(sample_logits), L(sample_max), L(sample_weights),
                                             L(sample_keys)};
#undef V
