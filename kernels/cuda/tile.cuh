/* tile.cuh - one tile of y = x w^T in f32, the product behind gemm, head_gemm and moe_experts, or
 * bf16, for moe_experts (the others': bf16_tile.cuh; e4m3: exact_tile.cuh): any M, N, K and stride.
 * K goes in blocks of 128 in ascending order: a block is summed by tensor cores (f32 inside) and
 * added to the sum. No split of K, and the same instruction and order for every tile shape: an
 * element's bits depend on its row and its column alone.
 *
 * bf16 runs on mma.sync, fed by cp.async where rows are 16-byte aligned; f32 (precise mode) runs on
 * plain fused multiply-adds. */
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

template <typename E> struct td_tile_row { /* bytes of a row in shared memory: free of conflicts */
    static const int bytes = (int)sizeof(E) * TD_TILE_K + 32;
};

template <typename E, int BM, int STAGES = TD_TILE_STAGES> static constexpr size_t td_tile_shared()
{
    return (size_t)STAGES * (BM + TD_TILE_N) * td_tile_row<E>::bytes + BM * sizeof(int32_t);
}

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

/* Block kb of the tile's rows into one stage. A thread has the same piece of every so many-th row.
 */
template <typename E, int BM, bool ALIGNED>
__device__ inline void td_tile_fetch(const td_tile_args &a, unsigned char *stage, int kb)
{
    constexpr int PER = 16 / (int)sizeof(E), PIECES = TD_TILE_K / PER;
    constexpr int STEP = TD_TILE_THREADS / PIECES; /* rows at a time */
    static_assert(BM % STEP == 0 && TD_TILE_N % STEP == 0, "rows are x's, or they are w's");
    const int piece = (int)threadIdx.x % PIECES, first = (int)threadIdx.x / PIECES;
    const int k = kb * TD_TILE_K + piece * PER, left = a.K - k;
    unsigned char *to = stage + first * td_tile_row<E>::bytes + piece * 16;
    const E *x = (const E *)a.x + k, *w = (const E *)a.w + k;
#pragma unroll
    for (int i = 0; i < BM; i += STEP) {
        const int32_t at = a.index[first + i];
        td_tile_piece<E, ALIGNED>(to + i * td_tile_row<E>::bytes,
                                  x + (at < 0 ? 0 : at * a.x_stride), a.w, at < 0 ? 0 : left);
    }
#pragma unroll
    for (int i = 0; i < TD_TILE_N; i += STEP) {
        const int n = first + i;
        td_tile_piece<E, ALIGNED>(to + (BM + i) * td_tile_row<E>::bytes,
                                  w + (n < a.n_cols ? (int64_t)n * a.K : 0), a.w,
                                  n < a.n_cols ? left : 0);
    }
}

/* Lane t of a quad takes elements 4t..4t+3 of each 16 (x and w alike, so the sum is the same): two
 * pairs for the two halves of the instruction's K. */
__device__ inline void td_tile_pairs(const unsigned char *p, const td_bf16 *, uint32_t *lo,
                                     uint32_t *hi)
{
    const uint2 v = *(const uint2 *)p;
    *lo = v.x;
    *hi = v.y;
}
__device__ inline void td_tile_mma(float *c, const uint32_t *a, const uint32_t *b, const td_bf16 *)
{
    td_mma_bf16(c, a, b[0], b[1]);
}
/* Where a thread's results stand in the tile: 4 warps, each MF x NF fragments of 16 x 8. */
template <int BM> struct td_tile_warps {
    static const int across = BM == 16 ? 4 : 2;       /* warps along N */
    static const int MF = BM == 16 ? 1 : BM / 2 / 16; /* BM 64: 2 x 2 warps of 32 x 32 */
    static const int NF = TD_TILE_N / across / 8;
    static __device__ int row(int mf) /* and 8 further down */
    {
        const int warp = threadIdx.x / 32;
        return warp / across * (MF * 16) + mf * 16 + threadIdx.x % 32 / 4;
    }
    static __device__ int col(int nf) /* and the next one */
    {
        const int warp = threadIdx.x / 32;
        return warp % across * (NF * 8) + nf * 8 + threadIdx.x % 4 * 2;
    }
    static __device__ int w_row(int nf)
    {
        const int warp = threadIdx.x / 32;
        return warp % across * (NF * 8) + nf * 8 + threadIdx.x % 32 / 4;
    }
};

