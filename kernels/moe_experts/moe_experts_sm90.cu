/* moe_experts_sm90.cu - (token, expert) pairs are sorted by expert on the device, then two grouped
 * products on the tiles of gemm (exact_tile.cuh and wide_tile.cuh for e4m3, bf16_tile.cuh, tile.cuh
 * for f32) with silu (and the quantiser) between them, then the sum in top-k order. Expert counts
 * stay in device memory; the grid is for the worst case, and tiles that nobody fills end at once
 * (wide ones: a block to an SM takes those that there are). The second product and the sum go in
 * slices of D that bound the f32 results of single experts; each weight is read once by a chunk. */
#include "kernels/cuda/bf16_tile.cuh"
#include "kernels/cuda/exact_tile.cuh"
#include "kernels/cuda/group.cuh"
#include "kernels/cuda/wide_tile.cuh"
#include "kernels/moe_experts/moe_experts_plan.cuh"
extern "C" {
#include "kernels/moe_experts/moe_experts.h"
}

/* Of scratch memory, for results of the products. A chunk reads every weight: it has to be large.
 */
#define BOTH_BYTES ((int64_t)512 << 20)
#define PART_BYTES ((int64_t)256 << 20)
#define TILE_FEW 16
#define TILE_MANY 64

/* ---- the two products ---- */

struct place { /* of a tile */
    int tile, n0, expert;
    bool is_up;
};

/* Number i of the places. N columns from `first` on. Gate and up stand side by side: column tiles
 * of gate first, then those of up. */
__device__ static place place_of(const chunk &c, int i, int first, int N, int n_matrices, int width)
{
    const int n_tiles = (N + width - 1) / width * n_matrices, col = i % n_tiles;
    place p;
    p.tile = i / n_tiles;
    p.is_up = col >= n_tiles / n_matrices && n_matrices == 2;
    p.n0 = (p.is_up ? col - n_tiles / 2 : col) * width + first;
    p.expert = c.tile_expert[p.tile];
    return p;
}

/* The block's own; false: it has none. */
__device__ static bool find_place(const chunk &c, int first, int N, int n_matrices, int width,
                                  place *p)
{
    const int n_tiles = (N + width - 1) / width * n_matrices;
    if ((int)(blockIdx.x / n_tiles) >= *c.n_tiles)
        return false;
    *p = place_of(c, (int)blockIdx.x, first, N, n_matrices, width);
    return true;
}

/* Rows n0.. of an expert's matrix [N, K] with its scales. */
__device__ static void set_weights(td_tile_args *t, const void *w, const float *ws, place p, int N,
                                   int K, size_t size)
{
    const int64_t n_blocks = (K + TD_TILE_K - 1) / TD_TILE_K;
    const int64_t n_rows = (N + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    t->w = (const char *)w + ((int64_t)p.expert * N + p.n0) * K * (int64_t)size;
    t->ws = ws == NULL ? NULL : ws + (p.expert * n_rows + p.n0 / TD_QUANT_GROUP) * n_blocks;
    t->n_cols = N - p.n0;
    t->K = K;
}

/* The rows that the tile multiplies: tokens for the first product, pairs for the second. */
__device__ static void index_rows(const chunk &c, place p, int32_t *index, int divide)
{
    for (int i = threadIdx.x; i < c.tile_rows; i += (int)blockDim.x) {
        const int32_t pair = c.slots[p.tile * c.tile_rows + i];
        index[i] = pair < 0 ? -1 : pair / divide;
    }
    __syncthreads();
}

template <typename A> struct both_store {
    const chunk &c;
    place p;
    __device__ void operator()(int row, int col, float v) const
    {
        const int32_t pair = c.slots[p.tile * c.tile_rows + row];
        const int n = p.n0 + col;
        if (pair >= 0 && n < c.a.I)
            td_store((A *)c.both + (int64_t)pair * 2 * c.a.I + (p.is_up ? c.a.I : 0) + n, v);
    }
};

struct part_store {
    const chunk &c;
    place p;
    __device__ void operator()(int row, int col, float v) const
    {
        const int32_t pair = c.slots[p.tile * c.tile_rows + row];
        const int n = p.n0 + col;
        if (pair >= 0 && n < c.slice + c.n_slice)
            c.part[(int64_t)pair * c.n_slice + n - c.slice] = v;
    }
};

__device__ static td_tile_args first_tile(const chunk &c, place p, int32_t *index, size_t size)
{
    td_tile_args t = {c.a.x, c.a.xs, index, c.a.D, NULL, NULL, 0, 0};
    index_rows(c, p, index, c.a.K);
    set_weights(&t, p.is_up ? c.a.up : c.a.gate, p.is_up ? c.a.up_s : c.a.gate_s, p, c.a.I, c.a.D,
                size);
    return t;
}

__device__ static td_tile_args second_tile(const chunk &c, place p, int32_t *index, size_t size)
{
    td_tile_args t = {c.h, c.hs, index, c.a.I, NULL, NULL, 0, 0};
    index_rows(c, p, index, 1);
    set_weights(&t, c.a.down, c.a.down_s, p, c.a.D, c.a.I, size);
    return t;
}

/* bf16. Dynamic shared memory: the index, then the stages. */
__device__ static td_bf16_args bf16_args(const td_tile_args &t)
{
    return {{(const td_bf16 *)t.x, (const td_bf16 *)t.w, 0, t.n_cols}, t.x_stride, t.K, t.index};
}

template <int BM, bool ALIGNED>
__global__ void __launch_bounds__(TD_TILE_THREADS) gate_up_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    place p;
    if (!find_place(c, 0, c.a.I, 2, TD_TILE_N, &p))
        return;
    const td_tile_args t = first_tile(c, p, (int32_t *)shared, sizeof(td_bf16));
    const both_store<td_bf16> store = {c, p};
    td_bf16_run<BM, ALIGNED>(bf16_args(t), td_bf16_stages(shared + BM * sizeof(int32_t)), store);
}

