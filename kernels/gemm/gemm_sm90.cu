/* gemm_sm90.cu - e4m3: few rows: a block per tile of 8 to 32 rows of x and 16 to 64 of w on wgmma,
 * see exact_tile.cuh, or with K's blocks spread over warpgroups and blocks, the same sums, see
 * exact_few.cuh (few columns, too); more: tiles of 32 to 128 rows of x and 128 of w, see
 * wide_tile.cuh. bf16: tiles of 8 to 64 rows of x and 64 of w, see bf16_tile.cuh, by a cluster of 1
 * to 8 blocks: where N is small K is split between them, by N and K alone, and the parts are added
 * in their order, so that a row's bits are the same in any batch; many rows of x: tiles of 64 to
 * 192 and 128 of w, in which the parts follow each other, see bf16_wide.cuh. f32, the generic path:
 * a block per tile, K in one. */
#include "kernels/cuda/bf16_wide.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exact_few.cuh"
#include "kernels/cuda/wide_tile.cuh"
extern "C" {
#include "kernels/gemm/gemm.h"
}

#define FEW_ROWS 16
#define MAX_SHARED (227 << 10) /* of a block */
#define MAX_FEW_BLOCKS 256     /* of K, for products of few tokens or columns */
#define LONG_FEW_BLOCKS 32     /* so many are worth their warpgroups where every SM has tiles */
#define WIDE_ROWS 33           /* and more: wide tiles, unless these are few */

/* The tile's rows of x: first .. first + n - 1 of M. */
__device__ static void number_rows(int32_t *index, int n, int first, int M)
{
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < n; i += blockDim.x * blockDim.y)
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

__global__ void __launch_bounds__(TD_TILE_THREADS) gemm_f32_kernel(td_gemm_args a, int m_tiles)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    const int m0 = (int)(blockIdx.x % m_tiles) * TD_TILE_F32_M;
    const int n0 = (int)(blockIdx.x / m_tiles) * TD_TILE_N;
    number_rows(index, TD_TILE_F32_M, m0, a.M);
    const gemm_store store = {a, m0, n0};
    td_tile_run_f32(tile_of(a, n0, index, sizeof(float)), store);
}

/* ---- bf16 ---- */

__device__ static td_bf16_place bf16_place(const td_gemm_args &a, int m0, int n0)
{
    return {(const td_bf16 *)a.x + m0 * a.x_stride, (const td_bf16 *)a.w + (int64_t)n0 * a.K,
            a.M - m0, a.N - n0};
}

/* The parts of the cluster's blocks in their order; each block stores some of the tile's elements.
 * part: the block's own, in dynamic shared memory. */
template <int BT>
__device__ static void store_parts(const float *part, int n_parts, const gemm_store &store)
{
    const int n_each = BT * TD_BF16_ROWS / n_parts, first = td_cluster_rank() * n_each;
    td_cluster_sync();
    for (int i = first + (int)threadIdx.x; i < first + n_each; i += td_bf16_tile<BT>::THREADS) {
        const int token = i / TD_BF16_ROWS, row = i % TD_BF16_ROWS;
        const int at = token * td_wgmma_results<TD_BF16_ROWS, BT>::PITCH + row;
        float v[TD_CLUSTER_MAX];
#pragma unroll
        for (int p = 0; p < TD_CLUSTER_MAX; p++)
            v[p] = p < n_parts ? td_cluster_peer(part, p)[at] : 0.0f;
        float sum = v[0];
#pragma unroll
        for (int p = 1; p < TD_CLUSTER_MAX; p++)
            sum = p < n_parts ? sum + v[p] : sum;
        store(token, row, sum);
    }
    td_cluster_sync(); /* nobody reads this block's part any more */
}

