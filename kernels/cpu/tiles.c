#include "kernels/cpu/tiles.h"

#define ROUND_M 6        /* rows that the widest kernel takes at once */
#define PIECE_WORK 32768 /* multiplications; below that handing out costs more than it gives */
#define PIECES_PER_THREAD 4

td_tiles td_tiles_plan(td_stream *stream, int M, int N, int K, int64_t times)
{
    td_tiles t = {.m_block = M, .n_blocks = 1, .n_tile = TD_DOT_N};
    if (M > TD_DOT_M) {
        int even = td_ceil_div(M, td_ceil_div(M, TD_DOT_M));
        t.m_block = td_ceil_div(even, ROUND_M) * ROUND_M;
        t.n_blocks = td_ceil_div(M, t.m_block);
    }
    const int64_t wanted = (int64_t)td_cpu_threads(stream) * PIECES_PER_THREAD;
    while (t.n_tile > 16 && times * t.n_blocks * td_ceil_div(N, t.n_tile) < wanted)
        t.n_tile /= 2;
    t.n_tiles = td_ceil_div(N, t.n_tile);
    int64_t work = (int64_t)t.m_block * t.n_tile * (K > 0 ? K : 1);
    t.grain = PIECE_WORK / work > 1 ? PIECE_WORK / work : 1;
    t.dot_bytes = (td_dot_scratch_bytes(t.m_block, K) + 63) / 64 * 64;
    t.n_bytes = t.dot_bytes + (size_t)t.m_block * (size_t)t.n_tile * sizeof(float);
    return t;
}
