/* sparse_mla_tensor.cuh - sparse_mla on tensor cores: bf16 activations, C 512, R 64, fp8 or bf16
 * caches, any selection. A block takes one token and 16, 32 or 64 heads and walks the selected keys
 * twice in tiles: the contract rounds p after the division, so the first pass finds each head's
 * maximum and sum, and the second computes the scores again, then p and u. While a tile is worked
 * on, the next one's rows travel to shared memory as they stand in the cache. Keys and values are
 * the cache's value in bf16: exact for scales that are powers of two, as kv_write makes them. */
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
constexpr int ROW = DIMS + 8; /* of a tile: eight rows lie in different banks */
constexpr int FP8_ROW = DIM_C + DIM_C / TD_QUANT_GROUP * 4 + DIM_R * 2, BF16_ROW = 2 * DIMS;

/* M: groups of 16 heads. A warp scores one group against KEYS keys, and owns 64 columns of u. */
template <int M, bool FP8> struct form {
    static constexpr int HEADS = 16 * M;
    static constexpr int TILE = FP8 || M < 4 ? 64 : 32; /* what fits beside the queries */
    static constexpr int PARTS = WARPS / M;             /* warps that share a group of heads */
    static constexpr int KEYS = TILE / PARTS;           /* 8, 16 or 32 */
    static constexpr int NF = KEYS / 8;
    static constexpr int RAW_ROW = FP8 ? FP8_ROW : BF16_ROW;
    static constexpr int P_ROW = TILE + 8;
};

template <int M, bool FP8> struct room { /* shared memory */
    typedef form<M, FP8> F;
    td_bf16 q[F::HEADS][ROW];
    td_bf16 tile[F::TILE][ROW];
    alignas(16) unsigned char raw[F::TILE][F::RAW_ROW];
    alignas(16) td_bf16 p[F::HEADS][F::P_ROW];
    float max[F::PARTS][F::HEADS], sum[F::PARTS][F::HEADS]; /* [0]: of all, in the end */
    int valid[2][F::TILE]; /* of the tile worked on and of the next */
    int used;
};

/* Starts the rows of keys first.. on their way; those that are not there become zeros. */
template <int M, bool FP8>
__device__ inline void fetch(const td_sparse_mla_args &a, const int32_t *selected, int seq,
                             int first, int n, room<M, FP8> *r)
{
    typedef form<M, FP8> F;
    const int pieces = F::RAW_ROW / 16;
    const int32_t *table = a.rows.block_table + (int64_t)seq * a.rows.max_pages;
    for (int i = threadIdx.x; i < F::TILE * pieces; i += THREADS) {
        const int key = i / pieces, piece = i % pieces;
        const int position = first + key < n ? selected[first + key] : -1;
        const unsigned char *from = a.kv.plane;
        if (position >= 0)
            from += (uint64_t)table[position / a.kv.page_rows] * a.kv.page_stride +
                    (uint64_t)(position % a.kv.page_rows) * F::RAW_ROW + piece * 16;
        td_copy_async(r->raw[key] + piece * 16, from, position >= 0 ? 16 : 0);
        if (piece == 0)
            r->valid[first / F::TILE & 1][key] = position >= 0;
    }
    td_copy_commit();
}

