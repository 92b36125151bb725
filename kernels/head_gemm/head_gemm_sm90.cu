/* head_gemm_sm90.cu - gemm's tiles, one head after the other along the grid: of bf16 8 to 64 rows
 * of x and 64 of w (bf16_tile.cuh), for many rows 64 to 192 and 128 (bf16_wide.cuh), which change
 * no bit; of f32 the generic ones. K in one. */
#include "kernels/cuda/bf16_wide.cuh"
extern "C" {
#include "kernels/head_gemm/head_gemm.h"
}

#define WIDE_ROWS 33 /* and more: wide tiles, if there are enough of them */

struct head_place {
    int h, m0, n0;
};

/* Tiles of a head stand next to each other, rows first: they share the head's weights. */
__device__ static head_place place_of(const td_head_gemm_args &a, int tile, int tile_rows,
                                      int tile_columns)
{
    const int m_tiles = (a.T + tile_rows - 1) / tile_rows;
    const int n_tiles = (a.N + tile_columns - 1) / tile_columns;
    const int in_head = tile % (m_tiles * n_tiles);
    return {tile / (m_tiles * n_tiles), in_head % m_tiles * tile_rows,
            in_head / m_tiles * tile_columns};
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

static unsigned n_tiles(const td_head_gemm_args *a, int tile_rows, int tile_columns)
{
    return td_grid(a->T, tile_rows) * td_grid(a->N, tile_columns) * (unsigned)a->H;
}

__global__ void __launch_bounds__(TD_TILE_THREADS) head_gemm_f32_kernel(td_head_gemm_args a)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    const head_place p = place_of(a, (int)blockIdx.x, TD_TILE_F32_M, TD_TILE_N);
    const head_store<float> store = {a, p};
    for (int i = threadIdx.x; i < TD_TILE_F32_M; i += TD_TILE_THREADS)
        index[i] = p.m0 + i < a.T ? p.m0 + i : -1;
    __syncthreads();
    td_tile_args t = {
        (const float *)a.x + p.h * a.x_head, NULL, index, a.x_row, NULL, NULL, a.N - p.n0, a.K};
    t.w = (const float *)a.w + ((int64_t)p.h * a.N + p.n0) * a.K;
    td_tile_run_f32(t, store);
}

/* ---- bf16 ---- */

__device__ static td_bf16_place bf16_place(const td_head_gemm_args &a, head_place p)
{
    return {(const td_bf16 *)a.x + p.h * a.x_head + p.m0 * a.x_row,
            (const td_bf16 *)a.w + ((int64_t)p.h * a.N + p.n0) * a.K, a.T - p.m0, a.N - p.n0};
}

template <int BT, bool ALIGNED>
__global__ void __launch_bounds__(td_bf16_tile<BT>::THREADS)
    head_gemm_kernel(const __grid_constant__ td_head_gemm_args a)
{
    extern __shared__ __align__(16) unsigned char shared[];
    unsigned char *stages = td_bf16_stages(shared);
    const head_place p = place_of(a, (int)blockIdx.x, BT, TD_BF16_ROWS);
    const head_store<td_bf16> store = {a, p};
    const td_bf16_args args = {bf16_place(a, p), a.x_row, a.K, NULL};
    td_bf16_run<BT, ALIGNED>(args, stages, store);
}

template <int BT, bool ALIGNED> static td_status launch(const td_head_gemm_args *a, td_stream *s)
{
    typedef td_bf16_tile<BT> T;
    const size_t n_shared = T::bytes(TD_TILE_STAGES);
    const void *kernel = (const void *)head_gemm_kernel<BT, ALIGNED>;
    td_status st = td_cuda_allow_shared(s, kernel, n_shared, "head_gemm");
    if (st < 0)
        return st;
    const unsigned n_blocks = n_tiles(a, BT, TD_BF16_ROWS);
    head_gemm_kernel<BT, ALIGNED><<<n_blocks, T::THREADS, n_shared, s->stream>>>(*a);
    return td_cuda_launched(s, "head_gemm");
}

