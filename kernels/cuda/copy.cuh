/* copy.cuh - rows copied bit by bit, in the widest pieces that both addresses allow. */
#ifndef TD_KERNELS_CUDA_COPY_CUH
#define TD_KERNELS_CUDA_COPY_CUH
#include "kernels/cuda/cuda.cuh"

#define TD_COPY_THREADS 256

template <typename V>
__device__ inline void td_copy_as(unsigned char *dst, const unsigned char *src, int64_t n_bytes,
                                  int first, int step)
{
    const int64_t n = n_bytes / (int64_t)sizeof(V);
    for (int64_t i = first; i < n; i += step)
        ((V *)dst)[i] = src == NULL ? V{} : ((const V *)src)[i];
    for (int64_t i = n * (int64_t)sizeof(V) + first; i < n_bytes; i += step)
        dst[i] = src == NULL ? 0 : src[i];
}

/* The part of thread `first` of `step` threads that copy together; src NULL: zeros. */
__device__ inline void td_copy(void *dst, const void *src, int64_t n_bytes, int first, int step)
{
    unsigned char *to = (unsigned char *)dst;
    const unsigned char *from = (const unsigned char *)src;
    const uintptr_t both = (uintptr_t)to | (uintptr_t)from;
    if (both % sizeof(uint4) == 0)
        td_copy_as<uint4>(to, from, n_bytes, first, step);
    else if (both % sizeof(uint32_t) == 0)
        td_copy_as<uint32_t>(to, from, n_bytes, first, step);
    else
        td_copy_as<uint8_t>(to, from, n_bytes, first, step);
}

/* A block for rows of n_bytes: x threads to a row (narrow rows need few), y rows. */
static inline dim3 td_copy_block(int64_t n_bytes)
{
    unsigned lanes = 8;
    while (lanes < TD_COPY_THREADS && (int64_t)lanes * (int64_t)sizeof(uint4) < n_bytes)
        lanes *= 2;
    return dim3(lanes, TD_COPY_THREADS / lanes);
}
#endif
