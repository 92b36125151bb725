/* argmax_sm90.cu - a block of 32 warps per row; a thread takes 16-byte pieces in ascending order,
 * so that its first largest logit is the lowest; among threads the lower id wins a tie. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/argmax/argmax.h"
}

#define THREADS 1024
#define NONE INT32_MAX /* nothing above -inf yet */

typedef struct {
    float value;
    int32_t id;
} candidate;

__device__ inline void consider(candidate *best, float value, int32_t id)
{
    if (value > best->value) { /* false for NaN */
        best->value = value;
        best->id = id;
    }
}

__device__ inline candidate best_of_warp(candidate best)
{
    for (int m = 16; m > 0; m /= 2) {
        const float value = __shfl_xor_sync(0xffffffffu, best.value, m);
        const int32_t id = __shfl_xor_sync(0xffffffffu, best.id, m);
        if (value > best.value || (value == best.value && id < best.id)) {
            best.value = value;
            best.id = id;
        }
    }
    return best;
}

/* The best of what this thread reads of the row. */
__device__ inline candidate best_of_thread(const float *x, int V)
{
    candidate best = {-INFINITY, NONE};
    const int lead = min((int)((16 - (uintptr_t)x % 16) % 16 / 4), V); /* before the first piece */
    const int n4 = (V - lead) / 4, i = (int)threadIdx.x;
    const float4 *x4 = (const float4 *)(x + lead);
    if (i < lead)
        consider(&best, x[i], i);
#pragma unroll 4
    for (int k = i; k < n4; k += THREADS) {
        const float4 v = x4[k];
        const int32_t id = lead + 4 * k;
        consider(&best, v.x, id);
        consider(&best, v.y, id + 1);
        consider(&best, v.z, id + 2);
        consider(&best, v.w, id + 3);
    }
    if (lead + 4 * n4 + i < V)
        consider(&best, x[lead + 4 * n4 + i], lead + 4 * n4 + i);
    return best;
}

__global__ void __launch_bounds__(THREADS) argmax_kernel(td_argmax_args a)
{
    __shared__ candidate part[THREADS / 32];
    const int64_t t = blockIdx.x;
    candidate best = best_of_warp(best_of_thread(a.logits + t * a.stride, a.V));
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    best = best_of_warp(part[threadIdx.x]);
    if (threadIdx.x == 0)
        a.ids[t] = best.id == NONE ? 0 : best.id;
}

extern "C" td_status td_argmax_cuda(const td_argmax_args *a, td_stream *s)
{
    if (!td_argmax_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    argmax_kernel<<<(unsigned)a->T, THREADS, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "argmax");
}
