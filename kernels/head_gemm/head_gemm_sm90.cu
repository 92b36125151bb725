/* head_gemm_sm90.cu - gemm's tiles, one head after the other along the grid. */
#include "kernels/cuda/tile.cuh"
extern "C" {
#include "kernels/head_gemm/head_gemm.h"
}

#define FEW_ROWS 16

struct head_place {
    int h, m0, n0;
};

/* Tiles of a head stand next to each other, rows first: they share the head's weights. */
__device__ static head_place place_of(const td_head_gemm_args &a, int tile_rows)
{
    const int m_tiles = (a.T + tile_rows - 1) / tile_rows;
    const int n_tiles = (a.N + TD_TILE_N - 1) / TD_TILE_N;
    const int64_t tile = blockIdx.x, per_head = (int64_t)m_tiles * n_tiles;
    const int in_head = (int)(tile % per_head);
    return {(int)(tile / per_head), in_head % m_tiles * tile_rows, in_head / m_tiles * TD_TILE_N};
}

template <typename E> struct head_store {
    td_head_gemm_args a;
    head_place p;
    __device__ void operator()(int row, int col, float v) const
    {
        const int t = p.m0 + row, n = p.n0 + col;
        if (t < a.T && n < a.N)
            td_store((E *)a.y + t * a.y_row + p.h * a.y_head + n, v);
    }
};

template <typename E>
__device__ static td_tile_args tile_of(const td_head_gemm_args &a, head_place p, int32_t *index,
                                       int tile_rows)
{
    for (int i = threadIdx.x; i < tile_rows; i += TD_TILE_THREADS)
        index[i] = p.m0 + i < a.T ? p.m0 + i : -1;
    __syncthreads();
    td_tile_args t = {
        (const E *)a.x + p.h * a.x_head, NULL, index, a.x_row, NULL, NULL, a.N - p.n0, a.K};
    t.w = (const E *)a.w + ((int64_t)p.h * a.N + p.n0) * a.K;
    return t;
}

template <int BM, bool ALIGNED>
__global__ void __launch_bounds__(TD_TILE_THREADS) head_gemm_kernel(td_head_gemm_args a)
{
    extern __shared__ __align__(16) unsigned char shared[];
    const head_place p = place_of(a, BM);
    const head_store<td_bf16> store = {a, p};
    const td_tile_args t = tile_of<td_bf16>(a, p, (int32_t *)shared, BM);
    td_tile_run<td_bf16, BM, ALIGNED>(t, shared + BM * sizeof(int32_t), store);
}

__global__ void __launch_bounds__(TD_TILE_THREADS) head_gemm_f32_kernel(td_head_gemm_args a)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    const head_place p = place_of(a, TD_TILE_F32_M);
    const head_store<float> store = {a, p};
    td_tile_run_f32(tile_of<float>(a, p, index, TD_TILE_F32_M), store);
}

static unsigned n_tiles(const td_head_gemm_args *a, int tile_rows)
{
    return td_grid(a->T, tile_rows) * td_grid(a->N, TD_TILE_N) * (unsigned)a->H;
}

template <int BM, bool ALIGNED> static td_status launch(const td_head_gemm_args *a, td_stream *s)
{
    const size_t n_shared = td_tile_shared<td_bf16, BM>();
    const void *kernel = (const void *)head_gemm_kernel<BM, ALIGNED>;
    td_status st = td_cuda_allow_shared(s, kernel, n_shared, "head_gemm");
    if (st < 0)
        return st;
    head_gemm_kernel<BM, ALIGNED><<<n_tiles(a, BM), TD_TILE_THREADS, n_shared, s->stream>>>(*a);
    return td_cuda_launched(s, "head_gemm");
}

extern "C" td_status td_head_gemm_cuda(const td_head_gemm_args *a, td_stream *s)
{
    if (!td_head_gemm_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->H == 0 || a->N == 0)
        return TD_OK;
    if (a->act == TD_F32) {
        head_gemm_f32_kernel<<<n_tiles(a, TD_TILE_F32_M), TD_TILE_THREADS, 0, s->stream>>>(*a);
        return td_cuda_launched(s, "head_gemm");
    }
    const uintptr_t strides = (uintptr_t)(a->T > 1 ? a->x_row : 0) |
                              (uintptr_t)(a->H > 1 ? a->x_head : 0) | (uintptr_t)a->K;
    const bool aligned = ((uintptr_t)a->x | (uintptr_t)a->w | strides * sizeof(td_bf16)) % 16 == 0;
    if (a->T <= FEW_ROWS)
        return aligned ? launch<16, true>(a, s) : launch<16, false>(a, s);
    return aligned ? launch<64, true>(a, s) : launch<64, false>(a, s);
}
