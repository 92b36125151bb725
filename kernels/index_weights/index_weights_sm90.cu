/* index_weights_sm90.cu - four neighbours to a thread, whatever their rows. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/index_weights/index_weights.h"
}

#define THREADS 256

/* w may stand where xw stands: a thread reads what it overwrites before it does. */
__global__ void __launch_bounds__(THREADS)
    index_weights_kernel(td_index_weights_args a, int64_t n, float heads, float dims)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= n)
        return;
    const int count = n - i < 4 ? (int)(n - i) : 4;
    td_group w = td_load4(a.xw + i, count), qs = {{1.0f, 1.0f, 1.0f, 1.0f}};
    if (a.qs != NULL)
        qs = td_load4(a.qs + i, count);
    for (int k = 0; k < 4; k++)
        w.v[k] = ((w.v[k] * heads) * qs.v[k]) * dims;
    td_store4(w, a.w + i, count);
}

extern "C" td_status td_index_weights_cuda(const td_index_weights_args *a, td_stream *s)
{
    if (!td_index_weights_valid(a))
        return TD_BAD_SHAPE;
    const int64_t n = (int64_t)a->T * a->Hi;
    if (n == 0)
        return TD_OK;
    const float heads = (float)(1.0 / sqrt((double)a->Hi));
    const float dims = (float)(1.0 / sqrt((double)a->dim));
    index_weights_kernel<<<td_grid(n, THREADS * 4), THREADS, 0, s->stream>>>(*a, n, heads, dims);
    return td_cuda_launched(s, "index_weights");
}
