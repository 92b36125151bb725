/* tile.cuh - one tile of y = x w^T in f32 (precise mode), the product behind gemm, head_gemm and
 * moe_experts: any M, N, K and stride; and what the tiles of bf16 (bf16_tile.cuh) and e4m3
 * (exact_tile.cuh) have in common with it. K goes in blocks of 128 in ascending order: a block is
 * summed by plain fused multiply-adds and added to the sum. No split of K: an element's bits depend
 * on its row and its column alone. */
#ifndef TD_KERNELS_CUDA_TILE_CUH
#define TD_KERNELS_CUDA_TILE_CUH
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"

#define TD_TILE_THREADS 128
#define TD_TILE_N 64
#define TD_TILE_STAGES 3 /* blocks of K in flight; more cost occupancy */
#define TD_TILE_K TD_QUANT_GROUP

/* Rows of x: index[i] is the row that tile row i takes, -1: none (zeros). */
struct td_tile_args {
    const void *x;
    const float *xs;      /* [.., ceil(K/128)], e4m3 only */
    const int32_t *index; /* [BM] in shared memory */
    int64_t x_stride;
    const void *w;   /* the tile's first row; contiguous rows of K */
    const float *ws; /* the scales of the tile's 128-row block, [ceil(K/128)], e4m3 only */
    int n_cols;      /* rows of w that there are from there on; beyond are zeros */
    int K;
};

/* Sixteen bytes of a row, `left` elements of which exist (0 or less: none). */
template <typename E, bool ALIGNED>
__device__ inline void td_tile_piece(unsigned char *shared, const E *from, const void *anywhere,
                                     int left)
{
    const int per = 16 / (int)sizeof(E), n = left < 0 ? 0 : left < per ? left : per;
    if constexpr (ALIGNED) {
        td_copy_async(shared, n > 0 ? (const void *)from : anywhere, n * (int)sizeof(E));
    } else {
        (void)anywhere;
        for (int i = 0; i < per; i++)
            ((E *)shared)[i] = i < n ? from[i] : (E)0;
    }
}

/* ---- 16 x 64 elements, a thread has 2 x 4 of them ---- */

#define TD_TILE_F32_M 16

template <typename Store> __device__ inline void td_tile_run_f32(const td_tile_args &a, Store store)
{
    __shared__ float xt[TD_TILE_F32_M][33], wt[TD_TILE_N][33];
    const int tm = threadIdx.x / 16 * 2, tn = threadIdx.x % 16;
    float acc[2][4] = {};
    for (int kb = 0; kb < a.K; kb += TD_TILE_K) {
        float blk[2][4] = {};
        for (int k0 = kb; k0 < kb + TD_TILE_K && k0 < a.K; k0 += 32) {
            __syncthreads();
            for (int i = threadIdx.x; i < (TD_TILE_F32_M + TD_TILE_N) * 32; i += TD_TILE_THREADS) {
                const int row = i / 32, k = k0 + i % 32;
                float v = 0.0f;
                if (row < TD_TILE_F32_M) {
                    const int32_t at = a.index[row];
                    if (at >= 0 && k < a.K)
                        v = ((const float *)a.x)[at * a.x_stride + k];
                    xt[row][i % 32] = v;
                } else {
                    const int n = row - TD_TILE_F32_M;
                    if (n < a.n_cols && k < a.K)
                        v = ((const float *)a.w)[(int64_t)n * a.K + k];
                    wt[n][i % 32] = v;
                }
            }
            __syncthreads();
            for (int k = 0; k < 32; k++)
                for (int m = 0; m < 2; m++)
                    for (int n = 0; n < 4; n++)
                        blk[m][n] = fmaf(xt[tm + m][k], wt[tn + 16 * n][k], blk[m][n]);
        }
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 4; n++)
                acc[m][n] += blk[m][n];
    }
    for (int m = 0; m < 2; m++)
        for (int n = 0; n < 4; n++)
            store(tm + m, tn + 16 * n, acc[m][n]);
}
#endif
