/* hadamard_quant_lanes.h - rows begin..end-1, per instruction set (each_isa.h). */
#include "kernels/cpu/hadamard_lanes.h"

LANES_TARGET static void L(hadamard_quant_rows)(const td_hadamard_quant_args *a, int64_t begin,
                                                int64_t end)
{
    for (int64_t t = begin; t < end; t++)
        a->qs[t] = L(hadamard_quant_row)(a->x + t * 128, a->q + t * 128, a->ue8m0);
}
