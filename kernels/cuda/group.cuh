/* group.cuh - a group of 128 elements held by a warp, four neighbours to a lane: loads and stores
 * of rows that may end inside the group, and the quantiser AQ_128 (model-spec 0.3). */
#ifndef TD_KERNELS_CUDA_GROUP_CUH
#define TD_KERNELS_CUDA_GROUP_CUH
#include "kernels/cuda/cuda.cuh"

typedef struct {
    float v[4]; /* elements 128 g + 4 lane .. + 3; 0 past the row's end */
} td_group;

/* Elements of this lane that the row has: 0..4. */
__device__ inline int td_group_count(int g, int n)
{
    const int left = n - (g * TD_QUANT_GROUP + (int)(threadIdx.x % 32) * 4);
    return left < 0 ? 0 : left > 4 ? 4 : left;
}

/* Up to four neighbours at p, any alignment; 0 for those that are not there. */
template <typename T> __device__ inline td_group td_load4(const T *p, int count)
{
    td_group z = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (count == 4 && (uintptr_t)p % (4 * sizeof(T)) == 0) {
        alignas(16) T four[4];
        if (sizeof(T) == 4)
            *(uint4 *)four = *(const uint4 *)p;
        else
            *(uint2 *)four = *(const uint2 *)p;
        for (int i = 0; i < 4; i++)
            z.v[i] = td_load(&four[i]);
    } else {
        for (int i = 0; i < 4; i++)
            if (i < count)
                z.v[i] = td_load(p + i);
    }
    return z;
}

template <typename T> __device__ inline void td_store4(td_group z, T *p, int count)
{
    if (count == 4 && (uintptr_t)p % (4 * sizeof(T)) == 0) {
        alignas(16) T four[4];
        for (int i = 0; i < 4; i++)
            td_store(&four[i], z.v[i]);
        if (sizeof(T) == 4)
            *(uint4 *)p = *(const uint4 *)four;
        else
            *(uint2 *)p = *(const uint2 *)four;
    } else {
        for (int i = 0; i < 4; i++)
            if (i < count)
                td_store(p + i, z.v[i]);
    }
}

/* Group g of a row of n elements. */
template <typename T> __device__ inline td_group td_group_load(const T *row, int g, int n)
{
    return td_load4(row + g * TD_QUANT_GROUP + (threadIdx.x % 32) * 4, td_group_count(g, n));
}

template <typename T> __device__ inline void td_group_store(td_group z, T *row, int g, int n)
{
    td_store4(z, row + g * TD_QUANT_GROUP + (threadIdx.x % 32) * 4, td_group_count(g, n));
}

__device__ inline td_group td_group_add(td_group a, td_group b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] += b.v[i];
    return a;
}

/* The code that td_f32_to_e4m3() gives, by the hardware's conversion. */
__device__ inline uint8_t td_e4m3_code(float x, float scale)
{
    const float v = x / scale;
    if (isnan(v))
        return 0x7f;
    return (uint8_t)__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}

/* The scale of a group whose values are as they stand in memory (rounded to their type); every lane
 * has it. NaN does not count. */
__device__ inline float td_group_scale(td_group z, int ue8m0)
{
    float amax = 0.0f;
    for (int i = 0; i < 4; i++)
        if (fabsf(z.v[i]) > amax) /* as the judge of quant: signalling NaN do not count either */
            amax = fabsf(z.v[i]);
    return td_quant_scale(td_warp_max(amax), ue8m0);
}

/* Codes to p, where this lane's first one stands. */
__device__ inline void td_group_codes(td_group z, float scale, int count, uint8_t *p)
{
    uint32_t codes = 0;
    for (int i = 0; i < 4; i++)
        codes |= (uint32_t)td_e4m3_code(z.v[i], scale) << (8 * i);
    if (count == 4 && (uintptr_t)p % 4 == 0) {
        *(uint32_t *)p = codes;
        return;
    }
    for (int i = 0; i < 4; i++)
        if (i < count)
            p[i] = (uint8_t)(codes >> (8 * i));
}

/* Codes to q (the row's, n of them), the scale to qs[g]. */
__device__ inline void td_group_quantise(td_group z, int g, int n, int ue8m0, uint8_t *q, float *qs)
{
    const int lane = threadIdx.x % 32;
    const float scale = td_group_scale(z, ue8m0);
    if (lane == 0)
        qs[g] = scale;
    td_group_codes(z, scale, td_group_count(g, n), q + g * TD_QUANT_GROUP + lane * 4);
}

/* bf16( Had128(z) * 128^-1/2 ): strides 1 and 2 within the lane, 4 .. 64 between lanes. */
__device__ inline td_group td_group_hadamard(td_group z)
{
    const int lane = threadIdx.x % 32;
    const float s0 = z.v[0] + z.v[1], d0 = z.v[0] - z.v[1];
    const float s1 = z.v[2] + z.v[3], d1 = z.v[2] - z.v[3];
    z = {{s0 + s1, d0 + d1, s0 - s1, d0 - d1}};
    for (int m = 1; m < 32; m *= 2)
        for (int i = 0; i < 4; i++) {
            const float other = __shfl_xor_sync(0xffffffffu, z.v[i], m);
            z.v[i] = lane & m ? other - z.v[i] : z.v[i] + other;
        }
    for (int i = 0; i < 4; i++)
        z.v[i] = td_round<td_bf16>(z.v[i] * 0.08838834764831845f);
    return z;
}
#endif
