/* exact_few.cuh - a tile of exact_tile.cuh, 64 rows of w and few tokens, with K's blocks spread
 * over warpgroups, of one block of threads or of a cluster's. The products of a block of K start
 * from a fresh D and depend on nothing else; only the sums have an order. So each warpgroup leaves
 * the D of its blocks of K in shared memory, and the sums are taken from there in ascending order:
 * the bits of td_exact_run(), without its serial walk.
 *
 * It goes in rounds: each warpgroup has EACH blocks of K, all meet, the round's D are summed while
 * the next round's products run into the other half of the room. */
#ifndef TD_KERNELS_CUDA_EXACT_FEW_CUH
#define TD_KERNELS_CUDA_EXACT_FEW_CUH
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exact_tile.cuh"
#include "kernels/cuda/pipe.cuh"

template <int BT> struct td_exact_few {
    static constexpr int R = 64;
    typedef td_exact_tile<R, BT> T;
    static constexpr int GROUPS = BT > 16 ? 2 : 4; /* warpgroups: threadIdx.y */
    static constexpr int THREADS = GROUPS * T::THREADS;
    static constexpr int STAGES = BT == 16 ? 3 : 4; /* of a warpgroup */
    static constexpr int EACH = 2;                  /* blocks of K to a warpgroup and round */
    static constexpr int SLOTS = GROUPS * EACH;
    static constexpr int PITCH = R + 4;       /* floats to a token: no bank conflicts */
    static constexpr int D_ROOM = BT * PITCH; /* of a block of K */
    static constexpr int SUMS = R * BT / THREADS;
    static constexpr int GROUP_BYTES = T::WIDE_BYTES + STAGES * T::STAGE_BYTES;
    static_assert(T::THREADS == 128, "one warpgroup");
    static_assert(GROUP_BYTES % TD_SWIZZLE_ATOM == 0, "operands start at atoms");

    /* Dynamic shared memory. */
    static size_t bytes(int n_blocks)
    {
        return TD_SWIZZLE_ATOM + GROUPS * (size_t)GROUP_BYTES +
               (size_t)(2 * SLOTS * D_ROOM + BT + n_blocks * BT) * sizeof(float);
    }
};

template <int BT> struct td_exact_few_shared {
    typedef td_exact_few<BT> F;
    unsigned char *group; /* this warpgroup's x as operands of wgmma, then its stages */
    float *d;             /* [2][SLOTS] of D_ROOM */
    int32_t *index;       /* [BT] rows of x; -1: none */
    float *scales;        /* [tokens][blocks of K] xs * ws */
    __device__ explicit td_exact_few_shared(unsigned char *dynamic)
    {
        const uint32_t at = (uint32_t)__cvta_generic_to_shared(dynamic);
        unsigned char *groups = dynamic + ((0u - at) & (TD_SWIZZLE_ATOM - 1));
        group = groups + threadIdx.y * F::GROUP_BYTES;
        d = (float *)(groups + F::GROUPS * F::GROUP_BYTES);
        index = (int32_t *)(d + 2 * F::SLOTS * F::D_ROOM);
        scales = (float *)(index + BT);
    }
    __device__ unsigned char *stage_of(int i) const
    {
        return group + F::T::WIDE_BYTES + i % F::STAGES * F::T::STAGE_BYTES;
    }
};

/* Meets the others of this warpgroup. */
__device__ inline void td_exact_few_meet()
{
    td_pipe_sync<128>((int)threadIdx.y + 1);
}

/* The i-th block of K of this warpgroup; n_groups: those of the cluster. */
template <int BT> __device__ inline int td_exact_few_block(int i, int n_groups)
{
    typedef td_exact_few<BT> F;
    const int group = td_cluster_rank() * F::GROUPS + (int)threadIdx.y;
    return (i / F::EACH * n_groups + group) * F::EACH + i % F::EACH;
}

template <int BT>
__device__ inline void td_exact_few_fetch(const td_tile_args &args,
                                          const td_exact_few_shared<BT> &sh, int i, int kb,
                                          int n_blocks)
{
    if (kb < n_blocks)
        td_exact_fetch_rows<td_exact_few<BT>::R, BT, true>(args, sh.index, sh.stage_of(i), kb);
    td_copy_commit();
}

