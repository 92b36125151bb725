/* sum_partials_sm90.cu - four neighbours to a thread, which adds the parts in their order. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/sum_partials/sum_partials.h"
}

#define THREADS 256

template <typename T>
__global__ void __launch_bounds__(THREADS) sum_partials_kernel(td_sum_partials_args a, int64_t n)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= n)
        return;
    const int count = n - i < 4 ? (int)(n - i) : 4;
    td_group sum = td_load4(a.parts + i, count);
    for (int p = 1; p < a.P; p++)
        sum = td_group_add(sum, td_load4(a.parts + p * a.part_stride + i, count));
    td_store4(sum, (T *)a.y + i, count);
}

extern "C" td_status td_sum_partials_cuda(const td_sum_partials_args *a, td_stream *s)
{
    if (!td_sum_partials_valid(a))
        return TD_BAD_SHAPE;
    const int64_t n = (int64_t)a->T * a->D;
    if (n == 0)
        return TD_OK;
    const unsigned grid = td_grid(n, THREADS * 4);
    if (a->act == TD_F32)
        sum_partials_kernel<float><<<grid, THREADS, 0, s->stream>>>(*a, n);
    else
        sum_partials_kernel<td_bf16><<<grid, THREADS, 0, s->stream>>>(*a, n);
    return td_cuda_launched(s, "sum_partials");
}
