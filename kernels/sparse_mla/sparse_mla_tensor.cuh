/* sparse_mla_tensor.cuh - sparse_mla on tensor cores: bf16 activations, C 512, R 64, bf16 caches
 * (fp8: sparse_mla_fp8.cuh), any selection. The selected keys go in SPLIT parts of fixed length, so
 * that a single row has work for many blocks; the parts do not depend on the batch. The contract
 * rounds p after the division, hence three kernels: scores (f32, to scratch) with each part's
 * maximum and sum; p from all parts' statistics and each part's share of u (f32, to scratch); their
 * sum in order of parts. In the first two a block takes one token, one part and 16, 32 or 64 heads
 * and walks the keys in tiles; while a tile is worked on, the next one's rows travel to shared
 * memory. */
#ifndef TD_KERNELS_SPARSE_MLA_TENSOR_CUH
#define TD_KERNELS_SPARSE_MLA_TENSOR_CUH
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
extern "C" {
#include "kernels/sparse_mla/sparse_mla.h"
}

namespace mla
{

constexpr int WARPS = 8, THREADS = WARPS * 32;
constexpr int DIM_C = 512, DIM_R = 64, DIMS = DIM_C + DIM_R;
constexpr int ROW = DIMS + 8;                 /* of a tile: eight rows lie in different banks */
constexpr int SPLIT = 4;                      /* parts of the selected keys */
constexpr size_t SCRATCH = (size_t)288 << 20; /* for as many tokens as go in one launch */
constexpr int RAW_ROW = 2 * DIMS;             /* bytes of a cached row */

/* M: groups of 16 heads. A warp scores one group against KEYS keys, and owns 64 columns of u. */
template <int M> struct form {
    static constexpr int HEADS = 16 * M;
    static constexpr int TILE = M < 4 ? 64 : 32; /* what fits beside the queries */
    static constexpr int PARTS = WARPS / M;      /* warps that share a group of heads */
    static constexpr int KEYS = TILE / PARTS;    /* 8, 16 or 32 */
    static constexpr int NF = KEYS / 8;
    static constexpr int P_ROW = TILE + 8;
};

typedef struct { /* of a head, over some keys */
    float max, sum;
} stats;

typedef struct {      /* tokens first.. of a launch; heads padded to whole groups */
    float *scores;    /* [tokens, heads, SPLIT * part] scaled */
    stats *of_parts;  /* [tokens, heads, SPLIT] */
    float *u;         /* [SPLIT, tokens, heads, DIM_C] */
    int64_t first;    /* token */
    int tokens, part; /* keys of a part, whole tiles */
    int n_groups;
} split;

template <int M> struct room { /* shared memory of the first kernel */
    typedef form<M> F;
    td_bf16 tile[F::TILE][ROW];
    alignas(16) unsigned char raw[F::TILE][RAW_ROW];
    alignas(16) td_bf16 q[F::HEADS][ROW];
    stats parts[F::PARTS][F::HEADS]; /* of the warps that share a head */
    int valid[2][F::TILE];           /* of the tile worked on and of the next */
    int used;
};

template <int M> struct value_room { /* and of the second */
    typedef form<M> F;
    td_bf16 tile[F::TILE][ROW];
    alignas(16) unsigned char raw[F::TILE][RAW_ROW];
    alignas(16) td_bf16 p[F::HEADS][F::P_ROW];
    stats all[F::HEADS];
    int valid[2][F::TILE];
    int used;
};

/* What a block works on: token, heads, keys lo .. hi - 1 of the selection. */
typedef struct {
    const int32_t *selected;
    int64_t t, row; /* row: of its first head in the scratch */
    int head, seq, part, lo, hi;
} place;

/* Starts the rows of keys first.. on their way; those that are not there become zeros. */
template <int M, typename Room>
__device__ inline void fetch(const td_sparse_mla_args &a, const place &at, int first, Room *r)
{
    typedef form<M> F;
    const int pieces = RAW_ROW / 16;
    const int32_t *table = a.rows.block_table + (int64_t)at.seq * a.rows.max_pages;
    for (int i = threadIdx.x; i < F::TILE * pieces; i += THREADS) {
        const int key = i / pieces, piece = i % pieces;
        const int position = first + key < at.hi ? at.selected[first + key] : -1;
        const unsigned char *from = a.kv.plane;
        if (position >= 0)
            from += (uint64_t)table[position / a.kv.page_rows] * a.kv.page_stride +
                    (uint64_t)(position % a.kv.page_rows) * RAW_ROW + piece * 16;
        td_copy_async(r->raw[key] + piece * 16, from, position >= 0 ? 16 : 0);
        if (piece == 0)
            r->valid[(first - at.lo) / F::TILE & 1][key] = position >= 0;
    }
    td_copy_commit();
}

/* The rows that arrived. */
template <int M, typename Room> __device__ inline void unpack(Room *r)
{
    typedef form<M> F;
    const int pieces = RAW_ROW / 16;
    for (int i = threadIdx.x; i < F::TILE * pieces; i += THREADS) {
        const int key = i / pieces, at = i % pieces;
        *(uint4 *)&r->tile[key][at * 8] = *(const uint4 *)(r->raw[key] + at * 16);
    }
}

/* d[n]: scores of this warp's 16 heads and keys 8 n.., without the scale. */
template <int M> __device__ inline void scores(const room<M> *r, float d[form<M>::NF][4])
{
    typedef form<M> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, keys = warp / M * F::KEYS;
    const td_bf16 *q = &r->q[warp % M * 16 + lane % 16][lane / 16 * 8];
    /* With one group of keys the upper half of an x4 repeats the lower: rows must exist. */
    const int row = F::NF == 1 ? lane % 8 : lane % 8 + lane / 16 * 8;
    const td_bf16 *k = &r->tile[keys + row][lane / 8 % 2 * 8];
#pragma unroll
    for (int n = 0; n < F::NF; n++)
        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
#pragma unroll 4
    for (int i = 0; i < DIMS; i += 16) {
        uint32_t x[4], y[4];
        td_ldmatrix_x4(x, q + i);
#pragma unroll
        for (int n = 0; n < F::NF; n += 2) {
            td_ldmatrix_x4(y, k + n * 8 * ROW + i);
            td_mma_bf16(d[n], x, y[0], y[1]);
            if (F::NF > 1)
                td_mma_bf16(d[n + 1 < F::NF ? n + 1 : n], x, y[2], y[3]);
        }
    }
}

/* Both parts' keys together; a part without keys is {-inf, 0}. */
__device__ inline stats join(stats a, stats b)
{
    const float max = fmaxf(a.max, b.max);
    const bool none_a = a.max == -INFINITY && a.sum == 0.0f;
    const bool none_b = b.max == -INFINITY && b.sum == 0.0f;
    stats s = {max, 0.0f};
    if (!none_a)
        s.sum += a.sum * td_expf(a.max - max);
    if (!none_b)
        s.sum += b.sum * td_expf(b.max - max);
    return s;
}

/* Takes one tile's scores of a head (those of this lane) into its statistics. */
template <int M>
__device__ inline stats take(stats s, const float d[form<M>::NF][4], int half, float scale,
                             const int *valid)
{
    typedef form<M> F;
    const int at = threadIdx.x / 32 / M * F::KEYS + threadIdx.x % 4 * 2;
    stats own = {-INFINITY, 0.0f};
#pragma unroll
    for (int n = 0; n < F::NF; n++)
        for (int j = 0; j < 2; j++)
            if (valid[at + n * 8 + j])
                own.max = fmaxf(own.max, d[n][half * 2 + j] * scale);
#pragma unroll
    for (int n = 0; n < F::NF; n++)
        for (int j = 0; j < 2; j++)
            if (valid[at + n * 8 + j])
                own.sum += td_expf(d[n][half * 2 + j] * scale - own.max);
    return join(s, own);
}

/* The lanes of a row, then the warps that share it, in their order, to the scratch. */
template <int M>
__device__ inline void settle(const split &sp, const place &at, room<M> *r, stats s[2])
{
    typedef form<M> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int half = 0; half < 2; half++) {
        for (int m = 1; m < 4; m *= 2) {
            const stats other = {__shfl_xor_sync(0xffffffffu, s[half].max, m),
                                 __shfl_xor_sync(0xffffffffu, s[half].sum, m)};
            s[half] = lane & m ? join(other, s[half]) : join(s[half], other);
        }
        if (lane % 4 == 0)
            r->parts[warp / M][warp % M * 16 + half * 8 + lane / 4] = s[half];
    }
    __syncthreads();
    for (int h = threadIdx.x; h < F::HEADS; h += THREADS) {
        stats all = r->parts[0][h];
        for (int part = 1; part < F::PARTS; part++)
            all = join(all, r->parts[part][h]);
        sp.of_parts[(at.row + h) * SPLIT + at.part] = all;
    }
}

