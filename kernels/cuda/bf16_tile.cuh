/* bf16_tile.cuh - one tile of y = x w^T in bf16 on wgmma, for few tokens or few columns (many of
 * both: bf16_wide.cuh, the same sums). 64 rows of w stand on the instruction's 64-row side, tokens
 * (rows of x) on its N side, which may be as narrow as 8. K goes in blocks of 128 in ascending
 * order: eight products of 16, in ascending order, into a fresh D, then sum = sum + D. What K does
 * not fill of the last block is zeros. Neither the number of tokens nor the tile's size enters an
 * element's arithmetic: its bits depend on its row and its column alone, provided that the tensor
 * cores sum a product alike for every N of the instruction.
 *
 * Both operands come by cp.async to where wgmma reads them, several blocks of K ahead. */
#ifndef TD_KERNELS_CUDA_BF16_TILE_CUH
#define TD_KERNELS_CUDA_BF16_TILE_CUH
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/wgmma_bf16.cuh"
#include "kernels/cuda/wgmma_store.cuh"

#define TD_BF16_ROWS 64                /* of w in a tile */
#define TD_BF16_K (TD_SWIZZLE_ROW / 2) /* elements of a row of an operand: half a block of K */
#define TD_BF16_STEP 16                /* elements of K of a product */
#define TD_BF16_PIECE (16 / (int)sizeof(td_bf16)) /* elements that a copy takes */

/* What a tile multiplies. Tokens and rows of w beyond those that there are give zeros. */
struct td_bf16_place {
    const td_bf16 *x, *w; /* the first token, the first row of w */
    int n_tokens, n_rows; /* how many there are from there on */
};

struct td_bf16_args {
    td_bf16_place at;
    int64_t x_stride;
    int K;                /* rows of w are contiguous */
    const int32_t *index; /* in shared memory: which rows of at.x the tokens are, -1: none, n_tokens
                             is not looked at; NULL: one after the other */
};

/* Dynamic shared memory: STAGES of a block of K: operands of w (halves of K), then of x. */
template <int BT> struct td_bf16_tile {
    static constexpr int THREADS = 128;
    static constexpr int W_BYTES = TD_BF16_ROWS * TD_SWIZZLE_ROW, X_BYTES = BT * TD_SWIZZLE_ROW;
    static constexpr int STAGE_BYTES = 2 * (W_BYTES + X_BYTES);
    static_assert(X_BYTES % TD_SWIZZLE_ATOM == 0, "operands start at atoms");
    static constexpr size_t bytes(int n_stages)
    {
        return TD_SWIZZLE_ATOM + (size_t)n_stages * STAGE_BYTES;
    }
};

/* The first stage. */
__device__ inline unsigned char *td_bf16_stages(unsigned char *dynamic)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(dynamic);
    return dynamic + ((0u - at) & (TD_SWIZZLE_ATOM - 1));
}

/* Block kb of the tile's rows to a stage. A thread has the same piece of every eighth row. */
template <int BT, bool ALIGNED>
__device__ inline void td_bf16_fetch(const td_bf16_args &a, unsigned char *stage, int kb)
{
    typedef td_bf16_tile<BT> T;
    constexpr int PIECES = TD_TILE_K / TD_BF16_PIECE, STEP = T::THREADS / PIECES;
    static_assert(STEP == 8, "a thread's pieces stand at the same place of every atom");
    const int piece = (int)threadIdx.x % PIECES, first = (int)threadIdx.x / PIECES;
    const int k = kb * TD_TILE_K + piece * TD_BF16_PIECE, half = piece / 8;
    const int place = td_swizzle(first, piece % 8);
    unsigned char *w = stage + half * T::W_BYTES + place;
    unsigned char *x = stage + 2 * T::W_BYTES + half * T::X_BYTES + place;
#pragma unroll
    for (int i = 0; i < TD_BF16_ROWS; i += STEP) {
        const bool there = first + i < a.at.n_rows;
        td_tile_piece<td_bf16, ALIGNED>(w + i * TD_SWIZZLE_ROW,
                                        a.at.w + (there ? (int64_t)(first + i) * a.K : 0) + k,
                                        a.at.w, there ? a.K - k : 0);
    }
#pragma unroll
    for (int i = 0; i < BT; i += STEP) {
        const int at = a.index != NULL ? a.index[first + i] : first + i;
        const bool there = a.index != NULL ? at >= 0 : at < a.at.n_tokens;
        td_tile_piece<td_bf16, ALIGNED>(x + i * TD_SWIZZLE_ROW,
                                        a.at.x + (there ? at * a.x_stride : 0) + k, a.at.w,
                                        there ? a.K - k : 0);
    }
}

