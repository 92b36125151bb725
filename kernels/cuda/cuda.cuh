/* cuda.cuh - what every CUDA form of an operation includes: the C headers, the stream as kernels
 * are launched on it, conversions, reductions of a warp and a block in a fixed order. Compiled with
 * -fmad=false: fused multiply-adds are written out, as on the CPU. */
#ifndef TD_KERNELS_CUDA_CUH
#define TD_KERNELS_CUDA_CUH
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
extern "C" {
#include "common/device/class.h"
#include "kernels/numbers.h"
#include "kernels/shapes.h"
}

#define TD_CUDA_MAX_SCRATCH 32
/* Multiprocessors of an H100 or H200. What is fast elsewhere may differ; where products of bf16
 * split K follows from it, too, and with that their bits. */
#define TD_CUDA_SMS 132

/* How long td_stream_sync() waits on a stream that takes part in a group of ranks: a peer may keep
 * it waiting. Shared by the group and its ranks' streams, whichever lives longer. */
typedef struct {
    int n_owners; /* atomic, as is dead */
    int dead;     /* the group was aborted */
    int64_t deadline_ms;
    /* NULL: what was enqueued ends by itself. Else it may wait for peers for ever; once the group
     * is dead, this ends a rank's share of it, by the rank's own thread, any number of times;
     * results are worthless then. Cleared when the group goes. */
    void (*give_up)(void *rank);
    /* NULL: no kernel waits for a peer. Else page-locked, the group's, cleared when it goes: what
     * ends such waits (TD_CUDA_STOP_ in device.cuh). */
    volatile int *stop;
} td_cuda_guard;

struct td_stream { /* td_stream_head first */
    td_stream_head head;
    cudaStream_t stream;
    int index;            /* of the device */
    td_cuda_guard *guard; /* NULL: nobody else can hold the stream up */
    void *guard_rank;     /* for give_up() */
    /* Device memory that operations share: it is free again when one has passed. Each block is at
     * least twice the one before; old ones stay, because recorded steps point into them. */
    void *scratch[TD_CUDA_MAX_SCRATCH];
    int n_scratch;
    size_t scratch_bytes; /* of the last */
    char error[160];      /* the first launch that failed, for td_stream_sync(); "" when none did */
};

/* At least n_bytes of device memory, 256-byte aligned, until the next operation on this stream.
 * NULL: out of memory. It may grow, which a step that is being recorded must not. */
void *td_cuda_scratch(td_stream *s, size_t n_bytes);
/* TD_OK, or TD_CUDA with the stream's error filled. */
td_status td_cuda_keep(td_stream *s, const char *what, cudaError_t e);
/* What an operation returns after its launches: TD_OK, or TD_CUDA with the stream's error filled.
 */
td_status td_cuda_launched(td_stream *s, const char *op);
/* Whether the stream is recording a step. */
td_status td_cuda_recording(td_stream *s, int *out);
/* Dynamic shared memory above 48 KiB has to be asked for, once per kernel and device. */
td_status td_cuda_allow_shared(td_stream *s, const void *kernel, size_t n_bytes, const char *op);

/* ---- elements as f32 ---- */

template <typename T> __device__ inline float td_load(const T *p);
template <> __device__ inline float td_load<float>(const float *p)
{
    return *p;
}
template <> __device__ inline float td_load<td_bf16>(const td_bf16 *p)
{
    return __uint_as_float((uint32_t)*p << 16);
}
template <typename T> __device__ inline void td_store(T *p, float v);
template <> __device__ inline void td_store<float>(float *p, float v)
{
    *p = v;
}
template <> __device__ inline void td_store<td_bf16>(td_bf16 *p, float v)
{
    *p = td_f32_to_bf16(v);
}
/* The value as it would stand in memory. */
template <typename T> __device__ inline float td_round(float v);
template <> __device__ inline float td_round<float>(float v)
{
    return v;
}
template <> __device__ inline float td_round<td_bf16>(float v)
{
    return td_bf16_to_f32(td_f32_to_bf16(v));
}

/* ---- reductions: butterflies, so every lane has the same bits, and the order is fixed ---- */

__device__ inline float td_warp_sum(float v)
{
    for (int m = 16; m > 0; m /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}

__device__ inline float td_warp_max(float v) /* NaN does not count */
{
    for (int m = 16; m > 0; m /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}

/* Over blockDim.x threads (a multiple of 32, at most 1024); every thread has the result. part: room
 * for 32 floats of shared memory, free again for the same use after a __syncthreads(). */
__device__ inline float td_block_sum(float v, float *part)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    v = td_warp_sum(v);
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    return td_warp_sum(lane < (int)blockDim.x / 32 ? part[lane] : 0.0f);
}

static inline unsigned td_grid(int64_t n, int64_t per_block) /* blocks; at most 2^31 - 1 */
{
    return (unsigned)((n + per_block - 1) / per_block);
}
#endif
