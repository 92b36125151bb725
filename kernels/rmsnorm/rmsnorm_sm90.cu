/* rmsnorm_sm90.cu - a block of 8 warps per row; a warp owns every eighth group of 128 elements, a
 * lane four neighbours of it, so that the quantiser's groups stay within a warp. Rows of whole,
 * aligned groups that fit are held in registers: all loads of a row are on their way at once, and
 * a row that is alone waits for memory once. Sums go in the same order either way. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/rmsnorm/rmsnorm.h"
}

#define WARPS 8
#define HELD 8 /* groups to a warp at most: rows of 8192 */
#define FEW_ROWS TD_CUDA_SMS
#define FEW_WARPS 32

/* Where a row's operands and results are. */
template <typename T> struct norm_row {
    const T *x, *res; /* res, res_out: NULL when there is none */
    T *res_out, *y;
    uint8_t *q; /* NULL: not wanted */
    float *qs;
    __device__ norm_row(const td_rmsnorm_args &a, int64_t t, int n_groups)
    {
        x = (const T *)a.x + t * a.x_stride;
        res = a.res == NULL ? NULL : (const T *)a.res + t * a.D;
        res_out = a.res_out == NULL ? NULL : (T *)a.res_out + t * a.D;
        y = (T *)a.y + t * a.y_stride;
        q = a.q == NULL ? NULL : a.q + t * a.D;
        qs = a.q == NULL ? NULL : a.qs + t * n_groups;
    }
};

__device__ static float sum_squares(td_group z, float sum)
{
    for (int i = 0; i < 4; i++)
        sum = fmaf(z.v[i], z.v[i], sum);
    return sum;
}

__device__ static float scale_of(float sum, float *part, const td_rmsnorm_args &a)
{
    return 1.0f / sqrtf(td_block_sum(sum, part) / (float)a.D + a.eps);
}

/* Group g of the sum z and of w to the results. */
template <typename T>
__device__ static void finish(td_group z, td_group w, float r, int g, const td_rmsnorm_args &a,
                              const norm_row<T> &row)
{
    if (row.res_out != NULL)
        td_group_store(z, row.res_out, g, a.D);
    for (int i = 0; i < 4; i++)
        z.v[i] = td_round<T>(w.v[i] * (z.v[i] * r));
    td_group_store(z, row.y, g, a.D);
    if (row.q != NULL)
        td_group_quantise(z, g, a.D, a.ue8m0, row.q, row.qs);
}

template <typename T>
__global__ void __launch_bounds__(WARPS * 32) rmsnorm_kernel(td_rmsnorm_args a)
{
    __shared__ float part[32];
    const int warp = threadIdx.x / 32, n_groups = (a.D + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    const norm_row<T> row(a, blockIdx.x, n_groups);
    float sum = 0.0f;
    for (int g = warp; g < n_groups; g += WARPS) {
        td_group z = td_group_load(row.x, g, a.D);
        if (row.res != NULL)
            z = td_group_add(z, td_group_load(row.res, g, a.D));
        sum = sum_squares(z, sum);
    }
    const float r = scale_of(sum, part, a);
    for (int g = warp; g < n_groups; g += WARPS) {
        td_group z = td_group_load(row.x, g, a.D);
        if (row.res != NULL)
            z = td_group_add(z, td_group_load(row.res, g, a.D));
        finish(z, td_group_load(a.w, g, a.D), r, g, a, row);
    }
}

/* Four neighbours as they stand in memory. */
template <typename T> struct alignas(4 * sizeof(T)) four {
    T v[4];
};

template <typename T> __device__ static td_group group_of(const four<T> &f)
{
    td_group z;
    for (int i = 0; i < 4; i++)
        z.v[i] = td_load(&f.v[i]);
    return z;
}

/* This lane's part of N groups of the warp, of W warps; of the row's last one again where there is
 * no more. */
template <typename T, int N, int W>
__device__ static void load_row(const T *row, int n_groups, four<T> *f)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int g = warp + j * W < n_groups ? warp + j * W : n_groups - 1;
        f[j] = *(const four<T> *)(row + g * TD_QUANT_GROUP + lane * 4);
    }
}

