/* hadamard_lanes.h - one row of hadamard_quant: 128 bf16 to 128 e4m3 and a scale. Included by
 * bodies (each_isa.h), no include guard. */
#define V L(v16)

/* (a, b) -> (a + b, a - b) at a stride of 1, 2, 4, 8 within the lanes: lane l gets its partner plus
 * itself times `sign`, +1 where l is the lower of the pair, else -1. */
LANES_TARGET TD_BODY void L(hadamard_in_lanes)(V *v)
{
    float sign[4][LANES];
    for (int s = 0; s < 4; s++)
        for (int l = 0; l < LANES; l++)
            sign[s][l] = l & (1 << s) ? -1.0f : 1.0f;
    V s1 = L(vload)(sign[0]), s2 = L(vload)(sign[1]), s4 = L(vload)(sign[2]),
      s8 = L(vload)(sign[3]);
    for (int i = 0; i < 8; i++) {
        V x = v[i];
        x = L(vadd)(L(vswap1)(x), L(vmul)(x, s1));
        x = L(vadd)(L(vswap2)(x), L(vmul)(x, s2));
        x = L(vadd)(L(vswap4)(x), L(vmul)(x, s4));
        v[i] = L(vadd)(L(vswap8)(x), L(vmul)(x, s8));
    }
}

LANES_TARGET TD_BODY float L(hadamard_quant_row)(const td_bf16 *x, uint8_t *q, int ue8m0)
{
    V v[8];
    for (int i = 0; i < 8; i++)
        v[i] = L(vload_bf16)(x + LANES * i);
    L(hadamard_in_lanes)(v);
    for (int stride = 1; stride < 8; stride *= 2)
        for (int i = 0; i < 8; i++)
            if ((i & stride) == 0) {
                V a = v[i], b = v[i + stride];
                v[i] = L(vadd)(a, b);
                v[i + stride] = L(vsub)(a, b);
            }
    float h[128];
    for (int i = 0; i < 8; i++)
        L(vstore)(h + LANES * i, L(vround_bf16)(L(vmul)(v[i], L(vset)(0.08838834764831845f))));
    return L(quant_group)(h, 128, q, ue8m0);
}
#undef V
