/* quant_sm90.cu - a warp per group of 128, not a block per row: small steps use more of the GPU
 * too. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/quant/quant.h"
}

#define WARPS 8 /* groups of a block, at most */

/* chunks: blocks of a row. */
__global__ void __launch_bounds__(WARPS * 32) quant_kernel(td_quant_args a, int chunks)
{
    const int64_t t = blockIdx.x / chunks;
    const int g = (int)((blockIdx.x % chunks * blockDim.x + threadIdx.x) / 32);
    const int n_groups = (a.K + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    if (g >= n_groups)
        return; /* the whole warp: warps do not meet */
    const td_group z = td_group_load((const td_bf16 *)a.x + t * a.x_stride, g, a.K);
    td_group_quantise(z, g, a.K, a.ue8m0, a.q + t * a.K, a.qs + t * n_groups);
}

extern "C" td_status td_quant_cuda(const td_quant_args *a, td_stream *s)
{
    if (!td_quant_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->K == 0)
        return TD_OK;
    const int n_groups = td_ceil_div(a->K, TD_QUANT_GROUP);
    const int warps = n_groups < WARPS ? n_groups : WARPS;
    const int chunks = td_ceil_div(n_groups, warps);
    const unsigned grid = (unsigned)a->T * (unsigned)chunks;
    quant_kernel<<<grid, warps * 32, 0, s->stream>>>(*a, chunks);
    return td_cuda_launched(s, "quant");
}
