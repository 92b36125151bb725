/* layernorm_sm90.cu - a warp per row: the indexer's keys are 128 wide, one group of four elements
 * to a lane. Wider rows are read three times, out of the first-level cache. A lane reads and writes
 * the same elements in every pass, so y may stand where x stands. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/layernorm/layernorm.h"
}

#define WARPS 8 /* rows of a block */

template <typename T>
__global__ void __launch_bounds__(WARPS * 32) layernorm_kernel(td_layernorm_args a)
{
    const int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (t >= a.T)
        return; /* the whole warp: warps do not meet */
    const int n_groups = (a.D + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    const T *x = (const T *)a.x + t * a.D;
    T *y = (T *)a.y + t * a.D;
    float sum = 0.0f, squares = 0.0f;
    for (int g = 0; g < n_groups; g++) {
        const td_group z = td_group_load(x, g, a.D);
        for (int i = 0; i < 4; i++)
            sum += z.v[i]; /* 0 past the row's end */
    }
    const float mean = td_warp_sum(sum) / (float)a.D;
    for (int g = 0; g < n_groups; g++) {
        const td_group z = td_group_load(x, g, a.D);
        const int count = td_group_count(g, a.D);
        for (int i = 0; i < 4; i++)
            if (i < count)
                squares = fmaf(z.v[i] - mean, z.v[i] - mean, squares);
    }
    const float r = 1.0f / sqrtf(td_warp_sum(squares) / (float)a.D + a.eps);
    for (int g = 0; g < n_groups; g++) {
        td_group z = td_group_load(x, g, a.D);
        const td_group w = td_group_load(a.w, g, a.D), b = td_group_load(a.b, g, a.D);
        for (int i = 0; i < 4; i++)
            z.v[i] = (z.v[i] - mean) * r * w.v[i] + b.v[i];
        td_group_store(z, y, g, a.D);
    }
}

extern "C" td_status td_layernorm_cuda(const td_layernorm_args *a, td_stream *s)
{
    if (!td_layernorm_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    const unsigned grid = td_grid(a->T, WARPS);
    if (a->act == TD_F32)
        layernorm_kernel<float><<<grid, WARPS * 32, 0, s->stream>>>(*a);
    else
        layernorm_kernel<td_bf16><<<grid, WARPS * 32, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "layernorm");
}
