/* dot.h - the product that gemm, head_gemm and moe_experts share: a block of rows of x times a tile
 * of rows of w, out[i][j] = sum over k of x[i][k] * w[j][k], in f32.
 *
 * The order of every sum is fixed by K alone. K is cut in chunks of TD_DOT_CHUNK. Within a chunk
 * lane l of 16 adds the products of k = l, l + 16, l + 32, ..; the 16 lanes are then added in one
 * fixed tree, and the chunk's sum is added to the sum of the chunks before it. So an element does
 * not depend on the block and tile it was computed in, and AVX2 and AVX-512 give the same bits.
 *
 * e4m3: x is multiplied by xs * ws on its way in (exact where the scales are powers of two), so
 * that the blocks of 128 need no sums of their own. Products of e4m3 or bf16 numbers are exact in
 * f32; with f32 numbers the x86 paths fuse multiply and add, the portable one does not. */
#ifndef TD_KERNELS_CPU_DOT_H
#define TD_KERNELS_CPU_DOT_H
#include "common/device/cpu.h"
#include "kernels/shapes.h"

#define TD_DOT_CHUNK 1024
#define TD_DOT_M 96  /* most rows of a block */
#define TD_DOT_N 128 /* most rows of w in a tile; a tile does not cross a multiple of 128 */

typedef struct {
    const void *x;       /* [.., K] dtype, row stride x_stride elements */
    const float *xs;     /* [.., ceil(K/128)], contiguous; e4m3 only */
    const int32_t *rows; /* [m] which rows of x and xs; NULL: 0, 1, .. m - 1 */
    const void *w;       /* [n, K] dtype, contiguous: the tile's first row */
    const float *ws;     /* [ceil(K/128)] the scales of the tile's 128 rows; e4m3 only */
    int64_t x_stride;
    int m, n, K;
    td_dtype dtype;
} td_dot_args;

/* Bytes of scratch for any block of up to m rows. */
size_t td_dot_scratch_bytes(int m, int K);
/* out: [m, n], row stride out_stride; overwritten. scratch: 64-byte aligned. */
void td_dot(td_isa isa, const td_dot_args *d, void *scratch, float *out, int64_t out_stride);
#endif
