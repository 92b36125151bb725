/* argmax_lanes.h - one row, per instruction set (each_isa.h): the largest sort key, then where it
 * first stands. */
#define V L(v16)

LANES_TARGET static int32_t L(argmax_row)(const float *x, int n)
{
    const int whole = n / LANES * LANES;
    V max[4];
    for (int j = 0; j < 4; j++)
        max[j] = L(vset)(-INFINITY);
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) /* vmax drops NaN in its first operand */
        for (int j = 0; j < 4; j++)
            max[j] = L(vmax)(L(vload)(x + i + j * LANES), max[j]);
    for (; i < whole; i += LANES)
        max[0] = L(vmax)(L(vload)(x + i), max[0]);
    float best = L(vhmax)(L(vmax)(L(vmax)(max[0], max[1]), L(vmax)(max[2], max[3])));
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    if (best == -INFINITY)
        return 0; /* all are -inf or NaN */
    for (i = 0; i < whole; i += LANES) {
        uint32_t found = L(keq)(L(vkey)(L(vload)(x + i)), L(vkey)(L(vset)(best)));
        if (found != 0)
            return i + __builtin_ctz(found);
    }
    while (x[i] != best)
        i++;
    return i;
}
#undef V