/* d = a stage's product. */
template <int BT> __device__ inline void td_bf16_start(const unsigned char *stage, float d[BT / 2])
{
    typedef td_bf16_tile<BT> T;
    const uint64_t w = td_wgmma_desc(stage), x = td_wgmma_desc(stage + 2 * T::W_BYTES);
    td_wgmma_hold<BT / 2>(d);
    td_wgmma_begin();
#pragma unroll
    for (int k = 0; k < TD_TILE_K / TD_BF16_STEP; k++)
        td_wgmma_bf16_shared<BT>(d, w + k / 4 * (T::W_BYTES >> 4) + k % 4 * TD_SWIZZLE_K32,
                                 x + k / 4 * (T::X_BYTES >> 4) + k % 4 * TD_SWIZZLE_K32, k > 0);
    td_wgmma_commit();
}

/* acc = the tile's products over blocks first .. end - 1 of K, which may be none; acc[BT / 2] as D
 * of wgmma.cuh, tokens for columns. td_wgmma_leave() may take the stages' place. */
template <int BT, bool ALIGNED, int STAGES>
__device__ inline void td_bf16_sum(const td_bf16_args &a, unsigned char *stages, int first, int end,
                                   float acc[BT / 2])
{
    typedef td_bf16_tile<BT> T;
    float d[BT / 2];
#pragma unroll
    for (int i = 0; i < BT / 2; i++)
        acc[i] = d[i] = 0.0f;
    for (int s = 0; s < STAGES - 1; s++) {
        if (first + s < end)
            td_bf16_fetch<BT, ALIGNED>(a, stages + s * T::STAGE_BYTES, first + s);
        td_copy_commit();
    }
    for (int i = 0; first + i < end; i++) {
        const int next = i + STAGES - 1;
        td_copy_wait<STAGES - 2>();
        td_wgmma_publish();
        __syncthreads(); /* block i is there, and everybody is done with the stage filled next */
        td_bf16_start<BT>(stages + i % STAGES * T::STAGE_BYTES, d);
        if (first + next < end)
            td_bf16_fetch<BT, ALIGNED>(a, stages + next % STAGES * T::STAGE_BYTES, first + next);
        td_copy_commit();
        td_wgmma_wait<0>();
        td_wgmma_hold<BT / 2>(d);
#pragma unroll
        for (int j = 0; j < BT / 2; j++)
            acc[j] += d[j];
    }
    td_copy_wait<0>();
}

/* The tile's elements, over all of K, to store(token, row of w, value); tokens and rows that are
 * not there come too: store() leaves them. */
template <int BT, bool ALIGNED, typename Store>
__device__ inline void td_bf16_run(const td_bf16_args &a, unsigned char *stages, Store store)
{
    float acc[BT / 2];
    td_bf16_sum<BT, ALIGNED, TD_TILE_STAGES>(a, stages, 0, (a.K + TD_TILE_K - 1) / TD_TILE_K, acc);
    td_wgmma_store<TD_BF16_ROWS, BT, td_bf16_tile<BT>::THREADS>((float *)stages, acc, store);
}
#endif