template <int BM, bool ALIGNED>
__global__ void __launch_bounds__(TD_TILE_THREADS) down_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    place p;
    if (!find_place(c, c.slice, c.n_slice, 1, TD_TILE_N, &p))
        return;
    const td_tile_args t = second_tile(c, p, (int32_t *)shared, sizeof(td_bf16));
    const part_store store = {c, p};
    td_bf16_run<BM, ALIGNED>(bf16_args(t), td_bf16_stages(shared + BM * sizeof(int32_t)), store);
}

__global__ void __launch_bounds__(TD_TILE_THREADS)
    gate_up_f32_kernel(const __grid_constant__ chunk c)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    place p;
    if (!find_place(c, 0, c.a.I, 2, TD_TILE_N, &p))
        return;
    const td_tile_args t = first_tile(c, p, index, sizeof(float));
    const both_store<float> store = {c, p};
    td_tile_run_f32(t, store);
}

__global__ void __launch_bounds__(TD_TILE_THREADS) down_f32_kernel(const __grid_constant__ chunk c)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    place p;
    if (!find_place(c, c.slice, c.n_slice, 1, TD_TILE_N, &p))
        return;
    const td_tile_args t = second_tile(c, p, index, sizeof(float));
    const part_store store = {c, p};
    td_tile_run_f32(t, store);
}

template <int R, int BT, bool ALIGNED>
__global__ void __launch_bounds__(td_exact_tile<R, BT>::THREADS)
    gate_up_e4m3_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    place p;
    if (!find_place(c, 0, c.a.I, 2, R, &p))
        return;
    const td_exact_shared<R, BT> sh(shared);
    const td_tile_args t = first_tile(c, p, sh.index, 1);
    const both_store<td_bf16> store = {c, p};
    td_exact_run<R, BT, ALIGNED>(t, sh, store);
}

template <int R, int BT, bool ALIGNED>
__global__ void __launch_bounds__(td_exact_tile<R, BT>::THREADS)
    down_e4m3_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    place p;
    if (!find_place(c, c.slice, c.n_slice, 1, R, &p))
        return;
    const td_exact_shared<R, BT> sh(shared);
    const td_tile_args t = second_tile(c, p, sh.index, 1);
    const part_store store = {c, p};
    td_exact_run<R, BT, ALIGNED>(t, sh, store);
}

/* ---- the same for many tokens of each expert, e4m3 ---- */

