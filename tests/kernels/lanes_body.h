/* lanes_body.h - what test_lanes.c runs per instruction set (each_isa.h). */
#define V L(v16)

/* Each out: [16] or as said, from x [32]. */
LANES_TARGET static void L(run_lanes)(const float *x, lanes_out *o)
{
    V a = L(vload)(x), b = L(vload)(x + 16);
    L(vstore)(o->exp, L(vexp)(a));
    L(vstore)(o->max, L(vmax)(a, b));
    L(vstore)(o->arith, L(vdiv)(L(vsub)(L(vmul)(a, b), L(vadd)(a, b)), L(vabs)(b)));
    L(vstore)(o->select, L(vselect_lt)(a, b, b, L(vround)(a)));
    L(vstore)(o->bf16, L(vround_bf16)(a));
    L(vstore_bf16)(o->bf16_bits, a);
    L(vstore_e4m3)(o->e4m3, a);
    o->sum = L(vsum)(a);
    o->hmax = L(vhmax)(L(vmax)(a, L(vset)(-INFINITY)));
    V even, odd;
    L(vstore)(o->shuffles, L(vdup_even)(a));
    L(vstore)(o->shuffles + 16, L(vdup_odd)(a));
    L(vstore)(o->shuffles + 32, L(vswap1)(a));
    L(vstore)(o->shuffles + 48, L(vswap2)(a));
    L(vstore)(o->shuffles + 64, L(vswap4)(a));
    L(vstore)(o->shuffles + 80, L(vswap8)(a));
    L(vsplit)(a, b, &even, &odd);
    L(vstore)(o->shuffles + 96, even);
    L(vstore)(o->shuffles + 112, odd);
    L(k16) ka = L(vkey)(a), kb = L(vkey)(b);
    L(kstore)(o->keys, ka);
    o->gt = L(kgt)(ka, kb);
    o->eq = L(keq)(ka, L(kset)(o->keys[5]));
    for (int n = 1; n < 16; n++) {
        L(vstore)(o->part, L(vloadn)(x, n));
        L(vstoren)(o->part + 16 * n, b, n);
    }
    V t[16];
    for (int i = 0; i < 16; i++)
        t[i] = L(vadd)(a, L(vset)((float)i));
    L(vtranspose)(t);
    for (int i = 0; i < 16; i++)
        L(vstore)(o->transposed + 16 * i, t[i]);
}

LANES_TARGET static void L(run_codes)(const uint8_t *codes, const td_bf16 *bf16, float *out)
{
    for (int i = 0; i < 256; i += 16)
        L(vstore)(out + i, L(vload_e4m3)(codes + i));
    for (int i = 0; i < 256; i += 64) {
        int nan = L(nan_e4m3)(codes + i);
        TD_EQ(i == 64 || i == 192, nan);
        for (int j = i; j < i + 64 && !nan; j += 16)
            L(vstore)(out + j, L(vmul)(L(vload_e4m3_256th)(codes + j), L(vset)(256.0f)));
    }
    for (int i = 0; i < 65536; i += 16)
        L(vstore)(out + 256 + i, L(vload_bf16)(bf16 + i));
}

LANES_TARGET static float L(run_quant)(const float *x, int n, uint8_t *q, int ue8m0)
{
    return L(quant_group)(x, n, q, ue8m0);
}

LANES_TARGET static void L(run_exp)(const float *x, float *y)
{
    L(vstore)(y, L(vexp)(L(vload)(x)));
}

LANES_TARGET static void L(run_bytes)(const uint8_t *src, int n, uint8_t *dst)
{
    L(btranspose)(src, 24, n, dst);
}
#undef V