template <int BT, bool ALIGNED, int STAGES>
__global__ void __launch_bounds__(td_bf16_tile<BT>::THREADS)
    gemm_bf16_kernel(const __grid_constant__ td_gemm_args a, int m_tiles, int n_parts)
{
    extern __shared__ __align__(16) unsigned char shared[];
    typedef td_bf16_tile<BT> T;
    static_assert(td_wgmma_results<TD_BF16_ROWS, BT>::BYTES <= STAGES * T::STAGE_BYTES,
                  "a part takes the stages' place");
    unsigned char *stages = td_bf16_stages(shared);
    const int tile = (int)blockIdx.x / n_parts, rank = (int)blockIdx.x % n_parts;
    const int m0 = tile % m_tiles * BT, n0 = tile / m_tiles * TD_BF16_ROWS;
    const int n_blocks = (a.K + TD_TILE_K - 1) / TD_TILE_K;
    const td_bf16_args args = {bf16_place(a, m0, n0), a.x_stride, a.K, NULL};
    const gemm_store store = {a, m0, n0};
    float acc[BT / 2];
    td_bf16_sum<BT, ALIGNED, STAGES>(args, stages, n_blocks * rank / n_parts,
                                     n_blocks * (rank + 1) / n_parts, acc);
    if (n_parts == 1) {
        td_wgmma_store<TD_BF16_ROWS, BT, T::THREADS>((float *)stages, acc, store);
        return;
    }
    td_wgmma_leave<TD_BF16_ROWS, BT>((float *)stages, acc);
    store_parts<BT>((const float *)stages, n_parts, store);
}

/* How many parts K comes in: as many as there are SMs for when there is one tile of rows, each with
 * four blocks of K or more. Of N and K alone: every M gives the same sums. */
static int parts_of(int N, int K)
{
    const int64_t n_tiles = td_grid(N, TD_BF16_ROWS), n_blocks = td_grid(K, TD_TILE_K);
    int n = 1;
    while (n < TD_CLUSTER_MAX && 2 * n * n_tiles <= TD_CUDA_SMS && n_blocks >= 4 * 2 * n)
        n *= 2;
    return n;
}

/* Whether all blocks run at once with one to an SM: a cluster's are neighbours, and of the SMs a
 * GPU's parts may have some over. */
static bool fits_once(int64_t n_blocks, int n_ranks)
{
    return n_blocks <= (n_ranks > 2 ? TD_CUDA_SMS * 3 / 4 : TD_CUDA_SMS);
}

template <int BT, bool ALIGNED, int STAGES>
static td_status launch_stages(const td_gemm_args *a, td_stream *s)
{
    const unsigned m_tiles = td_grid(a->M, BT), n_tiles = td_grid(a->N, TD_BF16_ROWS);
    const int n_parts = parts_of(a->N, a->K);
    typedef td_bf16_tile<BT> T;
    return td_cluster_launch(s, "gemm", gemm_bf16_kernel<BT, ALIGNED, STAGES>,
                             m_tiles * n_tiles * (unsigned)n_parts, T::THREADS, T::bytes(STAGES),
                             n_parts, *a, (int)m_tiles, n_parts);
}

/* Where there is no more than a block to an SM, it has all of its shared memory: more loads in
 * flight for the same bits. */
template <int BT, int DEEP> static td_status launch_bf16(const td_gemm_args *a, td_stream *s)
{
    const int n_parts = parts_of(a->N, a->K);
    const int64_t n_tiles = (int64_t)td_grid(a->M, BT) * td_grid(a->N, TD_BF16_ROWS);
    if (fits_once(n_tiles * n_parts, n_parts))
        return launch_stages<BT, true, DEEP>(a, s);
    return launch_stages<BT, true, TD_TILE_STAGES>(a, s);
}

/* Many rows of y, to where a wide tile's threads put them. */
template <typename Y> struct place_of_y {
    const td_gemm_args &a;
    int m0, n0, n_rows, add;
    __device__ Y *token(int i) const
    {
        return m0 + i < a.M ? (Y *)a.y + (m0 + i) * a.y_stride + n0 : NULL;
    }
};

template <typename Y> struct bf16_job { /* Y: of y */
    td_gemm_args a;
    int64_t x_stride;
    int K, n_parts, width, m_tiles;
    __device__ int n_tiles() const
    {
        return m_tiles * ((a.N + TD_BF16_WIDE_ROWS - 1) / TD_BF16_WIDE_ROWS);
    }
    __device__ td_bf16_place place(int tile) const
    {
        return bf16_place(a, tile % m_tiles * width, tile / m_tiles * TD_BF16_WIDE_ROWS);
    }
    __device__ place_of_y<Y> out(int tile) const
    {
        const int n0 = tile / m_tiles * TD_BF16_WIDE_ROWS;
        return {a, tile % m_tiles * width, n0, a.N - n0, a.accumulate};
    }
};

