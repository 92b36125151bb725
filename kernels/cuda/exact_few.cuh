/* exact_few.cuh - a tile of exact_tile.cuh, 64 rows of w and few tokens, with K's blocks spread
 * over the blocks of a cluster. The products of a block of K start from a fresh D and depend on
 * nothing else; only the sums have an order. So each block of threads leaves the D of its share of
 * K in its shared memory, then the cluster takes the sums in ascending order from there: the bits
 * of td_exact_run(), without its serial walk. */
#ifndef TD_KERNELS_CUDA_EXACT_FEW_CUH
#define TD_KERNELS_CUDA_EXACT_FEW_CUH
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exact_tile.cuh"

template <int BT> struct td_exact_few {
    static constexpr int R = 64;
    typedef td_exact_tile<R, BT> T;
    static constexpr int PITCH = R + 4;       /* floats to a token: no bank conflicts */
    static constexpr int D_ROOM = BT * PITCH; /* of a block of K */
    static_assert(T::HALVES == 1 && T::THREADS == 128, "one D, one warpgroup");

    /* Dynamic shared memory: the stages of the tile, every D of the share, scales of all of K. */
    static size_t bytes(int n_blocks, int n_ranks)
    {
        const int n_each = (n_blocks + n_ranks - 1) / n_ranks;
        return T::BYTES + (size_t)(n_each * D_ROOM + n_blocks * BT) * sizeof(float);
    }
};

/* Products of blocks first .. end - 1 of K; their D, one behind the other, to d. */
template <int BT>
__device__ inline void td_exact_few_products(const td_tile_args &args,
                                             const td_exact_shared<64, BT> &sh, int first, int end,
                                             int n_blocks, float *d)
{
    typedef td_exact_few<BT> F;
    typedef typename F::T T;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    for (int kb = first; kb < first + T::STAGES; kb++)
        td_exact_fetch<F::R, BT, true>(args, sh, kb, kb < end ? n_blocks : 0);
    for (int kb = first; kb < end; kb++, d += F::D_ROOM) {
        uint32_t a[TD_TILE_K / 16][4];
        float blk[BT / 2];
        td_copy_wait<T::STAGES - 1>();
        __syncthreads(); /* block kb is there */
        td_exact_widen_w<F::R, BT>(sh, kb, a);
        td_exact_widen_x<F::R, BT>(sh, kb);
        td_wgmma_publish();
        __syncthreads(); /* and widened: its stage is free */
        td_exact_start<F::R, BT>(sh, kb, 0, a, blk);
        td_exact_fetch<F::R, BT, true>(args, sh, kb + T::STAGES,
                                       kb + T::STAGES < end ? n_blocks : 0);
        td_wgmma_wait<0>();
        td_wgmma_hold<BT / 2>(blk);
#pragma unroll
        for (int i = 0; i < BT / 2; i++)
            d[(i / 4 * 8 + col + i % 2) * F::PITCH + row + i % 4 / 2 * 8] = blk[i];
    }
    td_copy_wait<0>();
}

/* The tile's elements of the first n_tokens tokens to store(token, row of w, value), by the blocks
 * of a cluster of n_ranks. Rows of w that do not exist come too: store() leaves them. All rows are
 * 16-byte aligned. shared: td_exact_few::bytes(); sh.index is filled, and visible to the block. */
template <int BT, typename Store>
__device__ inline void td_exact_few_run(const td_tile_args &args, unsigned char *shared,
                                        const td_exact_shared<64, BT> &sh, int n_tokens,
                                        int n_ranks, Store store)
{
    typedef td_exact_few<BT> F;
    const int n_blocks = (args.K + TD_TILE_K - 1) / TD_TILE_K, rank = td_cluster_rank();
    const int n_each = (n_blocks + n_ranks - 1) / n_ranks, first = rank * n_each;
    const int end = first + n_each < n_blocks ? first + n_each : n_blocks;
    float *d = (float *)(shared + F::T::BYTES), *scales = d + n_each * F::D_ROOM;
    for (int i = threadIdx.x; i < n_tokens * n_blocks; i += F::T::THREADS)
        scales[i] = args.xs[(int64_t)sh.index[i / n_blocks] * n_blocks + i % n_blocks] *
                    args.ws[i % n_blocks];
    td_exact_few_products<BT>(args, sh, first, end, n_blocks, d);
    td_cluster_sync();
    const int n_mine = (n_tokens * F::R + n_ranks - 1) / n_ranks;
    for (int i = threadIdx.x; i < n_mine; i += F::T::THREADS) {
        const int at = rank * n_mine + i, token = at / F::R, row = at % F::R;
        const float *s = scales + token * n_blocks;
        float sum = 0.0f;
        if (token >= n_tokens)
            break;
        for (int r = 0; r * n_each < n_blocks; r++) {
            const float *of = td_cluster_peer(d, r) + token * F::PITCH + row;
            const int n = n_blocks - r * n_each < n_each ? n_blocks - r * n_each : n_each;
#pragma unroll 8
            for (int k = 0; k < n; k++)
                sum = fmaf(of[k * F::D_ROOM], s[r * n_each + k], sum);
        }
        store(token, row, sum);
    }
    td_cluster_sync(); /* nobody reads this block's D any more */
}
#endif
