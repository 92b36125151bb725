/* sum_partials_lanes.h - elements begin..end-1, per instruction set (each_isa.h). */
LANES_TARGET static void L(sum_partials)(const td_sum_partials_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i += LANES) {
        int n = end - i < LANES ? (int)(end - i) : LANES;
        L(v16) sum = L(load_act)(a->parts, i, n, TD_F32);
        for (int p = 1; p < a->P; p++)
            sum = L(vadd)(sum, L(load_act)(a->parts, p * a->part_stride + i, n, TD_F32));
        L(store_act)(a->y, i, n, a->act, sum);
    }
}