template <int WIDTH, bool PARTS, typename Y>
__global__ void __launch_bounds__(TD_BF16_WIDE_THREADS, 1)
    gemm_bf16_wide_kernel(const __grid_constant__ bf16_job<Y> job)
{
    extern __shared__ __align__(16) unsigned char shared[];
    td_bf16_wide_run<WIDTH, PARTS>(job, shared);
}

template <int WIDTH, bool PARTS, typename Y>
static td_status launch_bf16_job(const td_gemm_args *a, td_stream *s)
{
    const int m_tiles = (int)td_grid(a->M, WIDTH);
    const bf16_job<Y> job = {*a, a->x_stride, a->K, parts_of(a->N, a->K), WIDTH, m_tiles};
    const size_t n_shared = td_bf16_wide<WIDTH>::BYTES;
    const void *kernel = (const void *)gemm_bf16_wide_kernel<WIDTH, PARTS, Y>;
    td_status st = td_cuda_allow_shared(s, kernel, n_shared, "gemm");
    if (st < 0)
        return st;
    const unsigned grid = td_bf16_wide_grid((int64_t)m_tiles * td_grid(a->N, TD_BF16_WIDE_ROWS));
    gemm_bf16_wide_kernel<WIDTH, PARTS, Y>
        <<<grid, TD_BF16_WIDE_THREADS, n_shared, s->stream>>>(job);
    return td_cuda_launched(s, "gemm");
}

template <int WIDTH, bool PARTS>
static td_status launch_bf16_wide(const td_gemm_args *a, td_stream *s)
{
    return a->y_dtype == TD_BF16 ? launch_bf16_job<WIDTH, PARTS, td_bf16>(a, s)
                                 : launch_bf16_job<WIDTH, PARTS, float>(a, s);
}

/* No choice here changes a bit of the result. */
static td_status launch_aligned_bf16(const td_gemm_args *a, td_stream *s)
{
    const bool in_parts = parts_of(a->N, a->K) > 1;
    const int64_t n_tiles = td_grid(a->N, TD_BF16_WIDE_ROWS);
    const int best = td_bf16_wide_width(n_tiles, a->M, in_parts ? 128 : 192); /* registers */
    if (a->M <= 8)
        return launch_bf16<8, 8>(a, s);
    if (a->M <= FEW_ROWS)
        return launch_bf16<16, 8>(a, s);
    if (a->M < WIDE_ROWS)
        return launch_bf16<32, 6>(a, s);
    if (a->K == 0 || !td_bf16_wide_enough(n_tiles * td_grid(a->M, best)))
        return launch_bf16<64, 5>(a, s);
    if (in_parts)
        return best == 64 ? launch_bf16_wide<64, true>(a, s) : launch_bf16_wide<128, true>(a, s);
    return best == 64    ? launch_bf16_wide<64, false>(a, s)
           : best == 128 ? launch_bf16_wide<128, false>(a, s)
                         : launch_bf16_wide<192, false>(a, s);
}

static td_status launch_any_bf16(const td_gemm_args *a, td_stream *s)
{
    const int64_t row_bits = a->K | (a->M > 1 ? a->x_stride : 0);
    if (((uintptr_t)a->x | (uintptr_t)a->w | (uintptr_t)row_bits * sizeof(td_bf16)) % 16 == 0)
        return launch_aligned_bf16(a, s);
    if (a->M <= FEW_ROWS)
        return launch_stages<16, false, TD_TILE_STAGES>(a, s);
    return launch_stages<64, false, TD_TILE_STAGES>(a, s);
}

/* ---- e4m3 ---- */

template <int R, int BT, bool ALIGNED>
__global__ void __launch_bounds__(td_exact_tile<R, BT>::THREADS)
    gemm_e4m3_kernel(const __grid_constant__ td_gemm_args a, int m_tiles)
{
    extern __shared__ __align__(16) unsigned char shared[];
    const td_exact_shared<R, BT> sh(shared);
    const int m0 = (int)(blockIdx.x % m_tiles) * BT, n0 = (int)(blockIdx.x / m_tiles) * R;
    number_rows(sh.index, BT, m0, a.M);
    const gemm_store store = {a, m0, n0};
    td_exact_run<R, BT, ALIGNED>(tile_of(a, n0, sh.index, 1), sh, store);
}