/* Where this warp's scores of a tile stand in the scratch: of head `half`, pairs 8 keys apart. */
template <int M>
__device__ inline float *scores_at(const split &sp, const place &at, int first, int half)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int h = warp % M * 16 + half * 8 + lane / 4;
    const int key = first + warp / M * form<M>::KEYS + lane % 4 * 2;
    return sp.scores + (at.row + h) * (int64_t)(SPLIT * sp.part) + key;
}

template <int M>
__device__ inline void keep_scores(const split &sp, const place &at, int first,
                                   const float d[form<M>::NF][4], float scale)
{
    for (int half = 0; half < 2; half++) {
        float *to = scores_at<M>(sp, at, first, half);
#pragma unroll
        for (int n = 0; n < form<M>::NF; n++)
            *(float2 *)(to + n * 8) =
                make_float2(d[n][half * 2] * scale, d[n][half * 2 + 1] * scale);
    }
}

/* p of this warp's scores, rounded to bf16, to r->p. */
template <int M>
__device__ inline void make_p(const split &sp, const place &at, int first, value_room<M> *r)
{
    typedef form<M> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int key = warp / M * F::KEYS + lane % 4 * 2;
    const int *valid = r->valid[(first - at.lo) / F::TILE & 1] + key;
    for (int half = 0; half < 2; half++) {
        const int h = warp % M * 16 + half * 8 + lane / 4;
        const stats all = r->all[h];
        const float *from = scores_at<M>(sp, at, first, half);
#pragma unroll
        for (int n = 0; n < F::NF; n++) {
            const float2 score = *(const float2 *)(from + n * 8);
            const float p0 = valid[n * 8] ? td_expf(score.x - all.max) / all.sum : 0.0f;
            const float p1 = valid[n * 8 + 1] ? td_expf(score.y - all.max) / all.sum : 0.0f;
            *(uint32_t *)&r->p[h][key + n * 8] = td_bf16_pair(p0, p1);
        }
    }
}

