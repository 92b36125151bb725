/* silu_lanes.h - silu(g) * u of sixteen numbers. Included by bodies (each_isa.h), no include
 * guard. */
LANES_TARGET TD_BODY L(v16) L(vsilu_mul)(L(v16) g, L(v16) u)
{
    L(v16) e = L(vexp)(L(vsub)(L(vzero)(), g));
    return L(vmul)(L(vdiv)(g, L(vadd)(L(vset)(1.0f), e)), u);
}