template <int R, int BT, bool ALIGNED>
static td_status launch_e4m3(const td_gemm_args *a, td_stream *s)
{
    typedef td_exact_tile<R, BT> T;
    const unsigned m_tiles = td_grid(a->M, BT), n_tiles = td_grid(a->N, R);
    const void *kernel = (const void *)gemm_e4m3_kernel<R, BT, ALIGNED>;
    td_status st = td_cuda_allow_shared(s, kernel, T::BYTES, "gemm");
    if (st < 0)
        return st;
    gemm_e4m3_kernel<R, BT, ALIGNED>
        <<<m_tiles * n_tiles, T::THREADS, T::BYTES, s->stream>>>(*a, (int)m_tiles);
    return td_cuda_launched(s, "gemm");
}

/* Few tokens, or few columns: K's blocks over warpgroups, and where there are few tiles over the
 * blocks of a cluster, see exact_few.cuh. */
template <int BT>
__global__ void __launch_bounds__(td_exact_few<BT>::THREADS)
    gemm_e4m3_few_kernel(const __grid_constant__ td_gemm_args a, int m_tiles, int n_ranks)
{
    extern __shared__ __align__(16) unsigned char shared[];
    const td_exact_few_shared<BT> sh(shared);
    const int tile = (int)blockIdx.x / n_ranks;
    const int m0 = tile % m_tiles * BT, n0 = tile / m_tiles * td_exact_few<BT>::R;
    const gemm_store store = {a, m0, n0};
    number_rows(sh.index, BT, m0, a.M);
    td_exact_few_run<BT>(tile_of(a, n0, sh.index, 1), sh, a.M - m0 < BT ? a.M - m0 : BT, n_ranks,
                         store);
}

/* TD_PENDING: another form is faster, as measured on an H100, or this one has no room. */
template <int BT> static td_status launch_few(const td_gemm_args *a, td_stream *s)
{
    typedef td_exact_few<BT> F;
    const unsigned m_tiles = td_grid(a->M, BT), n_tiles = td_grid(a->N, F::R);
    const int64_t n_blocks = td_grid(a->K, TD_TILE_K), tiles = (int64_t)m_tiles * n_tiles;
    int n = 1;
    while (n < TD_CLUSTER_MAX && fits_once(2 * n * tiles, 2 * n) && n_blocks >= 4 * n)
        n *= 2;
    const bool faster = a->M > FEW_ROWS ? n > 2 : n > 1 || n_blocks >= LONG_FEW_BLOCKS;
    if (!faster || n_blocks > MAX_FEW_BLOCKS || F::bytes((int)n_blocks) > MAX_SHARED)
        return TD_PENDING;
    return td_cluster_launch(s, "gemm", gemm_e4m3_few_kernel<BT>, (unsigned)tiles * (unsigned)n,
                             dim3(F::T::THREADS, F::GROUPS), F::bytes((int)n_blocks), n, *a,
                             (int)m_tiles, n);
}

/* No tile changes a bit of the result. */
static const struct e4m3_choice {
    int R, BT;
    td_status (*launch)(const td_gemm_args *a, td_stream *s);
} e4m3_choices[] = {
    {16, 8, launch_e4m3<16, 8, true>},   {32, 8, launch_e4m3<32, 8, true>},
    {64, 8, launch_e4m3<64, 8, true>},   {16, 16, launch_e4m3<16, 16, true>},
    {64, 16, launch_e4m3<64, 16, true>}, {32, 32, launch_e4m3<32, 32, true>},
    {64, 32, launch_e4m3<64, 32, true>},
};

static int64_t e4m3_cost(const e4m3_choice *c, const td_gemm_args *a)
{
    const int64_t n_blocks = (int64_t)td_grid(a->M, c->BT) * td_grid(a->N, c->R);
    return td_exact_cost(n_blocks, c->R + (a->M < c->BT ? a->M : c->BT));
}

/* ---- e4m3, many rows ---- */

