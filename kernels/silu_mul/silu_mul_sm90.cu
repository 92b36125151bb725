/* silu_mul_sm90.cu - a warp per group of 128: the quantiser finds its group in the
 * warp. A lane reads what it overwrites before it does, so y may stand on gate or up. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/silu_mul/silu_mul.h"
}

#define WARPS 8 /* groups of a block, at most */

/* chunks: blocks of a row. */
template <typename T>
__global__ void __launch_bounds__(WARPS * 32) silu_mul_kernel(td_silu_mul_args a, int chunks)
{
    const int64_t t = blockIdx.x / chunks;
    const int g = (int)((blockIdx.x % chunks * blockDim.x + threadIdx.x) / 32);
    const int n_groups = (a.I + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    if (g >= n_groups)
        return; /* the whole warp: warps do not meet */
    td_group z = td_group_load((const T *)a.gate + t * a.I, g, a.I);
    const td_group up = td_group_load((const T *)a.up + t * a.I, g, a.I);
    for (int i = 0; i < 4; i++)
        z.v[i] = td_round<T>(z.v[i] / (1.0f + td_expf(-z.v[i])) * up.v[i]);
    td_group_store(z, (T *)a.y + t * a.I, g, a.I);
    if (a.q != NULL)
        td_group_quantise(z, g, a.I, a.ue8m0, a.q + t * a.I, a.qs + t * n_groups);
}

extern "C" td_status td_silu_mul_cuda(const td_silu_mul_args *a, td_stream *s)
{
    if (!td_silu_mul_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->I == 0)
        return TD_OK;
    const int n_groups = td_ceil_div(a->I, TD_QUANT_GROUP);
    const int warps = n_groups < WARPS ? n_groups : WARPS;
    const int chunks = td_ceil_div(n_groups, warps);
    const unsigned grid = (unsigned)a->T * (unsigned)chunks;
    if (a->act == TD_F32)
        silu_mul_kernel<float><<<grid, warps * 32, 0, s->stream>>>(*a, chunks);
    else
        silu_mul_kernel<td_bf16><<<grid, warps * 32, 0, s->stream>>>(*a, chunks);
    return td_cuda_launched(s, "silu_mul");
}
