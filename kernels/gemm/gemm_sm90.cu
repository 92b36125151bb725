/* gemm_sm90.cu - the generic path: a block per tile of 64 (16 for few rows) x 64, see tile.cuh. */
#include "kernels/cuda/tile.cuh"
extern "C" {
#include "kernels/gemm/gemm.h"
}

#define FEW_ROWS 16

/* The tile's rows of x: first .. first + n - 1 of M. */
__device__ static void number_rows(int32_t *index, int n, int first, int M)
{
    for (int i = threadIdx.x; i < n; i += TD_TILE_THREADS)
        index[i] = first + i < M ? first + i : -1;
    __syncthreads();
}

struct gemm_store {
    td_gemm_args a;
    int m0, n0;
    __device__ void operator()(int row, int col, float v) const
    {
        const int m = m0 + row, n = n0 + col;
        if (m >= a.M || n >= a.N)
            return;
        const int64_t at = m * a.y_stride + n;
        if (a.y_dtype == TD_BF16)
            ((td_bf16 *)a.y)[at] = td_f32_to_bf16(v);
        else
            ((float *)a.y)[at] = a.accumulate ? ((const float *)a.y)[at] + v : v;
    }
};

__device__ static td_tile_args tile_of(const td_gemm_args &a, int n0, const int32_t *index,
                                       size_t w_size)
{
    const int n_blocks = (a.K + TD_TILE_K - 1) / TD_TILE_K;
    td_tile_args t = {a.x, a.xs, index, a.x_stride, NULL, NULL, a.N - n0, a.K};
    t.w = (const char *)a.w + (int64_t)n0 * a.K * (int64_t)w_size;
    t.ws = a.ws + (int64_t)(n0 / TD_QUANT_GROUP) * n_blocks;
    return t;
}

template <typename E, int BM, bool ALIGNED>
__global__ void __launch_bounds__(TD_TILE_THREADS) gemm_kernel(td_gemm_args a, int m_tiles)
{
    extern __shared__ __align__(16) unsigned char shared[];
    int32_t *index = (int32_t *)shared;
    const int m0 = (int)(blockIdx.x % m_tiles) * BM, n0 = (int)(blockIdx.x / m_tiles) * TD_TILE_N;
    number_rows(index, BM, m0, a.M);
    const gemm_store store = {a, m0, n0};
    td_tile_run<E, BM, ALIGNED>(tile_of(a, n0, index, sizeof(E)), shared + BM * sizeof(int32_t),
                                store);
}

__global__ void __launch_bounds__(TD_TILE_THREADS) gemm_f32_kernel(td_gemm_args a, int m_tiles)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    const int m0 = (int)(blockIdx.x % m_tiles) * TD_TILE_F32_M;
    const int n0 = (int)(blockIdx.x / m_tiles) * TD_TILE_N;
    number_rows(index, TD_TILE_F32_M, m0, a.M);
    const gemm_store store = {a, m0, n0};
    td_tile_run_f32(tile_of(a, n0, index, sizeof(float)), store);
}

template <typename E, int BM, bool ALIGNED>
static td_status launch(const td_gemm_args *a, td_stream *s)
{
    const size_t n_shared = td_tile_shared<E, BM>();
    const unsigned m_tiles = td_grid(a->M, BM), n_tiles = td_grid(a->N, TD_TILE_N);
    const void *kernel = (const void *)gemm_kernel<E, BM, ALIGNED>;
    td_status st = td_cuda_allow_shared(s, kernel, n_shared, "gemm");
    if (st < 0)
        return st;
    gemm_kernel<E, BM, ALIGNED>
        <<<m_tiles * n_tiles, TD_TILE_THREADS, n_shared, s->stream>>>(*a, (int)m_tiles);
    return td_cuda_launched(s, "gemm");
}

template <typename E> static td_status launch_any(const td_gemm_args *a, td_stream *s)
{
    const int64_t x_row = a->x_stride * (int64_t)sizeof(E), w_row = (int64_t)a->K * sizeof(E);
    const bool aligned =
        ((uintptr_t)a->x | (uintptr_t)a->w | (uintptr_t)w_row | (a->M > 1 ? (uintptr_t)x_row : 0)) %
            16 ==
        0;
    if (a->M <= FEW_ROWS)
        return aligned ? launch<E, 16, true>(a, s) : launch<E, 16, false>(a, s);
    return aligned ? launch<E, 64, true>(a, s) : launch<E, 64, false>(a, s);
}

extern "C" td_status td_gemm_cuda(const td_gemm_args *a, td_stream *s)
{
    if (!td_gemm_valid(a))
        return TD_BAD_SHAPE;
    if (a->M == 0 || a->N == 0 || (a->K == 0 && a->accumulate))
        return TD_OK;
    if (a->dtype == TD_E4M3)
        return launch_any<uint8_t>(a, s);
    if (a->dtype == TD_BF16)
        return launch_any<td_bf16>(a, s);
    const unsigned m_tiles = td_grid(a->M, TD_TILE_F32_M), n_tiles = td_grid(a->N, TD_TILE_N);
    gemm_f32_kernel<<<m_tiles * n_tiles, TD_TILE_THREADS, 0, s->stream>>>(*a, (int)m_tiles);
    return td_cuda_launched(s, "gemm");
}