struct wide_job {
    td_head_gemm_args a;
    int64_t x_stride;
    int K, width, tiles;
    __device__ int n_tiles() const
    {
        return tiles;
    }
    __device__ td_bf16_place place(int tile) const
    {
        return bf16_place(a, place_of(a, tile, width, TD_BF16_WIDE_ROWS));
    }
    struct rows_of_y {
        const td_head_gemm_args &a;
        head_place p;
        int n_rows, add;
        __device__ td_bf16 *token(int i) const
        {
            return p.m0 + i < a.T ? (td_bf16 *)a.y + (p.m0 + i) * a.y_row + p.h * a.y_head + p.n0
                                  : NULL;
        }
    };
    __device__ rows_of_y out(int tile) const
    {
        const head_place p = place_of(a, tile, width, TD_BF16_WIDE_ROWS);
        return {a, p, a.N - p.n0, 0};
    }
};

template <int WIDTH>
__global__ void __launch_bounds__(TD_BF16_WIDE_THREADS, 1)
    head_gemm_wide_kernel(const __grid_constant__ wide_job job)
{
    extern __shared__ __align__(16) unsigned char shared[];
    td_bf16_wide_run<WIDTH, false>(job, shared);
}

template <int WIDTH> static td_status launch_wide(const td_head_gemm_args *a, td_stream *s)
{
    const unsigned tiles = n_tiles(a, WIDTH, TD_BF16_WIDE_ROWS);
    const wide_job job = {*a, a->x_row, a->K, WIDTH, (int)tiles};
    const size_t n_shared = td_bf16_wide<WIDTH>::BYTES;
    const void *kernel = (const void *)head_gemm_wide_kernel<WIDTH>;
    td_status st = td_cuda_allow_shared(s, kernel, n_shared, "head_gemm");
    if (st < 0)
        return st;
    const unsigned grid = td_bf16_wide_grid(tiles);
    head_gemm_wide_kernel<WIDTH><<<grid, TD_BF16_WIDE_THREADS, n_shared, s->stream>>>(job);
    return td_cuda_launched(s, "head_gemm");
}

/* No choice here changes a bit of the result. */
static td_status launch_aligned(const td_head_gemm_args *a, td_stream *s)
{
    const int64_t row_tiles = (int64_t)td_grid(a->N, TD_BF16_WIDE_ROWS) * a->H;
    const int width = td_bf16_wide_width(row_tiles, a->T, 192);
    if (a->T <= 8)
        return launch<8, true>(a, s);
    if (a->T <= 16)
        return launch<16, true>(a, s);
    if (a->T < WIDE_ROWS)
        return launch<32, true>(a, s);
    if (a->K == 0 || !td_bf16_wide_enough(row_tiles * td_grid(a->T, width)))
        return launch<64, true>(a, s);
    return width == 64    ? launch_wide<64>(a, s)
           : width == 128 ? launch_wide<128>(a, s)
                          : launch_wide<192>(a, s);
}

extern "C" td_status td_head_gemm_cuda(const td_head_gemm_args *a, td_stream *s)
{
    if (!td_head_gemm_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->H == 0 || a->N == 0)
        return TD_OK;
    if (a->act == TD_F32) {
        const unsigned n_blocks = n_tiles(a, TD_TILE_F32_M, TD_TILE_N);
        head_gemm_f32_kernel<<<n_blocks, TD_TILE_THREADS, 0, s->stream>>>(*a);
        return td_cuda_launched(s, "head_gemm");
    }
    const uintptr_t strides = (uintptr_t)(a->T > 1 ? a->x_row : 0) |
                              (uintptr_t)(a->H > 1 ? a->x_head : 0) | (uintptr_t)a->K;
    if (((uintptr_t)a->x | (uintptr_t)a->w | strides * sizeof(td_bf16)) % 16 == 0)
        return launch_aligned(a, s);
    return a->T <= 16 ? launch<16, false>(a, s) : launch<64, false>(a, s);
}