template <int N_MATRICES> struct wide_job { /* 2: gate and up, 1: down */
    const chunk &c;
    const uint8_t *x;
    const float *xs;
    int64_t x_stride;
    int K;
    __device__ explicit wide_job(const chunk &of)
        : c(of), x((const uint8_t *)(N_MATRICES == 2 ? of.a.x : of.h)),
          xs(N_MATRICES == 2 ? of.a.xs : of.hs), x_stride(N_MATRICES == 2 ? of.a.D : of.a.I),
          K(N_MATRICES == 2 ? of.a.D : of.a.I)
    {
    }
    __device__ int n_columns() const
    {
        return N_MATRICES == 2 ? c.a.I : c.n_slice;
    }
    __device__ int n_tiles() const
    {
        return *c.n_tiles * ((n_columns() + TD_WIDE_ROWS - 1) / TD_WIDE_ROWS) * N_MATRICES;
    }
    __device__ struct place at(int tile) const
    {
        return place_of(c, tile, N_MATRICES == 2 ? 0 : c.slice, n_columns(), N_MATRICES,
                        TD_WIDE_ROWS);
    }
    __device__ td_wide_place place(int tile) const
    {
        const struct place p = at(tile);
        td_tile_args t = {};
        if (N_MATRICES == 2)
            set_weights(&t, p.is_up ? c.a.up : c.a.gate, p.is_up ? c.a.up_s : c.a.gate_s, p, c.a.I,
                        c.a.D, 1);
        else
            set_weights(&t, c.a.down, c.a.down_s, p, c.a.D, c.a.I, 1);
        return {(const uint8_t *)t.w, t.ws, t.n_cols, c.tile_pairs[p.tile]};
    }
    __device__ int32_t row(int tile, int token) const
    {
        const int32_t pair = c.slots[at(tile).tile * c.tile_rows + token];
        return N_MATRICES == 2 ? pair / c.a.K : pair;
    }
    struct place_of_tile {
        const chunk &c;
        struct place p;
        int n_rows, add;
        __device__ auto *token(int i) const
        {
            const int64_t pair = c.slots[p.tile * c.tile_rows + i];
            if constexpr (N_MATRICES == 2) {
                td_bf16 *row = (td_bf16 *)c.both + pair * 2 * c.a.I + (p.is_up ? c.a.I : 0) + p.n0;
                return pair < 0 ? NULL : row;
            } else {
                return pair < 0 ? NULL : c.part + pair * c.n_slice + p.n0 - c.slice;
            }
        }
    };
    __device__ place_of_tile out(int tile) const
    {
        const struct place p = at(tile);
        return {c, p, (N_MATRICES == 2 ? 0 : c.slice) + n_columns() - p.n0, 0};
    }
};

template <int N_MATRICES>
__global__ void __launch_bounds__(TD_WIDE_THREADS, 1)
    experts_wide_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    const wide_job<N_MATRICES> job(c);
    td_wide_run(job, shared);
}

/* ---- between and behind them ---- */

/* A warp per group of 128 of a pair's row: h = silu(gate) * up, rounded, quantised for e4m3. */
template <typename A>
__global__ void __launch_bounds__(128) silu_kernel(const __grid_constant__ chunk c)
{
    const int I = c.a.I, n_groups = (I + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP;
    const int64_t item = (int64_t)blockIdx.x * 4 + threadIdx.x / 32, pair = item / n_groups;
    const int g = (int)(item % n_groups);
    if (pair >= c.n_pairs || expert_of(c, (int)pair) < 0)
        return;
    const A *row = (const A *)c.both + pair * 2 * I;
    td_group z = td_group_load(row, g, I);
    const td_group up = td_group_load(row + I, g, I);
    for (int i = 0; i < 4; i++)
        z.v[i] = td_round<A>(z.v[i] / (1.0f + td_expf(-z.v[i])) * up.v[i]);
    if (c.a.dtype == TD_E4M3)
        td_group_quantise(z, g, I, c.a.ue8m0, (uint8_t *)c.h + pair * I, c.hs + pair * n_groups);
    else
        td_group_store(z, (A *)c.h + pair * I, g, I);
}

/* y = sum over the token's experts of this rank, in top-k order; zeros where there are none. */
__global__ void __launch_bounds__(256) combine_kernel(const __grid_constant__ chunk c)
{
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= (int64_t)c.a.T * c.n_slice)
        return;
    const int t = (int)(i / c.n_slice), d = (int)(i % c.n_slice);
    float sum = 0.0f;
    for (int k = 0; k < c.a.K; k++) {
        const int pair = t * c.a.K + k;
        if (expert_of(c, pair) >= 0)
            sum += c.a.weights[pair] * c.part[(int64_t)pair * c.n_slice + d];
    }
    c.a.y[(int64_t)t * c.a.D + c.slice + d] = sum;
}

