/* moe_experts_plan.cuh - a chunk of tokens on the device, and its (token, expert) pairs sorted by
 * expert into tiles. For moe_experts_sm90.cu. */
#ifndef TD_KERNELS_MOE_EXPERTS_PLAN_CUH
#define TD_KERNELS_MOE_EXPERTS_PLAN_CUH
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/moe_experts/moe_experts.h"
}

#define PLAN_THREADS 1024

/* One chunk of tokens; device memory. Pair p is token p / K with its expert number p % K. */
struct chunk {
    td_moe_experts_args a; /* of the chunk's tokens */
    int n_pairs, n_experts, tile_rows, max_tiles;
    int aligned;          /* rows of x, h and the weights start at multiples of 16 bytes */
    int32_t *n_tiles;     /* [1] */
    int32_t *tile_expert; /* [max_tiles] */
    int32_t *tile_pairs;  /* [max_tiles] how many slots are taken: the first ones */
    int32_t *slots;       /* [max_tiles, tile_rows] pairs; -1: none */
    void *both;           /* [n_pairs, 2 I] act: gate, up */
    void *h;              /* [n_pairs, I] dtype */
    float *hs;            /* [n_pairs, ceil(I/128)] */
    float *part;          /* [n_pairs, n_slice] columns slice .. slice + n_slice - 1 of D */
    int slice, n_slice;
};

__device__ static int expert_of(const chunk &c, int pair)
{
    const int32_t e = c.a.ids[pair];
    return e >= c.a.expert_lo && e < c.a.expert_hi ? e - c.a.expert_lo : -1;
}

/* The sum of n over the threads before this one, and over all PLAN_THREADS. */
__device__ static int sum_before(int n, int *all)
{
    __shared__ int warps[PLAN_THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = n, of_warps;
    for (int d = 1; d < 32; d *= 2) {
        const int left = __shfl_up_sync(0xffffffffu, sum, d);
        sum += lane >= d ? left : 0;
    }
    __syncthreads(); /* the call before is done with warps */
    if (lane == 31)
        warps[warp] = sum;
    __syncthreads();
    of_warps = warps[lane];
    for (int d = 1; d < 32; d *= 2) {
        const int left = __shfl_up_sync(0xffffffffu, of_warps, d);
        of_warps += lane >= d ? left : 0;
    }
    *all = __shfl_sync(0xffffffffu, of_warps, 31);
    return sum - n + (warp > 0 ? __shfl_sync(0xffffffffu, of_warps, warp - 1) : 0);
}

/* One block. Which pair of an expert gets which slot does not matter: a row's result does not
 * depend on its place. */
__global__ void __launch_bounds__(PLAN_THREADS) plan_kernel(chunk c)
{
    extern __shared__ int32_t counts[]; /* [n_experts] pairs, then the next free slot */
    for (int e = threadIdx.x; e < c.n_experts; e += PLAN_THREADS)
        counts[e] = 0;
    for (int i = threadIdx.x; i < c.max_tiles * c.tile_rows; i += PLAN_THREADS)
        c.slots[i] = -1;
    __syncthreads();
    for (int p = threadIdx.x; p < c.n_pairs; p += PLAN_THREADS)
        if (expert_of(c, p) >= 0)
            atomicAdd(&counts[expert_of(c, p)], 1);
    __syncthreads();
    int first = 0; /* tile of the experts from e0 on */
    for (int e0 = 0; e0 < c.n_experts; e0 += PLAN_THREADS) {
        const int e = e0 + threadIdx.x;
        const int n_pairs = e < c.n_experts ? counts[e] : 0;
        const int n = (n_pairs + c.tile_rows - 1) / c.tile_rows;
        int n_all, tile = first + sum_before(n, &n_all);
        if (e < c.n_experts)
            counts[e] = tile * c.tile_rows;
        for (int i = 0; i < n; i++) {
            c.tile_expert[tile + i] = e;
            c.tile_pairs[tile + i] = min(n_pairs - i * c.tile_rows, c.tile_rows);
        }
        first += n_all;
    }
    if (threadIdx.x == 0)
        *c.n_tiles = first;
    __syncthreads();
    for (int p = threadIdx.x; p < c.n_pairs; p += PLAN_THREADS)
        if (expert_of(c, p) >= 0)
            c.slots[atomicAdd(&counts[expert_of(c, p)], 1)] = p;
}
#endif
