/* accept_sm90.cu - a thread per request: a few comparisons each. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/accept/accept.h"
}

#define THREADS 128

__global__ void __launch_bounds__(THREADS) accept_kernel(td_accept_args a)
{
    const int64_t b = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (b >= a.B)
        return;
    const int most = min(a.n_drafts[b], a.N - 1);
    const int32_t *draft = a.draft + b * (a.N - 1), *target = a.target + b * a.N;
    int n = 0;
    while (n < most && draft[n] == target[n])
        n++;
    a.n_accepted[b] = n;
}

extern "C" td_status td_accept_cuda(const td_accept_args *a, td_stream *s)
{
    if (!td_accept_valid(a))
        return TD_BAD_SHAPE;
    if (a->B == 0)
        return TD_OK;
    accept_kernel<<<td_grid(a->B, THREADS), THREADS, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "accept");
}
