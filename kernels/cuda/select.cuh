/* select.cuh - the radix descent that topk and sample share: keys that order as f32 do, and the
 * choice of a bin. */
#ifndef TD_KERNELS_CUDA_SELECT_CUH
#define TD_KERNELS_CUDA_SELECT_CUH
#include "kernels/cuda/cuda.cuh"

#define TD_RADIX_BINS 256

/* Larger numbers have larger keys; -0 is 0, NaN is -inf. No number has key 0. */
__device__ inline uint32_t td_order_key(float x)
{
    const uint32_t u = __float_as_uint(isnan(x) ? -INFINITY : x == 0.0f ? 0.0f : x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ inline float td_order_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* The bin at which the sum from the highest bin down reaches *need (1 or more; the sum of all does
 * reach it); *need becomes what is left of it in there. By warp 0, eight bins to a lane. */
template <typename N> __device__ inline uint32_t td_find_bin(const N *bins, N *need)
{
    const int lane = (int)threadIdx.x, top = TD_RADIX_BINS - 1 - lane * 8;
    N own = 0;
    for (int i = 0; i < 8; i++)
        own += bins[top - i];
    N upto = own;
    for (int d = 1; d < 32; d *= 2) {
        const N other = __shfl_up_sync(0xffffffffu, upto, d);
        if (lane >= d)
            upto += other;
    }
    const int who = __ffs((int)__ballot_sync(0xffffffffu, upto >= *need)) - 1;
    N left = *need - (upto - own);
    uint32_t bin = 0;
    for (int i = 0; i < 8 && lane == who; i++) {
        bin = (uint32_t)(top - i);
        if (bins[bin] >= left)
            break;
        left -= bins[bin];
    }
    *need = __shfl_sync(0xffffffffu, left, who);
    return __shfl_sync(0xffffffffu, bin, who);
}
#endif
