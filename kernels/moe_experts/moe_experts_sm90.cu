/* moe_experts_sm90.cu - the generic path: (token, expert) pairs are sorted by expert on the device,
 * then two grouped products on tile.cuh's tiles with silu (and the quantiser) between them, then
 * the sum in top-k order. Expert counts stay in device memory; the grid is for the worst case, and
 * tiles that nobody fills end at once. Tokens go in chunks that bound the f32 results of single
 * experts. */
#include "kernels/cuda/group.cuh"
#include "kernels/cuda/tile.cuh"
extern "C" {
#include "kernels/moe_experts/moe_experts.h"
}

#define PLAN_THREADS 1024
#define PART_BYTES ((int64_t)256 << 20)
#define TILE_FEW 16
#define TILE_MANY 64

/* One chunk of tokens; device memory. Pair p is token p / K with its expert number p % K. */
struct chunk {
    td_moe_experts_args a; /* of the chunk's tokens */
    int n_pairs, n_experts, tile_rows, max_tiles;
    int32_t *n_tiles;     /* [1] */
    int32_t *tile_expert; /* [max_tiles] */
    int32_t *slots;       /* [max_tiles, tile_rows] pairs; -1: none */
    void *both;           /* [n_pairs, 2 I] act: gate, up */
    void *h;              /* [n_pairs, I] dtype */
    float *hs;            /* [n_pairs, ceil(I/128)] */
    float *part;          /* [n_pairs, D] */
};

__device__ static int expert_of(const chunk &c, int pair)
{
    const int32_t e = c.a.ids[pair];
    return e >= c.a.expert_lo && e < c.a.expert_hi ? e - c.a.expert_lo : -1;
}

/* One block. Which pair of an expert gets which slot does not matter: a row's result does not
 * depend on its place. */
__global__ void __launch_bounds__(PLAN_THREADS) plan_kernel(chunk c)
{
    extern __shared__ int32_t counts[]; /* [n_experts] pairs, then the next free slot */
    for (int e = threadIdx.x; e < c.n_experts; e += PLAN_THREADS)
        counts[e] = 0;
    for (int i = threadIdx.x; i < c.max_tiles * c.tile_rows; i += PLAN_THREADS)
        c.slots[i] = -1;
    __syncthreads();
    for (int p = threadIdx.x; p < c.n_pairs; p += PLAN_THREADS)
        if (expert_of(c, p) >= 0)
            atomicAdd(&counts[expert_of(c, p)], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int tile = 0;
        for (int e = 0; e < c.n_experts; e++) {
            const int n = (counts[e] + c.tile_rows - 1) / c.tile_rows;
            counts[e] = tile * c.tile_rows;
            for (int i = 0; i < n; i++)
                c.tile_expert[tile + i] = e;
            tile += n;
        }
        *c.n_tiles = tile;
    }
    __syncthreads();
    for (int p = threadIdx.x; p < c.n_pairs; p += PLAN_THREADS)
        if (expert_of(c, p) >= 0)
            c.slots[atomicAdd(&counts[expert_of(c, p)], 1)] = p;
}

/* ---- the two products ---- */

struct place { /* of a tile */
    int tile, n0, expert;
    bool is_up;
};

/* Gate and up stand side by side: column tiles of gate first, then those of up. */
__device__ static bool find_place(const chunk &c, int N, int n_matrices, place *p)
{
    const int n_tiles = (N + TD_TILE_N - 1) / TD_TILE_N * n_matrices;
    p->tile = (int)(blockIdx.x / n_tiles);
    if (p->tile >= *c.n_tiles)
        return false;
    const int col = (int)(blockIdx.x % n_tiles);
    p->is_up = col >= n_tiles / n_matrices && n_matrices == 2;
    p->n0 = (p->is_up ? col - n_tiles / 2 : col) * TD_TILE_N;
    p->expert = c.tile_expert[p->tile];
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
    for (int i = threadIdx.x; i < c.tile_rows; i += TD_TILE_THREADS) {
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
        if (pair >= 0 && n < c.a.D)
            c.part[(int64_t)pair * c.a.D + n] = v;
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

template <typename E, int BM, bool ALIGNED>
__global__ void __launch_bounds__(TD_TILE_THREADS) gate_up_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    place p;
    if (!find_place(c, c.a.I, 2, &p))
        return;
    const td_tile_args t = first_tile(c, p, (int32_t *)shared, sizeof(E));
    const both_store<td_bf16> store = {c, p};
    td_tile_run<E, BM, ALIGNED>(t, shared + BM * sizeof(int32_t), store);
}

template <typename E, int BM, bool ALIGNED>
__global__ void __launch_bounds__(TD_TILE_THREADS) down_kernel(const __grid_constant__ chunk c)
{
    extern __shared__ __align__(16) unsigned char shared[];
    place p;
    if (!find_place(c, c.a.D, 1, &p))
        return;
    const td_tile_args t = second_tile(c, p, (int32_t *)shared, sizeof(E));
    const part_store store = {c, p};
    td_tile_run<E, BM, ALIGNED>(t, shared + BM * sizeof(int32_t), store);
}

__global__ void __launch_bounds__(TD_TILE_THREADS)
    gate_up_f32_kernel(const __grid_constant__ chunk c)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    place p;
    if (!find_place(c, c.a.I, 2, &p))
        return;
    const td_tile_args t = first_tile(c, p, index, sizeof(float));
    const both_store<float> store = {c, p};
    td_tile_run_f32(t, store);
}

