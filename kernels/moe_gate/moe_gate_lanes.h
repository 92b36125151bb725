/* moe_gate_lanes.h - s and s' of one row, per instruction set (each_isa.h). key: s' with NaN as
 * -inf. */
LANES_TARGET static void L(moe_gate_scores)(const td_moe_gate_args *a, int64_t t, float *s,
                                            float *key)
{
    const L(v16) one = L(vset)(1.0f), least = L(vset)(-INFINITY);
    for (int e = 0; e < a->E; e += LANES) {
        const int n = a->E - e < LANES ? a->E - e : LANES;
        L(v16) l = L(load_act)(a->logits, t * a->E + e, n, TD_F32);
        L(v16) v = L(vdiv)(one, L(vadd)(one, L(vexp)(L(vsub)(L(vzero)(), l))));
        L(vstore)(s + e, v);
        if (a->bias != NULL)
            v = L(vadd)(v, L(load_act)(a->bias, e, n, TD_F32));
        L(vstore)(key + e, L(vmax)(v, least));
    }
}
