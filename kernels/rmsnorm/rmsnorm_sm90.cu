/* rmsnorm_sm90.cu - a block of 8 warps per row; a warp owns every eighth group of 128 elements, a
 * lane four neighbours of it, so that the quantiser's groups stay within a warp. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/rmsnorm/rmsnorm.h"
}

#define WARPS 8

template <typename T>
__global__ void __launch_bounds__(WARPS * 32) rmsnorm_kernel(td_rmsnorm_args a)
{
    __shared__ float part[32];
    const int64_t t = blockIdx.x;
    const int warp = threadIdx.x / 32, n_groups = (a.D + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    const T *x = (const T *)a.x + t * a.x_stride;
    const T *res = a.res == NULL ? NULL : (const T *)a.res + t * a.D;
    T *res_out = a.res_out == NULL ? NULL : (T *)a.res_out + t * a.D;
    T *y = (T *)a.y + t * a.y_stride;
    float sum = 0.0f;
    for (int g = warp; g < n_groups; g += WARPS) {
        td_group z = td_group_load(x, g, a.D);
        if (res != NULL)
            z = td_group_add(z, td_group_load(res, g, a.D));
        for (int i = 0; i < 4; i++)
            sum = fmaf(z.v[i], z.v[i], sum);
    }
    const float r = 1.0f / sqrtf(td_block_sum(sum, part) / (float)a.D + a.eps);
    for (int g = warp; g < n_groups; g += WARPS) {
        td_group z = td_group_load(x, g, a.D);
        if (res != NULL)
            z = td_group_add(z, td_group_load(res, g, a.D));
        if (res_out != NULL)
            td_group_store(z, res_out, g, a.D);
        const td_group w = td_group_load(a.w, g, a.D);
        for (int i = 0; i < 4; i++)
            z.v[i] = td_round<T>(w.v[i] * (z.v[i] * r));
        td_group_store(z, y, g, a.D);
        if (a.q != NULL)
            td_group_quantise(z, g, a.D, a.ue8m0, a.q + t * a.D, a.qs + t * n_groups);
    }
}

extern "C" td_status td_rmsnorm_cuda(const td_rmsnorm_args *a, td_stream *s)
{
    if (!td_rmsnorm_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    if (a->act == TD_F32)
        rmsnorm_kernel<float><<<(unsigned)a->T, WARPS * 32, 0, s->stream>>>(*a);
    else
        rmsnorm_kernel<td_bf16><<<(unsigned)a->T, WARPS * 32, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "rmsnorm");
}