/* ---- host ---- */

template <int BM, bool ALIGNED> static td_status gate_up_bf16(const chunk &c, td_stream *s)
{
    const size_t n_shared = BM * sizeof(int32_t) + td_bf16_tile<BM>::bytes(TD_TILE_STAGES);
    const unsigned n_blocks = (unsigned)c.max_tiles * td_grid(c.a.I, TD_TILE_N) * 2;
    td_status st =
        td_cuda_allow_shared(s, (const void *)gate_up_kernel<BM, ALIGNED>, n_shared, "moe_experts");
    if (st == TD_OK)
        gate_up_kernel<BM, ALIGNED><<<n_blocks, TD_TILE_THREADS, n_shared, s->stream>>>(c);
    return st;
}

template <int BM, bool ALIGNED> static td_status down_bf16(const chunk &c, td_stream *s)
{
    const size_t n_shared = BM * sizeof(int32_t) + td_bf16_tile<BM>::bytes(TD_TILE_STAGES);
    const unsigned n_blocks = (unsigned)c.max_tiles * td_grid(c.n_slice, TD_TILE_N);
    td_status st =
        td_cuda_allow_shared(s, (const void *)down_kernel<BM, ALIGNED>, n_shared, "moe_experts");
    if (st == TD_OK)
        down_kernel<BM, ALIGNED><<<n_blocks, TD_TILE_THREADS, n_shared, s->stream>>>(c);
    return st;
}

template <int R, int BT, bool ALIGNED> static td_status gate_up_e4m3(const chunk &c, td_stream *s)
{
    typedef td_exact_tile<R, BT> T;
    const unsigned n_blocks = (unsigned)c.max_tiles * td_grid(c.a.I, R) * 2;
    td_status st = td_cuda_allow_shared(s, (const void *)gate_up_e4m3_kernel<R, BT, ALIGNED>,
                                        T::BYTES, "moe_experts");
    if (st == TD_OK)
        gate_up_e4m3_kernel<R, BT, ALIGNED><<<n_blocks, T::THREADS, T::BYTES, s->stream>>>(c);
    return st;
}

template <int R, int BT, bool ALIGNED> static td_status down_e4m3(const chunk &c, td_stream *s)
{
    typedef td_exact_tile<R, BT> T;
    const unsigned n_blocks = (unsigned)c.max_tiles * td_grid(c.n_slice, R);
    td_status st = td_cuda_allow_shared(s, (const void *)down_e4m3_kernel<R, BT, ALIGNED>, T::BYTES,
                                        "moe_experts");
    if (st == TD_OK)
        down_e4m3_kernel<R, BT, ALIGNED><<<n_blocks, T::THREADS, T::BYTES, s->stream>>>(c);
    return st;
}

template <int N_MATRICES> static td_status wide(const chunk &c, td_stream *s)
{
    const int64_t n_columns = N_MATRICES == 2 ? c.a.I : c.n_slice;
    const unsigned grid =
        td_wide_grid((int64_t)c.max_tiles * td_grid(n_columns, TD_WIDE_ROWS) * N_MATRICES);
    td_status st = td_cuda_allow_shared(s, (const void *)experts_wide_kernel<N_MATRICES>,
                                        TD_WIDE_BYTES, "moe_experts");
    if (st == TD_OK)
        experts_wide_kernel<N_MATRICES><<<grid, TD_WIDE_THREADS, TD_WIDE_BYTES, s->stream>>>(c);
    return st;
}

/* No tile changes a bit of the result. */
static const struct e4m3_choice {
    int R, BT;
    bool aligned;
    td_status (*gate_up)(const chunk &c, td_stream *s);
    td_status (*down)(const chunk &c, td_stream *s);
} e4m3_choices[] = {
    {32, 8, true, gate_up_e4m3<32, 8, true>, down_e4m3<32, 8, true>},
    {64, 8, true, gate_up_e4m3<64, 8, true>, down_e4m3<64, 8, true>},
    {64, 16, true, gate_up_e4m3<64, 16, true>, down_e4m3<64, 16, true>},
    {64, 32, true, gate_up_e4m3<64, 32, true>, down_e4m3<64, 32, true>},
    {TD_WIDE_ROWS, TD_WIDE_TOKENS, true, wide<2>, wide<1>},
    {64, 32, false, gate_up_e4m3<64, 32, false>, down_e4m3<64, 32, false>},
};