__global__ void __launch_bounds__(TD_TILE_THREADS) down_f32_kernel(const __grid_constant__ chunk c)
{
    __shared__ int32_t index[TD_TILE_F32_M];
    place p;
    if (!find_place(c, c.a.D, 1, &p))
        return;
    const td_tile_args t = second_tile(c, p, index, sizeof(float));
    const part_store store = {c, p};
    td_tile_run_f32(t, store);
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
    if (i >= (int64_t)c.a.T * c.a.D)
        return;
    const int t = (int)(i / c.a.D), d = (int)(i % c.a.D);
    float sum = 0.0f;
    for (int k = 0; k < c.a.K; k++) {
        const int pair = t * c.a.K + k;
        if (expert_of(c, pair) >= 0)
            sum += c.a.weights[pair] * c.part[(int64_t)pair * c.a.D + d];
    }
    c.a.y[i] = sum;
}

/* ---- host ---- */

template <typename E, int BM, bool ALIGNED> static td_status products(const chunk &c, td_stream *s)
{
    const size_t n_shared = td_tile_shared<E, BM>();
    const unsigned first = td_grid(c.a.I, TD_TILE_N) * 2, second = td_grid(c.a.D, TD_TILE_N);
    td_status st = td_cuda_allow_shared(s, (const void *)gate_up_kernel<E, BM, ALIGNED>, n_shared,
                                        "moe_experts");
    if (st == TD_OK)
        st = td_cuda_allow_shared(s, (const void *)down_kernel<E, BM, ALIGNED>, n_shared,
                                  "moe_experts");
    if (st < 0)
        return st;
    const unsigned groups = td_grid((int64_t)c.n_pairs * td_ceil_div(c.a.I, TD_QUANT_GROUP), 4);
    gate_up_kernel<E, BM, ALIGNED>
        <<<(unsigned)c.max_tiles * first, TD_TILE_THREADS, n_shared, s->stream>>>(c);
    silu_kernel<td_bf16><<<groups, 128, 0, s->stream>>>(c);
    down_kernel<E, BM, ALIGNED>
        <<<(unsigned)c.max_tiles * second, TD_TILE_THREADS, n_shared, s->stream>>>(c);
    return TD_OK;
}

static td_status products_f32(const chunk &c, td_stream *s)
{
    const unsigned first = td_grid(c.a.I, TD_TILE_N) * 2, second = td_grid(c.a.D, TD_TILE_N);
    const unsigned groups = td_grid((int64_t)c.n_pairs * td_ceil_div(c.a.I, TD_QUANT_GROUP), 4);
    gate_up_f32_kernel<<<(unsigned)c.max_tiles * first, TD_TILE_THREADS, 0, s->stream>>>(c);
    silu_kernel<float><<<groups, 128, 0, s->stream>>>(c);
    down_f32_kernel<<<(unsigned)c.max_tiles * second, TD_TILE_THREADS, 0, s->stream>>>(c);
    return TD_OK;
}

template <typename E> static td_status products_any(const chunk &c, td_stream *s)
{
    const td_moe_experts_args &a = c.a;
    const uintptr_t rows = ((uintptr_t)a.D | (uintptr_t)a.I) * sizeof(E);
    const bool aligned = ((uintptr_t)a.x | (uintptr_t)a.gate | (uintptr_t)a.up | (uintptr_t)a.down |
                          (uintptr_t)c.h | rows) %
                             16 ==
                         0;
    if (c.tile_rows == TILE_FEW)
        return aligned ? products<E, TILE_FEW, true>(c, s) : products<E, TILE_FEW, false>(c, s);
    return aligned ? products<E, TILE_MANY, true>(c, s) : products<E, TILE_MANY, false>(c, s);
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
        {(void **)&c->slots, (int64_t)c->max_tiles * c->tile_rows * 4},
        {&c->both, c->n_pairs * 2 * I * act},
        {&c->h, c->n_pairs * I * (int64_t)td_dtype_bytes(c->a.dtype)},
        {(void **)&c->hs, c->n_pairs * n_groups * 4},
        {(void **)&c->part, (int64_t)c->n_pairs * c->a.D * 4},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        *parts[i].to = base == NULL ? NULL : base + at;
        at += ((size_t)parts[i].n_bytes + 255) / 256 * 256;
    }
    return at;
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
    c.tile_rows =
        a->dtype == TD_F32 || c.n_pairs / c.n_experts < 2 * TILE_FEW ? TILE_FEW : TILE_MANY;
    const int partly = c.n_experts < c.n_pairs ? c.n_experts : c.n_pairs; /* tiles not full */
    c.max_tiles = c.n_pairs / c.tile_rows + partly;
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
    st = c->a.dtype == TD_E4M3   ? products_any<uint8_t>(*c, s)
         : c->a.dtype == TD_BF16 ? products_any<td_bf16>(*c, s)
                                 : products_f32(*c, s);
    if (st < 0)
        return st;
    combine_kernel<<<td_grid((int64_t)c->a.T * c->a.D, 256), 256, 0, s->stream>>>(*c);
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
    int64_t most = PART_BYTES / ((int64_t)a->K * a->D * 4);
    const int step = most < 1 ? 1 : most < a->T ? (int)most : a->T;
    td_status st = TD_OK;
    for (int t = 0; st == TD_OK && t < a->T; t += step) {
        chunk c = chunk_of(a, t, a->T - t < step ? a->T - t : step);
        st = run_chunk(&c, s);
    }
    return st;
}