/* u += p times the tile's values, for all heads and this warp's 64 columns. */
template <int M> __device__ inline void add_values(const value_room<M> *r, float u[M][8][4])
{
    typedef form<M> F;
    const int lane = threadIdx.x % 32, columns = threadIdx.x / 32 * 64;
#pragma unroll
    for (int k = 0; k < F::TILE; k += 16) {
        uint32_t x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
            td_ldmatrix_x4(x[m], &r->p[m * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            uint32_t y[4];
            td_ldmatrix_x4_trans(y, &r->tile[k + lane % 16][columns + n * 8 + lane / 16 * 8]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                td_mma_bf16(u[m][n], x[m], y[0], y[1]);
                td_mma_bf16(u[m][n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* This part's u to the scratch. */
template <int M>
__device__ inline void store(const split &sp, const place &at, const float u[M][8][4])
{
    const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 64 + lane % 4 * 2;
    const int64_t rows = (int64_t)sp.tokens * sp.n_groups * 16 * M;
#pragma unroll
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            const int64_t row = at.part * rows + at.row + m * 16 + half * 8 + lane / 4;
            float *out = sp.u + row * DIM_C + column;
#pragma unroll
            for (int n = 0; n < 8; n++)
                *(float2 *)(out + n * 8) = make_float2(u[m][n][half * 2], u[m][n][half * 2 + 1]);
        }
}

/* The block's place; its keys end with the last one that is selected. Every thread. */
template <int M>
__device__ inline place find(const td_sparse_mla_args &a, const split &sp, int *used)
{
    const int64_t block = blockIdx.x / SPLIT, token = block / sp.n_groups;
    const int group = (int)(block % sp.n_groups), part = (int)(blockIdx.x % SPLIT);
    place at = {NULL, sp.first + token, 0, group * form<M>::HEADS, 0, part, part * sp.part, 0};
    at.row = token * sp.n_groups * form<M>::HEADS + at.head;
    at.selected = a.selected + at.t * a.k;
    at.seq = a.rows.row_seq[at.t];
    const int end = at.seq < 0 ? 0 : at.lo + sp.part < a.k ? at.lo + sp.part : a.k;
    if (threadIdx.x == 0)
        *used = at.lo;
    __syncthreads();
    for (int i = at.lo + (int)threadIdx.x; i < end; i += THREADS)
        if (at.selected[i] >= 0)
            atomicMax(used, i + 1);
    __syncthreads();
    at.hi = *used;
    return at;
}

/* Queries of the block's heads; zeros behind the last. */
template <int M>
__device__ inline void load_queries(const td_sparse_mla_args &a, const place &at, room<M> *r)
{
    for (int i = threadIdx.x; i < form<M>::HEADS * (DIMS / 8); i += THREADS) {
        const int h = i / (DIMS / 8), column = i % (DIMS / 8) * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (at.head + h < a.H)
            v = *(const uint4 *)((const td_bf16 *)a.q + (at.t * a.H + at.head + h) * DIMS + column);
        *(uint4 *)&r->q[h][column] = v;
    }
}

/* Waits for tile first.., unpacks it and starts the next. */
template <int M, typename Room>
__device__ inline void next_tile(const td_sparse_mla_args &a, const place &at, int first, Room *r)
{
    typedef form<M> F;
    td_copy_wait<0>();
    __syncthreads(); /* everybody's rows are there; nobody works on the last tile */
    unpack<M>(r);
    __syncthreads(); /* the tile is there, the rows' room is free */
    if (first + F::TILE < at.hi)
        fetch<M>(a, at, first + F::TILE, r);
}

template <int M>
__global__ void __launch_bounds__(THREADS, 1)
    score_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ split sp)
{
    typedef form<M> F;
    extern __shared__ uint4 shared[];
    room<M> *r = (room<M> *)shared;
    const place at = find<M>(a, sp, &r->used);
    float d[F::NF][4];
    stats s[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    if (at.lo < at.hi) {
        fetch<M>(a, at, at.lo, r);
        load_queries(a, at, r);
    }
    for (int first = at.lo; first < at.hi; first += F::TILE) {
        next_tile<M>(a, at, first, r);
        scores(r, d);
        keep_scores<M>(sp, at, first, d, a.scale);
        const int *valid = r->valid[(first - at.lo) / F::TILE & 1];
        for (int half = 0; half < 2; half++)
            s[half] = take<M>(s[half], d, half, a.scale, valid);
    }
    settle(sp, at, r, s);
}

template <int M>
__global__ void __launch_bounds__(THREADS, 1)
    value_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ split sp)
{
    typedef form<M> F;
    extern __shared__ uint4 shared[];
    value_room<M> *r = (value_room<M> *)shared;
    const place at = find<M>(a, sp, &r->used);
    float u[M][8][4] = {};
    if (at.lo < at.hi)
        fetch<M>(a, at, at.lo, r);
    for (int h = threadIdx.x; h < F::HEADS; h += THREADS) {
        const stats *parts = sp.of_parts + (at.row + h) * SPLIT;
        stats all = parts[0];
        for (int part = 1; part < SPLIT; part++)
            all = join(all, parts[part]);
        r->all[h] = all;
    }
    for (int first = at.lo; first < at.hi; first += F::TILE) {
        next_tile<M>(a, at, first, r);
        make_p(sp, at, first, r);
        __syncthreads();
        add_values(r, u);
    }
    store<M>(sp, at, u);
}

/* u = the parts' shares, in their order. A block takes a token's head, a thread four columns. */
__global__ void __launch_bounds__(DIM_C / 4)
    sum_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ split sp,
               int heads)
{
    const int64_t token = blockIdx.x / a.H, h = blockIdx.x % a.H;
    const int64_t rows = (int64_t)sp.tokens * heads;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int part = 0; part < SPLIT; part++) {
        const int64_t row = part * rows + token * heads + h;
        const float4 v = ((const float4 *)(sp.u + row * DIM_C))[threadIdx.x];
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
    }
    td_bf16 *out = (td_bf16 *)a.u + ((sp.first + token) * a.H + h) * DIM_C;
    ((uint2 *)out)[threadIdx.x] =
        make_uint2(td_bf16_pair(sum.x, sum.y), td_bf16_pair(sum.z, sum.w));
}

/* Tokens first .. first + tokens - 1. */
template <int M>
static td_status launch_tokens(const td_sparse_mla_args *a, const split *sp, td_stream *s)
{
    const unsigned blocks = (unsigned)sp->tokens * (unsigned)sp->n_groups * SPLIT;
    score_kernel<M><<<blocks, THREADS, sizeof(room<M>), s->stream>>>(*a, *sp);
    td_status st = td_cuda_launched(s, "sparse_mla");
    if (st < 0)
        return st;
    value_kernel<M><<<blocks, THREADS, sizeof(value_room<M>), s->stream>>>(*a, *sp);
    st = td_cuda_launched(s, "sparse_mla");
    if (st < 0)
        return st;
    sum_kernel<<<(unsigned)sp->tokens *(unsigned)a->H, DIM_C / 4, 0, s->stream>>>(
        *a, *sp, sp->n_groups * form<M>::HEADS);
    return td_cuda_launched(s, "sparse_mla");
}

template <int M> static td_status launch(const td_sparse_mla_args *a, td_stream *s)
{
    typedef form<M> F;
    td_status st =
        td_cuda_allow_shared(s, (const void *)score_kernel<M>, sizeof(room<M>), "sparse_mla");
    if (st == TD_OK)
        st = td_cuda_allow_shared(s, (const void *)value_kernel<M>, sizeof(value_room<M>),
                                  "sparse_mla");
    if (st < 0)
        return st;
    split sp = {};
    sp.n_groups = td_ceil_div(a->H, F::HEADS);
    sp.part = td_ceil_div(td_ceil_div(a->k, SPLIT), F::TILE) * F::TILE;
    const size_t heads = (size_t)sp.n_groups * F::HEADS;
    const size_t score_bytes = heads * (size_t)(SPLIT * sp.part) * sizeof(float);
    const size_t u_bytes = heads * SPLIT * DIM_C * sizeof(float);
    const size_t each = score_bytes + u_bytes + heads * SPLIT * sizeof(stats);
    const size_t most = SCRATCH > each ? SCRATCH / each : 1;
    const int tokens = (size_t)a->T < most ? a->T : (int)most;
    char *scratch = (char *)td_cuda_scratch(s, (size_t)tokens * each);
    if (scratch == NULL)
        return TD_NOMEM;
    sp.scores = (float *)scratch;
    sp.u = (float *)(scratch + (size_t)tokens * score_bytes);
    sp.of_parts = (stats *)(scratch + (size_t)tokens * (score_bytes + u_bytes));
    for (sp.first = 0; sp.first < a->T && st == TD_OK; sp.first += tokens) {
        sp.tokens = a->T - sp.first < tokens ? (int)(a->T - sp.first) : tokens;
        st = launch_tokens<M>(a, &sp, s);
    }
    return st;
}

/* Whether the shape is one of these. */
static bool fits(const td_sparse_mla_args *a)
{
    const uintptr_t places =
        (uintptr_t)a->kv.plane | (uintptr_t)a->kv.page_stride | (uintptr_t)a->q | (uintptr_t)a->u;
    return a->act == TD_BF16 && a->C == DIM_C && a->R == DIM_R && a->kv.dtype == 1 &&
           places % 16 == 0;
}

static td_status run(const td_sparse_mla_args *a, td_stream *s)
{
    if (a->H <= 16)
        return launch<1>(a, s);
    return a->H <= 32 ? launch<2>(a, s) : launch<4>(a, s);
}

} // namespace mla
#endif