/* The tile for a product of N columns (of n_matrices each). */
static const e4m3_choice *choose_e4m3(const chunk &c, int N, int n_matrices)
{
    const e4m3_choice *best = NULL;
    int64_t least = 0;
    for (size_t i = 0; i < sizeof(e4m3_choices) / sizeof(*e4m3_choices); i++) {
        const e4m3_choice *f = &e4m3_choices[i];
        if (f->BT != c.tile_rows || f->aligned != (c.aligned != 0))
            continue;
        const int64_t n_blocks = (int64_t)c.max_tiles * n_matrices * td_grid(N, f->R);
        const int64_t cost = td_exact_cost(n_blocks, f->R + f->BT);
        if (best == NULL || cost < least) {
            best = f;
            least = cost;
        }
    }
    return best;
}

static td_status gate_up(const chunk &c, td_stream *s)
{
    if (c.a.dtype == TD_E4M3)
        return choose_e4m3(c, c.a.I, 2)->gate_up(c, s);
    if (c.a.dtype == TD_F32) {
        const unsigned n_blocks = (unsigned)c.max_tiles * td_grid(c.a.I, TD_TILE_N) * 2;
        gate_up_f32_kernel<<<n_blocks, TD_TILE_THREADS, 0, s->stream>>>(c);
        return TD_OK;
    }
    if (c.tile_rows == TILE_FEW)
        return c.aligned ? gate_up_bf16<TILE_FEW, true>(c, s) : gate_up_bf16<TILE_FEW, false>(c, s);
    return c.aligned ? gate_up_bf16<TILE_MANY, true>(c, s) : gate_up_bf16<TILE_MANY, false>(c, s);
}

static void silu(const chunk &c, td_stream *s)
{
    const unsigned groups = td_grid((int64_t)c.n_pairs * td_ceil_div(c.a.I, TD_QUANT_GROUP), 4);
    if (c.a.dtype == TD_F32)
        silu_kernel<float><<<groups, 128, 0, s->stream>>>(c);
    else
        silu_kernel<td_bf16><<<groups, 128, 0, s->stream>>>(c);
}

static td_status down(const chunk &c, td_stream *s)
{
    if (c.a.dtype == TD_E4M3)
        return choose_e4m3(c, c.n_slice, 1)->down(c, s);
    if (c.a.dtype == TD_F32) {
        const unsigned n_blocks = (unsigned)c.max_tiles * td_grid(c.n_slice, TD_TILE_N);
        down_f32_kernel<<<n_blocks, TD_TILE_THREADS, 0, s->stream>>>(c);
        return TD_OK;
    }
    if (c.tile_rows == TILE_FEW)
        return c.aligned ? down_bf16<TILE_FEW, true>(c, s) : down_bf16<TILE_FEW, false>(c, s);
    return c.aligned ? down_bf16<TILE_MANY, true>(c, s) : down_bf16<TILE_MANY, false>(c, s);
}

/* Lays the chunk's buffers out from base (NULL: only measures); returns their bytes. */
static size_t carve(chunk *c, unsigned char *base)
{
    const int64_t I = c->a.I, n_groups = td_ceil_div(c->a.I, TD_QUANT_GROUP);
    const int64_t act = c->a.dtype == TD_F32 ? 4 : 2;
    const struct {
        void **to;
        int64_t n_bytes;
    } parts[] = {
        {(void **)&c->n_tiles, 4},
        {(void **)&c->tile_expert, (int64_t)c->max_tiles * 4},
        {(void **)&c->tile_pairs, (int64_t)c->max_tiles * 4},
        {(void **)&c->slots, (int64_t)c->max_tiles * c->tile_rows * 4},
        {&c->both, c->n_pairs * 2 * I * act},
        {&c->h, c->n_pairs * I * (int64_t)td_dtype_bytes(c->a.dtype)},
        {(void **)&c->hs, c->n_pairs * n_groups * 4},
        {(void **)&c->part, (int64_t)c->n_pairs * c->n_slice * 4},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        *parts[i].to = base == NULL ? NULL : base + at;
        at += ((size_t)parts[i].n_bytes + 255) / 256 * 256;
    }
    return at;
}

