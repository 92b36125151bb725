/* tiles.h - how a product is cut into pieces of work. Neither bits nor memory outside of scratch
 * depend on it. */
#ifndef TD_KERNELS_CPU_TILES_H
#define TD_KERNELS_CPU_TILES_H
#include "kernels/cpu/dot.h"

typedef struct {
    int m_block, n_tile;       /* at most TD_DOT_M; a divisor of 128 */
    int n_blocks, n_tiles;     /* how many of each */
    int64_t grain;             /* (block, tile) pairs per piece of td_cpu_for */
    size_t dot_bytes, n_bytes; /* scratch of td_dot; of td_dot and one result behind it */
} td_tiles;

/* M rows and N columns, `times` such products in one td_cpu_for. */
td_tiles td_tiles_plan(td_stream *stream, int M, int N, int K, int64_t times);
#endif
