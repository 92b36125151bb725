/* index_key_write_lanes.h - one key, per instruction set (each_isa.h). */
#include "kernels/cpu/hadamard_lanes.h"

LANES_TARGET static void L(index_key_write_fp8)(unsigned char *page, int page_rows, int row,
                                                const td_bf16 *k)
{
    float scale = L(hadamard_quant_row)(k, page + row * 128, 1);
    memcpy(page + page_rows * 128 + row * 4, &scale, 4);
}