/* The same of x + res, or of x, and of w. */
template <typename T, int N, int W>
__device__ static void load_sum(const td_rmsnorm_args &a, const norm_row<T> &row, int n_groups,
                                td_group *z, four<float> *w)
{
    four<T> x[N], res[N];
    load_row<T, N, W>(row.x, n_groups, x);
    if (row.res != NULL)
        load_row<T, N, W>(row.res, n_groups, res);
    load_row<float, N, W>(a.w, n_groups, w);
#pragma unroll
    for (int j = 0; j < N; j++) {
        z[j] = group_of(x[j]);
        if (row.res != NULL)
            z[j] = td_group_add(z[j], group_of(res[j]));
    }
}

/* N groups to a warp. D is a multiple of 128 and every row aligned to four elements. */
template <typename T, int N>
__global__ void __launch_bounds__(WARPS * 32) rmsnorm_held_kernel(td_rmsnorm_args a)
{
    __shared__ float part[32];
    const int warp = threadIdx.x / 32, n_groups = a.D / TD_QUANT_GROUP;
    const norm_row<T> row(a, blockIdx.x, n_groups);
    four<float> w[N];
    td_group z[N];
    load_sum<T, N, WARPS>(a, row, n_groups, z, w);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++)
        if (warp + j * WARPS < n_groups)
            sum = sum_squares(z[j], sum);
    const float r = scale_of(sum, part, a);
#pragma unroll
    for (int j = 0; j < N; j++)
        if (warp + j * WARPS < n_groups)
            finish(z[j], group_of(w[j]), r, warp + j * WARPS, a, row);
}

/* Few long rows: 32 warps to a row, so that a warp has two groups to scale and quantise. The first
 * 8 of them sum, through shared memory, what they sum in the other forms. */
template <typename T>
__global__ void __launch_bounds__(FEW_WARPS * 32) rmsnorm_few_kernel(td_rmsnorm_args a)
{
    constexpr int N = HELD * WARPS / FEW_WARPS;
    __shared__ float part[32];
    __shared__ four<float> all[HELD * WARPS][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_groups = a.D / TD_QUANT_GROUP;
    const norm_row<T> row(a, blockIdx.x, n_groups);
    four<float> w[N];
    td_group z[N];
    load_sum<T, N, FEW_WARPS>(a, row, n_groups, z, w);
#pragma unroll
    for (int j = 0; j < N; j++)
        for (int i = 0; i < 4; i++)
            all[warp + j * FEW_WARPS][lane].v[i] = z[j].v[i];
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < HELD; j++)
        if (warp < WARPS && warp + j * WARPS < n_groups)
            sum = sum_squares(group_of(all[warp + j * WARPS][lane]), sum);
    const float r = scale_of(sum, part, a);
#pragma unroll
    for (int j = 0; j < N; j++)
        if (warp + j * FEW_WARPS < n_groups)
            finish(z[j], group_of(w[j]), r, warp + j * FEW_WARPS, a, row);
}

template <typename T> static int can_be_held(const td_rmsnorm_args *a)
{
    const uintptr_t addresses = (uintptr_t)a->x | (uintptr_t)a->res;
    return a->D % TD_QUANT_GROUP == 0 && a->D <= HELD * WARPS * TD_QUANT_GROUP &&
           addresses % (4 * sizeof(T)) == 0 && (a->T == 1 || a->x_stride % 4 == 0) &&
           (uintptr_t)a->w % (4 * sizeof(float)) == 0;
}

template <typename T> static void launch(const td_rmsnorm_args *a, td_stream *s)
{
    const unsigned n_rows = (unsigned)a->T;
    if (!can_be_held<T>(a))
        rmsnorm_kernel<T><<<n_rows, WARPS * 32, 0, s->stream>>>(*a);
    else if (a->D <= HELD / 4 * WARPS * TD_QUANT_GROUP)
        rmsnorm_held_kernel<T, HELD / 4><<<n_rows, WARPS * 32, 0, s->stream>>>(*a);
    else if (a->T <= FEW_ROWS)
        rmsnorm_few_kernel<T><<<n_rows, FEW_WARPS * 32, 0, s->stream>>>(*a);
    else
        rmsnorm_held_kernel<T, HELD><<<n_rows, WARPS * 32, 0, s->stream>>>(*a);
}

extern "C" td_status td_rmsnorm_cuda(const td_rmsnorm_args *a, td_stream *s)
{
    if (!td_rmsnorm_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    if (a->act == TD_F32)
        launch<float>(a, s);
    else
        launch<td_bf16>(a, s);
    return td_cuda_launched(s, "rmsnorm");
}
