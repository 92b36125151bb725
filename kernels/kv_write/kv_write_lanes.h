/* kv_write_lanes.h - one row of an fp8 cache, per instruction set (each_isa.h). */
#define V L(v16)

LANES_TARGET static void L(kv_write_fp8)(unsigned char *row, const td_bf16 *c, int C, int R)
{
    for (int g = 0; g < C / TD_QUANT_GROUP; g++) {
        float x[TD_QUANT_GROUP];
        for (int i = 0; i < TD_QUANT_GROUP; i += LANES)
            L(vstore)(x + i, L(vload_bf16)(c + g * TD_QUANT_GROUP + i));
        float scale = L(quant_group)(x, TD_QUANT_GROUP, row + g * TD_QUANT_GROUP, 1);
        memcpy(row + C + 4 * g, &scale, 4);
    }
    memcpy(row + C + C / TD_QUANT_GROUP * 4, c + C, 2 * (size_t)R);
}
#undef V
