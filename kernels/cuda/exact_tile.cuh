/* exact_tile.cuh - one tile of y = x w^T with e4m3 and block scales, on wgmma with f16 operands:
 * f16 holds every e4m3 exactly and the tensor cores sum f16 products in f32, where their e4m3 form
 * keeps some 13 bits below the largest product. Rows of w stand on the instruction's 64-row side,
 * tokens (rows of x) on its N side, which may be as narrow as 8. K goes in blocks of 128 in
 * ascending order: eight products of 16 into a fresh D, then sum = fma(D, xs * ws, sum). No split
 * of K, and neither R (rows of w to a block) nor BT (tokens) enters an element's arithmetic: its
 * bits depend on its row and its column alone. For few tokens; wide_tile.cuh does the same sums for
 * many.
 *
 * Both operands come as e4m3 by cp.async. A thread reads its part of w and widens it in registers
 * (wgmma takes A from there); the block of threads widens x once into shared memory. A sum may take
 * K in any order that w and x share: with lane = 4g + q, step 4h + i of a block takes, for its
 * columns 2q, 2q + 1, 2q + 8 and 2q + 9, elements 4i .. 4i + 3 of the sixteen at (4h + q) * 16, so
 * that a lane loads w 16 bytes at a time.
 *
 * While the tensor cores work on block kb, the sums of the one before are taken, block kb + 1 is
 * widened and copies for later ones run. */
#ifndef TD_KERNELS_CUDA_EXACT_TILE_CUH
#define TD_KERNELS_CUDA_EXACT_TILE_CUH
#include "kernels/cuda/swizzle.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wgmma_store.cuh"

#define TD_EXACT_WIDE 3 /* widened blocks of x: worked on, perhaps still read, being written */

template <int R, int BT> struct td_exact_tile {
    static_assert(R == 16 || R == 32 || R == 64, "rows of w to a block");
    static constexpr int THREADS = 128;
    static constexpr int STAGE_BYTES = (R + BT) * TD_TILE_K;
    static constexpr int WIDE_BYTES = BT * TD_TILE_K * 2;
    static constexpr int SCALES = BT + 4; /* of a block: of the tokens, then of w; floats */
    /* Four blocks of threads to an SM, or two. */
    static constexpr int BUDGET = (BT > 16 || R > 32 ? 104 : 50) << 10;
    static constexpr int FIT =
        (BUDGET - TD_EXACT_WIDE * WIDE_BYTES) / (STAGE_BYTES + SCALES * (int)sizeof(float));
    static constexpr int STAGES = FIT < 12 ? FIT : 12;
    /* A stage is free for copies when it was widened, its scales when it was summed. */
    static constexpr int RING = STAGES + 2;
    static constexpr size_t BYTES = TD_SWIZZLE_ATOM + /* for alignment */
                                    (size_t)TD_EXACT_WIDE * WIDE_BYTES +
                                    (size_t)STAGES * STAGE_BYTES +
                                    (RING * SCALES + BT) * sizeof(float);
    static_assert(STAGES >= 3, "one stage widened, one there, one on its way");
    static_assert(td_wgmma_results<R, BT>::BYTES <=
                      TD_EXACT_WIDE * WIDE_BYTES + STAGES * STAGE_BYTES,
                  "results take the stages' place");
};

/* The block's shared memory: dynamic, td_exact_tile::BYTES. */
template <int R, int BT> struct td_exact_shared {
    typedef td_exact_tile<R, BT> T;
    unsigned char *wide;   /* [TD_EXACT_WIDE] x as operands of wgmma */
    unsigned char *stages; /* [STAGES] rows of w, then of x, of 128 bytes */
    float *scales;         /* [RING] */
    int32_t *index;        /* [BT] rows of x; -1: none */
    __device__ unsigned char *stage_of(int kb) const
    {
        return stages + kb % T::STAGES * T::STAGE_BYTES;
    }
    __device__ unsigned char *wide_of(int kb) const
    {
        return wide + kb % TD_EXACT_WIDE * T::WIDE_BYTES;
    }
    __device__ explicit td_exact_shared(unsigned char *dynamic)
    {
        const uint32_t at = (uint32_t)__cvta_generic_to_shared(dynamic);
        wide = dynamic + ((0u - at) & (TD_SWIZZLE_ATOM - 1));
        stages = wide + TD_EXACT_WIDE * T::WIDE_BYTES;
        scales = (float *)(stages + T::STAGES * T::STAGE_BYTES);
        index = (int32_t *)(scales + T::RING * T::SCALES);
    }
};

/* Where piece (0..7) of a row of w stands in a stage: rows 2n and 2n + 1 of a group of eight lanes
 * differ in halves, so that four pieces of each take all banks. */
__device__ inline int td_exact_w_at(int row, int piece)
{
    return row * TD_TILE_K + (piece ^ (row & 1) * 4) * 16;
}

/* Block kb of the tile's rows to a stage: rows of w, then of x (index: which, -1: none). Pieces
 * that are not there become zeros. */