template <typename Y> struct wide_job { /* Y: of y */
    td_gemm_args a;
    const uint8_t *x;
    const float *xs;
    int64_t x_stride;
    int K, tokens, m_tiles; /* tokens of a tile: a width of td_wide_width()'s */
    __device__ int n_tiles() const
    {
        return m_tiles * ((a.N + TD_WIDE_ROWS - 1) / TD_WIDE_ROWS);
    }
    __device__ td_wide_place place(int tile) const
    {
        const int left = a.M - tile % m_tiles * tokens, n0 = tile / m_tiles * TD_WIDE_ROWS;
        const int n_blocks = (K + TD_TILE_K - 1) / TD_TILE_K;
        return {(const uint8_t *)a.w + (int64_t)n0 * K,
                a.ws + (int64_t)(n0 / TD_QUANT_GROUP) * n_blocks, a.N - n0,
                left < tokens ? left : tokens};
    }
    __device__ int32_t row(int tile, int token) const
    {
        return tile % m_tiles * tokens + token;
    }
    __device__ place_of_y<Y> out(int tile) const
    {
        const int n0 = tile / m_tiles * TD_WIDE_ROWS;
        return {a, tile % m_tiles * tokens, n0, a.N - n0, a.accumulate};
    }
};

template <typename Y>
__global__ void __launch_bounds__(TD_WIDE_THREADS, 1)
    gemm_wide_kernel(const __grid_constant__ wide_job<Y> job)
{
    extern __shared__ __align__(16) unsigned char shared[];
    td_wide_run(job, shared);
}

template <typename Y> static td_status launch_wide(const td_gemm_args *a, td_stream *s)
{
    const int64_t n_tiles = td_grid(a->N, TD_WIDE_ROWS);
    int best = TD_WIDE_TOKENS;
    for (int width = 32; width < TD_WIDE_TOKENS; width += 32)
        if (td_wide_cost(n_tiles * td_grid(a->M, width), width) <
            td_wide_cost(n_tiles * td_grid(a->M, best), best))
            best = width;
    const int m_tiles = (int)td_grid(a->M, best);
    const wide_job<Y> job = {*a, (const uint8_t *)a->x, a->xs, a->x_stride, a->K, best, m_tiles};
    td_status st =
        td_cuda_allow_shared(s, (const void *)gemm_wide_kernel<Y>, TD_WIDE_BYTES, "gemm");
    if (st < 0)
        return st;
    const unsigned grid = td_wide_grid(n_tiles * m_tiles);
    gemm_wide_kernel<Y><<<grid, TD_WIDE_THREADS, TD_WIDE_BYTES, s->stream>>>(job);
    return td_cuda_launched(s, "gemm");
}

static td_status launch_any_e4m3(const td_gemm_args *a, td_stream *s)
{
    if (((uintptr_t)a->x | (uintptr_t)a->w | (uintptr_t)a->K |
         (a->M > 1 ? (uintptr_t)a->x_stride : 0)) %
            16 !=
        0)
        return launch_e4m3<64, 32, false>(a, s);
    const td_status few = a->M <= 8    ? launch_few<8>(a, s)
                          : a->M <= 16 ? launch_few<16>(a, s)
                                       : launch_few<32>(a, s);
    if (few != TD_PENDING)
        return few;
    if (a->M >= WIDE_ROWS)
        return a->y_dtype == TD_BF16 ? launch_wide<td_bf16>(a, s) : launch_wide<float>(a, s);
    const e4m3_choice *best = &e4m3_choices[0];
    for (size_t i = 1; i < sizeof(e4m3_choices) / sizeof(*e4m3_choices); i++)
        if (e4m3_cost(&e4m3_choices[i], a) < e4m3_cost(best, a))
            best = &e4m3_choices[i];
    return best->launch(a, s);
}

extern "C" td_status td_gemm_cuda(const td_gemm_args *a, td_stream *s)
{
    if (!td_gemm_valid(a))
        return TD_BAD_SHAPE;
    if (a->M == 0 || a->N == 0 || (a->K == 0 && a->accumulate))
        return TD_OK;
    if (a->dtype == TD_E4M3 && a->K > 0)
        return launch_any_e4m3(a, s);
    if (a->dtype != TD_F32) /* K = 0: zeros, whatever the type */
        return launch_any_bf16(a, s);
    const unsigned m_tiles = td_grid(a->M, TD_TILE_F32_M), n_tiles = td_grid(a->N, TD_TILE_N);
    gemm_f32_kernel<<<m_tiles * n_tiles, TD_TILE_THREADS, 0, s->stream>>>(*a, (int)m_tiles);
    return td_cuda_launched(s, "gemm");
}
