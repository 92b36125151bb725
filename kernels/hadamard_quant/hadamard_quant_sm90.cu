/* hadamard_quant_sm90.cu - a warp per row, four neighbours to a lane: the butterflies are shuffles,
 * and the row is one group of the quantiser. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/hadamard_quant/hadamard_quant.h"
}

#define WARPS 8 /* rows of a block */

__global__ void __launch_bounds__(WARPS * 32) hadamard_quant_kernel(td_hadamard_quant_args a)
{
    const int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (t >= a.T)
        return; /* the whole warp: warps do not meet */
    const td_group z = td_group_hadamard(td_group_load(a.x + t * 128, 0, 128));
    td_group_quantise(z, 0, 128, a.ue8m0, a.q + t * 128, a.qs + t);
}

extern "C" td_status td_hadamard_quant_cuda(const td_hadamard_quant_args *a, td_stream *s)
{
    if (!td_hadamard_quant_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    hadamard_quant_kernel<<<td_grid(a->T, WARPS), WARPS * 32, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "hadamard_quant");
}