/* Rows of a tile, from the pairs that an expert has on average. */
static int tile_rows(const chunk *c)
{
    const int average = c->n_pairs / c->n_experts;
    if (c->a.dtype != TD_E4M3)
        return c->a.dtype == TD_F32 || average < 2 * TILE_FEW ? TILE_FEW : TILE_MANY;
    if (!c->aligned)
        return 32;
    int rows = 8;
    while (rows < 64 && 2 * rows < 3 * average) /* half again: experts differ */
        rows *= 2;
    return rows < 64 ? rows : TD_WIDE_TOKENS;
}

static chunk chunk_of(const td_moe_experts_args *a, int t, int n)
{
    chunk c = {};
    c.a = *a;
    c.a.T = n;
    c.a.x = (const char *)a->x + (int64_t)t * a->D * (int64_t)td_dtype_bytes(a->dtype);
    c.a.xs = a->xs == NULL ? NULL : a->xs + (int64_t)t * td_ceil_div(a->D, TD_QUANT_GROUP);
    c.a.ids = a->ids + (int64_t)t * a->K;
    c.a.weights = a->weights + (int64_t)t * a->K;
    c.a.y = a->y + (int64_t)t * a->D;
    c.n_pairs = n * a->K;
    c.n_experts = a->expert_hi - a->expert_lo;
    const uintptr_t rows = ((uintptr_t)a->D | (uintptr_t)a->I) * td_dtype_bytes(a->dtype);
    c.aligned =
        ((uintptr_t)a->x | (uintptr_t)a->gate | (uintptr_t)a->up | (uintptr_t)a->down | rows) %
            16 ==
        0;
    c.tile_rows = tile_rows(&c);
    const int used = c.n_experts < c.n_pairs ? c.n_experts : c.n_pairs; /* experts, at most */
    c.max_tiles = (c.n_pairs - used) / c.tile_rows + used;
    const int64_t groups = PART_BYTES / ((int64_t)c.n_pairs * 4 * TD_QUANT_GROUP);
    const int64_t columns = (groups > 1 ? groups : 1) * TD_QUANT_GROUP;
    c.n_slice = columns < a->D ? (int)columns : a->D;
    return c;
}

static td_status run_chunk(chunk *c, td_stream *s)
{
    unsigned char *scratch = (unsigned char *)td_cuda_scratch(s, carve(c, NULL));
    if (scratch == NULL)
        return TD_NOMEM;
    carve(c, scratch);
    const size_t n_shared = (size_t)c->n_experts * sizeof(int32_t);
    td_status st = td_cuda_allow_shared(s, (const void *)plan_kernel, n_shared, "moe_experts");
    if (st < 0)
        return st;
    plan_kernel<<<1, PLAN_THREADS, n_shared, s->stream>>>(*c);
    st = gate_up(*c, s);
    if (st < 0)
        return st;
    silu(*c, s);
    const int step = c->n_slice;
    for (c->slice = 0; c->slice < c->a.D; c->slice += step) {
        c->n_slice = c->a.D - c->slice < step ? c->a.D - c->slice : step;
        st = down(*c, s);
        if (st < 0)
            return st;
        combine_kernel<<<td_grid((int64_t)c->a.T * c->n_slice, 256), 256, 0, s->stream>>>(*c);
    }
    return td_cuda_launched(s, "moe_experts");
}

extern "C" td_status td_moe_experts_cuda(const td_moe_experts_args *a, td_stream *s)
{
    if (!td_moe_experts_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->D == 0)
        return TD_OK;
    if (a->K == 0 || a->I == 0 || a->expert_lo == a->expert_hi)
        return s->head.class_->fill(s, a->y, 0, (size_t)a->T * (size_t)a->D * 4);
    /* Of a pair: gate, up and their product; 128 columns of its result. */
    const int64_t row = (int64_t)a->I * (a->dtype == TD_F32 ? 12 : 6), slice = TD_QUANT_GROUP * 4;
    const int64_t of_rows = BOTH_BYTES / (a->K * row), of_slice = PART_BYTES / (a->K * slice);
    const int64_t most = of_rows < of_slice ? of_rows : of_slice;
    const int step = most < 1 ? 1 : most < a->T ? (int)most : a->T;
    td_status st = TD_OK;
    for (int t = 0; st == TD_OK && t < a->T; t += step) {
        chunk c = chunk_of(a, t, a->T - t < step ? a->T - t : step);
        st = run_chunk(&c, s);
    }
    return st;
}
