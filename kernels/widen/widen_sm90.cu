/* widen_sm90.cu - four neighbours to a thread: an 8-byte load and a 16-byte store. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/widen/widen.h"
}

#define THREADS 256

__global__ void __launch_bounds__(THREADS) widen_kernel(const td_bf16 *x, float *y, int64_t n)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= n)
        return;
    const int count = n - i < 4 ? (int)(n - i) : 4;
    td_store4(td_load4(x + i, count), y + i, count);
}

extern "C" td_status td_widen_cuda(const td_widen_args *a, td_stream *s)
{
    if (!td_widen_valid(a))
        return TD_BAD_SHAPE;
    const int64_t n = (int64_t)a->T * a->D;
    if (n == 0)
        return TD_OK;
    widen_kernel<<<td_grid(n, THREADS * 4), THREADS, 0, s->stream>>>((const td_bf16 *)a->x, a->y,
                                                                     n);
    return td_cuda_launched(s, "widen");
}
