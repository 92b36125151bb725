/* ep_combine_sm90.cu - four neighbours of a row to a thread, which adds the ranks in their order.
 * A row's blocks stand side by side. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/ep_combine/ep_combine.h"
}

#define THREADS 256

/* chunks: blocks of a row. */
__global__ void __launch_bounds__(THREADS) ep_combine_kernel(td_ep_combine_args a, int chunks)
{
    const int64_t t = blockIdx.x / chunks;
    const int64_t d = ((int64_t)(blockIdx.x % chunks) * THREADS + threadIdx.x) * 4;
    if (d >= a.D)
        return;
    const int count = a.D - d < 4 ? (int)(a.D - d) : 4;
    td_group sum = {{0.0f, 0.0f, 0.0f, 0.0f}};
    for (int64_t p = 0; p < a.P; p++) {
        const int32_t slot = a.slot[t * a.P + p];
        if (slot >= 0)
            sum = td_group_add(sum, td_load4(a.parts + (p * a.cap + slot) * a.D + d, count));
    }
    td_store4(sum, a.y + t * a.D + d, count);
}

extern "C" td_status td_ep_combine_cuda(const td_ep_combine_args *a, td_stream *s)
{
    if (!td_ep_combine_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->D == 0)
        return TD_OK;
    const int chunks = (int)td_grid(a->D, THREADS * 4);
    ep_combine_kernel<<<(unsigned)a->T *(unsigned)chunks, THREADS, 0, s->stream>>>(*a, chunks);
    return td_cuda_launched(s, "ep_combine");
}
