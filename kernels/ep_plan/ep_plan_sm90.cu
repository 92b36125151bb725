/* ep_plan_sm90.cu - a block per rank walks over the rows, a thread to a row: a row's place in the
 * list is what was counted in the tiles before, the warps before and the lanes before. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/ep_plan/ep_plan.h"
}

#define THREADS 1024

__device__ inline int wants(const td_ep_plan_args *a, int64_t t, int64_t p)
{
    const int64_t lo = p * a->E / a->P, hi = (p + 1) * a->E / a->P;
    int wanted = 0;
    for (int k = 0; k < a->K; k++) {
        const int32_t e = a->ids[t * a->K + k];
        wanted |= e >= lo && e < hi;
    }
    return wanted;
}

/* How many threads of lower number have `wanted`; *total: how many in all. part: one per warp. */
__device__ inline int count_before(int wanted, int *part, int *total)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned mask = __ballot_sync(0xffffffffu, wanted);
    if (lane == 0)
        part[warp] = __popc(mask);
    __syncthreads();
    int sum = part[lane]; /* of warps 0..lane, after the loop */
    for (int m = 1; m < 32; m *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, m);
        if (lane >= m)
            sum += other;
    }
    const int before = __shfl_sync(0xffffffffu, sum, (warp + 31) % 32);
    *total = __shfl_sync(0xffffffffu, sum, 31);
    __syncthreads(); /* part is free again */
    return (warp == 0 ? 0 : before) + __popc(mask & ((1u << lane) - 1));
}

__global__ void __launch_bounds__(THREADS) ep_plan_kernel(td_ep_plan_args a)
{
    __shared__ int part[THREADS / 32];
    const int64_t p = blockIdx.x;
    int count = 0;
    for (int64_t tile = 0; tile < a.T; tile += THREADS) {
        const int64_t t = tile + threadIdx.x;
        const int wanted = t < a.T ? wants(&a, t, p) : 0;
        int total;
        const int place = count + count_before(wanted, part, &total);
        if (t < a.T)
            a.slot[t * a.P + p] = wanted ? place : -1;
        if (wanted)
            a.rows[p * a.T + place] = (int32_t)t;
        count += total;
    }
    for (int64_t t = count + (int64_t)threadIdx.x; t < a.T; t += THREADS)
        a.rows[p * a.T + t] = -1;
    if (threadIdx.x == 0)
        a.counts[p] = count;
}

extern "C" td_status td_ep_plan_cuda(const td_ep_plan_args *a, td_stream *s)
{
    if (!td_ep_plan_valid(a))
        return TD_BAD_SHAPE;
    ep_plan_kernel<<<(unsigned)a->P, THREADS, 0, s->stream>>>(*a); /* counts also when T is 0 */
    return td_cuda_launched(s, "ep_plan");
}