/* blk += one stage's product. */
template <typename E, int BM>
__device__ inline void td_tile_block(const unsigned char *stage,
                                     float blk[][td_tile_warps<BM>::NF][4])
{
    typedef td_tile_warps<BM> W;
    const int stride = td_tile_row<E>::bytes, at = threadIdx.x % 4 * 4 * (int)sizeof(E);
    const E *kind = NULL;
#pragma unroll
    for (int k = 0; k < TD_TILE_K / 16; k++) {
        const unsigned char *base = stage + k * 16 * (int)sizeof(E) + at;
        uint32_t fa[W::MF][4], fb[W::NF][2];
#pragma unroll
        for (int m = 0; m < W::MF; m++) {
            td_tile_pairs(base + W::row(m) * stride, kind, &fa[m][0], &fa[m][2]);
            td_tile_pairs(base + (W::row(m) + 8) * stride, kind, &fa[m][1], &fa[m][3]);
        }
#pragma unroll
        for (int n = 0; n < W::NF; n++)
            td_tile_pairs(base + (BM + W::w_row(n)) * stride, kind, &fb[n][0], &fb[n][1]);
#pragma unroll
        for (int m = 0; m < W::MF; m++)
#pragma unroll
            for (int n = 0; n < W::NF; n++)
                td_tile_mma(blk[m][n], fa[m], fb[n], kind);
    }
}

/* acc += blk. */
template <int BM>
__device__ inline void td_tile_promote(const float blk[][td_tile_warps<BM>::NF][4],
                                       float acc[][td_tile_warps<BM>::NF][4])
{
    typedef td_tile_warps<BM> W;
#pragma unroll
    for (int m = 0; m < W::MF; m++)
#pragma unroll
        for (int n = 0; n < W::NF; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[m][n][i] += blk[m][n][i];
}

/* acc = the tile's products over blocks first .. end - 1 of K, which may be none. shared:
 * td_tile_shared() less the index; a __syncthreads() must come before it is used for anything else.
 */
template <typename E, int BM, bool ALIGNED, int STAGES>
__device__ inline void td_tile_sum(const td_tile_args &a, unsigned char *shared, int first, int end,
                                   float acc[][td_tile_warps<BM>::NF][4])
{
    typedef td_tile_warps<BM> W;
    const int stage_bytes = (BM + TD_TILE_N) * td_tile_row<E>::bytes;
    for (int s = 0; s < STAGES - 1; s++) {
        if (first + s < end)
            td_tile_fetch<E, BM, ALIGNED>(a, shared + s * stage_bytes, first + s);
        td_copy_commit();
    }
    for (int i = 0; first + i < end; i++) {
        float blk[W::MF][W::NF][4] = {};
        td_copy_wait<STAGES - 2>();
        __syncthreads(); /* block i is there, and everybody is done with the stage filled next */
        const int next = i + STAGES - 1;
        if (first + next < end)
            td_tile_fetch<E, BM, ALIGNED>(a, shared + next % STAGES * stage_bytes, first + next);
        td_copy_commit();
        td_tile_block<E, BM>(shared + i % STAGES * stage_bytes, blk);
        td_tile_promote<BM>(blk, acc);
    }
    td_copy_wait<0>();
}

/* A thread's elements to give(row of the tile, column of the tile, value). */
template <int BM, typename Give>
__device__ inline void td_tile_give(const float acc[][td_tile_warps<BM>::NF][4], Give give)
{
    typedef td_tile_warps<BM> W;
#pragma unroll
    for (int m = 0; m < W::MF; m++)
#pragma unroll
        for (int n = 0; n < W::NF; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                give(W::row(m) + i / 2 * 8, W::col(n) + i % 2, acc[m][n][i]);
}

/* The tile's elements, over all of K, to store(row of the tile, column of the tile, value); rows
 * without index and columns that do not exist come too: store() leaves them. shared:
 * td_tile_shared() less the index. */
template <typename E, int BM, bool ALIGNED, typename Store>
__device__ inline void td_tile_run(const td_tile_args &a, unsigned char *shared, Store store)
{
    typedef td_tile_warps<BM> W;
    float acc[W::MF][W::NF][4] = {};
    td_tile_sum<E, BM, ALIGNED, TD_TILE_STAGES>(a, shared, 0, (a.K + TD_TILE_K - 1) / TD_TILE_K,
                                                acc);
    td_tile_give<BM>(acc, store);
}

/* ---- f32: 16 x 64 elements, a thread has 2 x 4 of them ---- */

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