template <int R, int BT, bool ALIGNED>
__device__ inline void td_exact_fetch_rows(const td_tile_args &a, const int32_t *index,
                                           unsigned char *stage, int kb)
{
    typedef td_exact_tile<R, BT> T;
    const int piece = threadIdx.x % 8, first = threadIdx.x / 8, k = kb * TD_TILE_K + piece * 16;
    const uint8_t *w = (const uint8_t *)a.w, *x = (const uint8_t *)a.x;
#pragma unroll
    for (int i = 0; i < R; i += T::THREADS / 8) {
        const int row = first + i;
        if (R % (T::THREADS / 8) != 0 && row >= R)
            break;
        const bool there = row < a.n_cols;
        td_tile_piece<uint8_t, ALIGNED>(stage + td_exact_w_at(row, piece),
                                        w + (there ? (int64_t)row * a.K : 0) + k, w,
                                        there ? a.K - k : 0);
    }
#pragma unroll
    for (int i = 0; i < BT; i += T::THREADS / 8) {
        const int row = first + i;
        if (BT % (T::THREADS / 8) != 0 && row >= BT)
            break;
        const int32_t from = index[row];
        td_tile_piece<uint8_t, ALIGNED>(stage + R * TD_TILE_K + td_swizzle(row, piece),
                                        x + (from < 0 ? 0 : from * a.x_stride) + k, w,
                                        from < 0 ? 0 : a.K - k);
    }
}

/* Block kb of the tile's rows and scales. */
template <int R, int BT, bool ALIGNED>
__device__ inline void td_exact_fetch(const td_tile_args &a, const td_exact_shared<R, BT> &sh,
                                      int kb, int n_blocks)
{
    typedef td_exact_tile<R, BT> T;
    float *scales = sh.scales + kb % T::RING * T::SCALES;
    if (kb < n_blocks) {
        td_exact_fetch_rows<R, BT, ALIGNED>(a, sh.index, sh.stage_of(kb), kb);
        for (int r = threadIdx.x; r <= BT; r += T::THREADS) {
            const int32_t row = r < BT ? sh.index[r] : 0;
            const float *from = r < BT ? a.xs + (int64_t)row * n_blocks : a.ws;
            td_copy_async4(scales + r, row >= 0 ? from + kb : a.ws, row >= 0 ? 4 : 0);
        }
    }
    td_copy_commit();
}

/* This lane's part of a stage's w, as f16. Warps without rows leave what there is. */
template <int R>
__device__ inline void td_exact_widen_w(const unsigned char *stage, uint32_t a[TD_TILE_K / 16][4])
{
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    if (R < 64 && threadIdx.x / 32 * 16 >= R)
        return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint4 top = *(const uint4 *)(stage + td_exact_w_at(row, 4 * h + q));
        const uint4 low = *(const uint4 *)(stage + td_exact_w_at(row + 8, 4 * h + q));
        const uint32_t codes[2][4] = {{top.x, top.y, top.z, top.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            td_e4m3x4_to_f16(codes[0][i], &a[4 * h + i][0], &a[4 * h + i][2]);
            td_e4m3x4_to_f16(codes[1][i], &a[4 * h + i][1], &a[4 * h + i][3]);
        }
    }
}

/* A stage's x as f16: two operands of 64 elements of K, one behind the other. The last threads
 * begin: with R below 64 they have no rows of w. */
template <int R, int BT>
__device__ inline void td_exact_widen_x(const unsigned char *stage, unsigned char *to)
{
    typedef td_exact_tile<R, BT> T;
    const unsigned char *from = stage + R * TD_TILE_K;
#pragma unroll
    for (int first = 0; first < 8 * BT; first += T::THREADS) {
        const int u = first + T::THREADS - 1 - (int)threadIdx.x;
        const int i = u % 4, row = u / 4 % BT, h = u / 4 / BT;
        uint32_t lo[4], hi[4];
        if (u >= 8 * BT)
            continue;
#pragma unroll
        for (int q = 0; q < 4; q++)
            td_e4m3x4_to_f16(*(const uint32_t *)(from + td_swizzle(row, 4 * h + q) + 4 * i), &lo[q],
                             &hi[q]);
        unsigned char *half = to + h * BT * TD_SWIZZLE_ROW;
        *(uint4 *)(half + td_swizzle(row, 2 * i)) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
        *(uint4 *)(half + td_swizzle(row, 2 * i + 1)) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    }
}

/* Starts the products of a block of K; wide: its x. */
template <int R, int BT>
__device__ inline void td_exact_start(const unsigned char *wide, uint32_t a[TD_TILE_K / 16][4],
                                      float blk[BT / 2])
{
    const uint64_t x = td_wgmma_desc(wide);
    td_wgmma_hold<BT / 2>(blk);
    td_wgmma_hold<TD_TILE_K / 4>(&a[0][0]);
    td_wgmma_begin();
#pragma unroll
    for (int k = 0; k < TD_TILE_K / 16; k++)
        td_wgmma_f16<BT>(blk, a[k], x + k / 4 * (BT * TD_SWIZZLE_ROW >> 4) + k % 4 * TD_SWIZZLE_K32,
                         k > 0);
    td_wgmma_commit();
}