/* 16 codes as bf16, times scale. */
__device__ inline void widen(uint4 codes, float scale, td_bf16 *out)
{
    const uint32_t in[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t pairs[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t lo, hi;
        td_e4m3x4_to_f16(in[i], &lo, &hi);
        const float2 x = td_f16_pair(lo), y = td_f16_pair(hi);
        pairs[2 * i] = td_bf16_pair(x.x * scale, x.y * scale);
        pairs[2 * i + 1] = td_bf16_pair(y.x * scale, y.y * scale);
    }
    *(uint4 *)out = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    *(uint4 *)(out + 8) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

/* The rows that arrived, as bf16. */
template <int M, bool FP8> __device__ inline void unpack(room<M, FP8> *r)
{
    typedef form<M, FP8> F;
    const int codes = FP8 ? DIM_C / 16 : 0, first = codes * 16; /* pieces of 16, then as they are */
    for (int i = threadIdx.x; i < F::TILE * codes; i += THREADS) {
        const int key = i / (DIM_C / 16), at = i % (DIM_C / 16) * 16;
        const float *scales = (const float *)(r->raw[key] + DIM_C);
        widen(*(const uint4 *)(r->raw[key] + at), scales[at / TD_QUANT_GROUP], &r->tile[key][at]);
    }
    const int plain = (DIMS - first) / 8, skip = FP8 ? DIM_C + DIM_C / TD_QUANT_GROUP * 4 : 0;
    for (int i = threadIdx.x; i < F::TILE * plain; i += THREADS) {
        const int key = i / plain, at = i % plain;
        *(uint4 *)&r->tile[key][first + at * 8] = *(const uint4 *)(r->raw[key] + skip + at * 16);
    }
}

/* d[n]: scores of this warp's 16 heads and keys 8 n.., without the scale. */
template <int M, bool FP8>
__device__ inline void scores(const room<M, FP8> *r, float d[form<M, FP8>::NF][4])
{
    typedef form<M, FP8> F;
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

typedef struct { /* of a head, over some keys */
    float max, sum;
} stats;

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
template <int M, bool FP8>
__device__ inline stats take(stats s, const float d[form<M, FP8>::NF][4], int half, float scale,
                             const int *valid)
{
    typedef form<M, FP8> F;
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

/* The lanes of a row, then the warps that share it, in their order: r->max[0], r->sum[0]. */
template <int M, bool FP8> __device__ inline void settle(room<M, FP8> *r, stats s[2])
{
    typedef form<M, FP8> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int half = 0; half < 2; half++) {
        for (int m = 1; m < 4; m *= 2) {
            const stats other = {__shfl_xor_sync(0xffffffffu, s[half].max, m),
                                 __shfl_xor_sync(0xffffffffu, s[half].sum, m)};
            s[half] = lane & m ? join(other, s[half]) : join(s[half], other);
        }
        if (lane % 4 == 0) {
            r->max[warp / M][warp % M * 16 + half * 8 + lane / 4] = s[half].max;
            r->sum[warp / M][warp % M * 16 + half * 8 + lane / 4] = s[half].sum;
        }
    }
    __syncthreads();
    for (int h = threadIdx.x; h < F::HEADS; h += THREADS) {
        stats all = {r->max[0][h], r->sum[0][h]};
        for (int part = 1; part < F::PARTS; part++)
            all = join(all, {r->max[part][h], r->sum[part][h]});
        r->max[0][h] = all.max;
        r->sum[0][h] = all.sum;
    }
    __syncthreads();
}

/* p of this warp's scores, rounded to bf16, to r->p. */
template <int M, bool FP8>
__device__ inline void make_p(room<M, FP8> *r, const float d[form<M, FP8>::NF][4], float scale,
                              const int *valid)
{
    typedef form<M, FP8> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int at = warp / M * F::KEYS + lane % 4 * 2;
    for (int half = 0; half < 2; half++) {
        const int h = warp % M * 16 + half * 8 + lane / 4;
        const float max = r->max[0][h], sum = r->sum[0][h];
#pragma unroll
        for (int n = 0; n < F::NF; n++) {
            float p[2];
            for (int j = 0; j < 2; j++)
                p[j] =
                    valid[at + n * 8 + j] ? td_expf(d[n][half * 2 + j] * scale - max) / sum : 0.0f;
            *(uint32_t *)&r->p[h][at + n * 8] = td_bf16_pair(p[0], p[1]);
        }
    }
}

/* u += p times the tile's values, for all heads and this warp's 64 columns. */
template <int M, bool FP8>
__device__ inline void add_values(const room<M, FP8> *r, float u[M][8][4])
{
    typedef form<M, FP8> F;
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

template <int M>
__device__ inline void store(const td_sparse_mla_args &a, int64_t t, int head, float u[M][8][4])
{
    const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 64 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            const int h = head + m * 16 + half * 8 + lane / 4;
            if (h >= a.H)
                continue;
            td_bf16 *out = (td_bf16 *)a.u + (t * a.H + h) * DIM_C + column;
#pragma unroll
            for (int n = 0; n < 8; n++)
                *(uint32_t *)(out + n * 8) = td_bf16_pair(u[m][n][half * 2], u[m][n][half * 2 + 1]);
        }
}

/* Queries of the block's heads; zeros behind the last. How many positions there are up to the last
 * one that is selected. */
template <int M, bool FP8>
__device__ inline int begin(const td_sparse_mla_args &a, int64_t t, int head, room<M, FP8> *r)
{
    typedef form<M, FP8> F;
    const int32_t *selected = a.selected + t * a.k;
    if (threadIdx.x == 0)
        r->used = 0;
    for (int i = threadIdx.x; i < F::HEADS * (DIMS / 8); i += THREADS) {
        const int h = i / (DIMS / 8), at = i % (DIMS / 8) * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (head + h < a.H)
            v = *(const uint4 *)((const td_bf16 *)a.q + (t * a.H + head + h) * DIMS + at);
        *(uint4 *)&r->q[h][at] = v;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.k && a.rows.row_seq[t] >= 0; i += THREADS)
        if (selected[i] >= 0)
            atomicMax(&r->used, i + 1);
    __syncthreads();
    return r->used;
}

/* Waits for tile first.., unpacks it and starts the next. */
template <int M, bool FP8>
__device__ inline void next_tile(const td_sparse_mla_args &a, const int32_t *selected, int seq,
                                 int first, int n, room<M, FP8> *r)
{
    typedef form<M, FP8> F;
    td_copy_wait<0>();
    __syncthreads(); /* everybody's rows are there; nobody works on the last tile */
    unpack(r);
    __syncthreads(); /* the tile is there, the rows' room is free */
    if (first + F::TILE < n)
        fetch(a, selected, seq, first + F::TILE, n, r);
}

template <int M, bool FP8>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ td_sparse_mla_args a, int n_groups)
{
    typedef form<M, FP8> F;
    extern __shared__ uint4 shared[];
    room<M, FP8> *r = (room<M, FP8> *)shared;
    const int64_t t = blockIdx.x / n_groups;
    const int head = (int)(blockIdx.x % n_groups) * F::HEADS, seq = a.rows.row_seq[t];
    const int32_t *selected = a.selected + t * a.k;
    const int n = begin(a, t, head, r);
    float d[F::NF][4], u[M][8][4] = {};
    stats s[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    if (n > 0)
        fetch(a, selected, seq, 0, n, r);
    for (int first = 0; first < n; first += F::TILE) {
        next_tile(a, selected, seq, first, n, r);
        scores(r, d);
        for (int half = 0; half < 2; half++)
            s[half] = take<M, FP8>(s[half], d, half, a.scale, r->valid[first / F::TILE & 1]);
    }
    settle(r, s);
    if (n > 0)
        fetch(a, selected, seq, 0, n, r);
    for (int first = 0; first < n; first += F::TILE) {
        next_tile(a, selected, seq, first, n, r);
        scores(r, d);
        make_p(r, d, a.scale, r->valid[first / F::TILE & 1]);
        __syncthreads();
        add_values(r, u);
    }
    store<M>(a, t, head, u);
}

template <int M, bool FP8> static td_status launch(const td_sparse_mla_args *a, td_stream *s)
{
    const size_t n_shared = sizeof(room<M, FP8>);
    const int n_groups = td_ceil_div(a->H, form<M, FP8>::HEADS);
    td_status st = td_cuda_allow_shared(s, (const void *)kernel<M, FP8>, n_shared, "sparse_mla");
    if (st < 0)
        return st;
    kernel<M, FP8>
        <<<(unsigned)a->T *(unsigned)n_groups, THREADS, n_shared, s->stream>>>(*a, n_groups);
    return td_cuda_launched(s, "sparse_mla");
}

/* Whether the shape is one of these. */
static bool fits(const td_sparse_mla_args *a)
{
    const uintptr_t places =
        (uintptr_t)a->kv.plane | (uintptr_t)a->kv.page_stride | (uintptr_t)a->q | (uintptr_t)a->u;
    return a->act == TD_BF16 && a->C == DIM_C && a->R == DIM_R && a->kv.dtype != 2 &&
           places % 16 == 0;
}

static td_status run(const td_sparse_mla_args *a, td_stream *s)
{
    const bool fp8 = a->kv.dtype == 0;
    if (a->H <= 16)
        return fp8 ? launch<1, true>(a, s) : launch<1, false>(a, s);
    if (a->H <= 32)
        return fp8 ? launch<2, true>(a, s) : launch<2, false>(a, s);
    return fp8 ? launch<4, true>(a, s) : launch<4, false>(a, s);
}

} // namespace mla
#endif