/* The products of this warpgroup's i-th block of K, to d; if there is none, it only meets. */
template <int BT>
__device__ inline void td_exact_few_products(const td_tile_args &args,
                                             const td_exact_few_shared<BT> &sh, int i, int n_groups,
                                             int n_blocks, float *d)
{
    typedef td_exact_few<BT> F;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    uint32_t a[TD_TILE_K / 16][4];
    float blk[BT / 2];
    if (td_exact_few_block<BT>(i, n_groups) >= n_blocks) { /* alike for all of a warpgroup */
        td_exact_few_meet();
        td_exact_few_meet();
        return;
    }
    td_copy_wait<F::STAGES - 1>();
    td_exact_few_meet(); /* block i is there, and x of the one before was used */
    td_exact_widen_w<F::R>(sh.stage_of(i), a);
    td_exact_widen_x<F::R, BT>(sh.stage_of(i), sh.group);
    td_wgmma_publish();
    td_exact_few_meet(); /* and widened: its stage is free */
    td_exact_start<F::R, BT>(sh.group, a, blk);
    td_exact_few_fetch<BT>(args, sh, i + F::STAGES, td_exact_few_block<BT>(i + F::STAGES, n_groups),
                           n_blocks);
    td_wgmma_wait<0>();
    td_wgmma_hold<BT / 2>(blk);
#pragma unroll
    for (int k = 0; k < BT / 2; k++)
        d[(k / 4 * 8 + col + k % 2) * F::PITCH + row + k % 4 / 2 * 8] = blk[k];
}

/* sum += the D of a round at (token, row of w), in the order of K; first: its first block. */
template <int BT>
__device__ inline float td_exact_few_sum(const td_exact_few_shared<BT> &sh, const float *d,
                                         int first, int token, int row, int n_ranks, int n_blocks,
                                         float sum)
{
    typedef td_exact_few<BT> F;
    const float *scales = sh.scales + token * n_blocks;
    for (int r = 0; r < n_ranks && first < n_blocks; r++, first += F::SLOTS) {
        const float *from = n_ranks > 1 ? td_cluster_peer(d, r) : d;
        float v[F::SLOTS];
        from += token * F::PITCH + row;
#pragma unroll
        for (int k = 0; k < F::SLOTS; k++)
            v[k] = first + k < n_blocks ? from[k * F::D_ROOM] : 0.0f;
#pragma unroll
        for (int k = 0; k < F::SLOTS; k++)
            if (first + k < n_blocks)
                sum = fmaf(v[k], scales[first + k], sum);
    }
    return sum;
}

/* The tile's elements of the first n_tokens tokens to store(token, row of w, value), by the blocks
 * of a cluster of n_ranks, of td_exact_few::THREADS each. Rows of w that do not exist come too:
 * store() leaves them. All rows are 16-byte aligned. sh.index is filled, and visible to the block.
 */
template <int BT, typename Store>
__device__ inline void td_exact_few_run(const td_tile_args &args, const td_exact_few_shared<BT> &sh,
                                        int n_tokens, int n_ranks, Store store)
{
    typedef td_exact_few<BT> F;
    const int n_blocks = (args.K + TD_TILE_K - 1) / TD_TILE_K, n_groups = n_ranks * F::GROUPS;
    const int thread = (int)(threadIdx.y * F::T::THREADS + threadIdx.x);
    const int n_mine = (n_tokens * F::R + n_ranks - 1) / n_ranks; /* elements of this block */
    const int mine = td_cluster_rank() * n_mine;
    float sum[F::SUMS] = {};
    for (int i = 0; i < F::STAGES; i++)
        td_exact_few_fetch<BT>(args, sh, i, td_exact_few_block<BT>(i, n_groups), n_blocks);
    for (int i = thread; i < n_tokens * n_blocks; i += F::THREADS)
        sh.scales[i] = args.xs[(int64_t)sh.index[i / n_blocks] * n_blocks + i % n_blocks] *
                       args.ws[i % n_blocks];
    for (int round = 0; round * n_groups * F::EACH < n_blocks; round++) {
        float *d = sh.d + round % 2 * F::SLOTS * F::D_ROOM;
        for (int k = 0; k < F::EACH; k++)
            td_exact_few_products<BT>(args, sh, round * F::EACH + k, n_groups, n_blocks,
                                      d + ((int)threadIdx.y * F::EACH + k) * F::D_ROOM);
        if (n_ranks > 1)
            td_cluster_sync();
        else
            __syncthreads();
#pragma unroll
        for (int j = 0; j < F::SUMS; j++) {
            const int i = thread + j * F::THREADS, at = mine + i;
            if (i < n_mine && at < n_tokens * F::R)
                sum[j] = td_exact_few_sum<BT>(sh, d, round * n_groups * F::EACH, at / F::R,
                                              at % F::R, n_ranks, n_blocks, sum[j]);
        }
    }
    td_copy_wait<0>();
#pragma unroll
    for (int j = 0; j < F::SUMS; j++) {
        const int i = thread + j * F::THREADS, at = mine + i;
        if (i < n_mine && at < n_tokens * F::R)
            store(at / F::R, at % F::R, sum[j]);
    }
    if (n_ranks > 1)
        td_cluster_sync(); /* nobody reads this block's D any more */
}
#endif