/* acc += what block kb gave; not if there is no such block. */
template <int R, int BT>
__device__ inline void td_exact_sum(const td_exact_shared<R, BT> &sh, int kb, int n_blocks,
                                    float blk[BT / 2], float acc[BT / 2])
{
    typedef td_exact_tile<R, BT> T;
    const float *scales = sh.scales + kb % T::RING * T::SCALES, ws = scales[BT];
    const float *xs = scales + threadIdx.x % 4 * 2;
    td_wgmma_hold<BT / 2>(blk);
    if (kb >= n_blocks)
        return;
#pragma unroll
    for (int j = 0; j < BT / 8; j++) {
        const float2 s = *(const float2 *)(xs + 8 * j);
        const float s0 = s.x * ws, s1 = s.y * ws;
        acc[4 * j] = fmaf(blk[4 * j], s0, acc[4 * j]);
        acc[4 * j + 1] = fmaf(blk[4 * j + 1], s1, acc[4 * j + 1]);
        acc[4 * j + 2] = fmaf(blk[4 * j + 2], s0, acc[4 * j + 2]);
        acc[4 * j + 3] = fmaf(blk[4 * j + 3], s1, acc[4 * j + 3]);
    }
}

/* What a thread holds: w of a block and of the next, D of this block and the one before, the sums.
 */
template <int BT> struct td_exact_held {
    uint32_t a[2][TD_TILE_K / 16][4];
    float d[2][BT / 2], acc[BT / 2];
};

/* Block kb's products, with w in h.a[ODD]; w of the next block to the other. */
template <int R, int BT, bool ALIGNED, int ODD>
__device__ inline void td_exact_block(const td_tile_args &args, const td_exact_shared<R, BT> &sh,
                                      int kb, int n_blocks, td_exact_held<BT> &h)
{
    typedef td_exact_tile<R, BT> T;
    td_exact_start<R, BT>(sh.wide_of(kb), h.a[ODD], h.d[ODD]);
    if (kb > 0) {
        td_wgmma_wait<1>();
        td_exact_sum<R, BT>(sh, kb - 1, n_blocks, h.d[1 - ODD], h.acc);
    }
    td_exact_widen_x<R, BT>(sh.stage_of(kb + 1), sh.wide_of(kb + 1));
    td_exact_widen_w<R>(sh.stage_of(kb + 1), h.a[1 - ODD]);
    td_exact_fetch<R, BT, ALIGNED>(args, sh, kb + T::STAGES, n_blocks);
    td_copy_wait<T::STAGES - 2>();
    td_wgmma_publish();
    __syncthreads(); /* block kb + 1 is widened, kb + 2 is there; nobody works on kb - 1 any more */
}

/* The tile's elements to store(row of x in the tile, row of w in the tile, value); tokens without
 * index and rows of w that do not exist come too: store() leaves them. sh.index is filled, and
 * visible to the block. K > 0. */
template <int R, int BT, bool ALIGNED, typename Store>
__device__ inline void td_exact_run(const td_tile_args &args, const td_exact_shared<R, BT> &sh,
                                    Store store)
{
    typedef td_exact_tile<R, BT> T;
    const int n_blocks = (args.K + TD_TILE_K - 1) / TD_TILE_K;
    td_exact_held<BT> h = {};
    for (int s = 0; s < T::STAGES; s++)
        td_exact_fetch<R, BT, ALIGNED>(args, sh, s, n_blocks);
    td_copy_wait<T::STAGES - 2>();
    __syncthreads();
    td_exact_widen_w<R>(sh.stage_of(0), h.a[0]);
    td_exact_widen_x<R, BT>(sh.stage_of(0), sh.wide_of(0));
    td_wgmma_publish();
    __syncthreads();
    td_exact_block<R, BT, ALIGNED, 0>(args, sh, 0, n_blocks, h);
    int kb = 1;
    for (; kb < n_blocks; kb += 2) {
        td_exact_block<R, BT, ALIGNED, 1>(args, sh, kb, n_blocks, h);
        td_exact_block<R, BT, ALIGNED, 0>(args, sh, kb + 1, n_blocks, h);
        td_wgmma_wait<0>(); /* the compiler gives up on products that run into the next round */
    }
    td_wgmma_wait<0>();
    td_copy_wait<0>();
    td_exact_sum<R, BT>(sh, kb - 1, n_blocks, h.d[0], h.acc);
    td_wgmma_store<R, BT, T::THREADS>((float *)sh.wide, h.acc, store);
}

/* For the choice of a tile, which no bit depends on: a block's time goes with the rows that it
 * fetches and something for each block of K; blocks go in rounds of one to an SM of an H100. */
static inline int64_t td_exact_cost(int64_t n_blocks, int n_rows)
{
    const int64_t sms = TD_CUDA_SMS, each = 24;
    return (n_blocks + sms - 1) / sms * (n_rows + each);
}
#endif
