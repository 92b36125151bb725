/* sparse_mla_fp8.cuh - sparse_mla on wgmma: bf16 activations, C 512, R 64, fp8 caches, any
 * selection. Keys stand on the instruction's 64-row side, in registers, where their codes become
 * f16 or bf16; queries and p are its other operand: 16, 32, 64 or 128 heads to a block, few when
 * there are few tokens, which no bit depends on. The contract rounds p after the division, hence
 * passes, with their results in scratch memory:
 *   prepare: where each selected row stands, how far the selection reaches; the queries' operands
 *   scores: f32 (sparse_mla_fp8_scores.cuh)
 *   softmax: p, over all keys of a row and head
 *   values: u (sparse_mla_fp8_values.cuh) */
#ifndef TD_KERNELS_SPARSE_MLA_FP8_CUH
#define TD_KERNELS_SPARSE_MLA_FP8_CUH
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/swizzle.cuh"
#include "kernels/cuda/wgmma.cuh"
extern "C" {
#include "kernels/sparse_mla/sparse_mla.h"
}

namespace mla8
{

constexpr int DIM_C = 512, DIM_R = 64, DIMS = DIM_C + DIM_R;
constexpr int SCALES_AT = DIM_C, ROPE_AT = SCALES_AT + DIM_C / TD_QUANT_GROUP * 4; /* of a row */
constexpr int ROW_BYTES = ROPE_AT + DIM_R * 2;
constexpr int TILE = 64;            /* keys */
constexpr int OPERANDS = DIMS / 64; /* of a block's queries; the rotated part is the last */
constexpr int PREPARED = 16;        /* heads of a block of prepare_kernel */
constexpr int THREADS = 256;
constexpr int SMS = TD_CUDA_SMS;              /* blocks of a round; no bit depends on it */
constexpr size_t SCRATCH = (size_t)288 << 20; /* for as many tokens as go in one launch */
constexpr uint32_t NO_KEY = 0xffffffffu;      /* a score's bits; arithmetic makes another NaN */

/* Tokens first.. of a launch. Heads are padded to whole groups (what a block takes), keys to pairs
 * of tiles; scores end with the tile of the last key that is selected, p with the pair. */
typedef struct {
    int64_t *places;  /* [tokens, keys] of a row in the plane, bytes; -1: none */
    int32_t *used;    /* [tokens] one behind the last key that is selected */
    unsigned char *q; /* [tokens, groups, OPERANDS] of group rows, as they stand in shared memory */
    float *back;      /* [tokens, heads] from a sum of products to the score */
    float *scores;    /* [tokens, heads, keys]; NO_KEY where there is none */
    unsigned char *p; /* [tokens, groups, keys / TILE] operands of group rows of bf16 */
    int64_t first;    /* token */
    int tokens, heads, group, keys;
    int chunk; /* keys of a block of scores */
} work;

/* A row of an operand that all of a group's heads share: of (token, head), operand `at` of n. */
__device__ inline int64_t operand_at(const work &w, int64_t token, int head, int at, int n)
{
    const int64_t group = token * (w.heads / w.group) + head / w.group;
    return (group * n + at) * w.group * TD_SWIZZLE_ROW;
}

/* Where the token's rows stand. */
__device__ inline void locate(const td_sparse_mla_args &a, const work &w, int64_t token)
{
    __shared__ int used;
    const int64_t t = w.first + token;
    const int seq = a.rows.row_seq[t];
    const int32_t *table = a.rows.block_table + (int64_t)seq * a.rows.max_pages;
    if (threadIdx.x == 0)
        used = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < w.keys; i += THREADS) {
        const int position = seq >= 0 && i < a.k ? a.selected[t * a.k + i] : -1;
        int64_t place = -1;
        if (position >= 0) {
            place = (int64_t)((uint64_t)table[position / a.kv.page_rows] * a.kv.page_stride) +
                    position % a.kv.page_rows * ROW_BYTES;
            atomicMax(&used, i + 1);
        }
        w.places[token * w.keys + i] = place;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        w.used[token] = used;
}

/* The power of two that brings a head's largest query into [2^14, 2^15), as far as f32 and its
 * inverse reach. A warp. */
__device__ inline float query_factor(const td_bf16 *q)
{
    float most = 0.0f;
#pragma unroll
    for (int i = threadIdx.x % 32 * 2; i < DIMS; i += 64) {
        const uint32_t pair = *(const uint32_t *)(q + i);
        most = fmaxf(most, fmaxf(fabsf(__uint_as_float(pair << 16)),
                                 fabsf(__uint_as_float(pair & 0xffff0000u))));
    }
    const uint32_t exponent = 268 - (__float_as_uint(td_warp_max(most)) >> 23);
    return __uint_as_float(min(exponent, 253u) << 23);
}

/* PREPARED heads of a token's queries as operands of the scores, in the order of K that
 * sparse_mla_fp8_scores.cuh tells. */
__device__ inline void prepare_queries(const td_sparse_mla_args &a, const work &w, int64_t token,
                                       int first_head)
{
    __shared__ float factors[PREPARED];
    const td_bf16 *q = (const td_bf16 *)a.q + (w.first + token) * a.H * (int64_t)DIMS;
    for (int i = threadIdx.x / 32; i < PREPARED; i += THREADS / 32) {
        const int head = first_head + i;
        const float factor = head < a.H ? query_factor(q + head * DIMS) : 1.0f;
        if (threadIdx.x % 32 == 0) {
            factors[i] = factor;
            w.back[token * w.heads + head] =
                __uint_as_float((254u << 23) - __float_as_uint(factor)) * a.scale;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < PREPARED * (DIMS / 8); i += THREADS) {
        const int h = i / (DIMS / 8), operand = i % (DIMS / 8) / 8, piece = i % 8;
        const bool rotated = operand == OPERANDS - 1;
        const int step = piece / 2, hi = piece % 2, each = rotated ? 8 : 16; /* of a lane q */
        const int first = rotated ? DIM_C + step / 2 * 32 + step % 2 * 4 : operand * 64 + step * 4;
        const int head = first_head + h;
        uint32_t out[4];
#pragma unroll
        for (int lane_q = 0; lane_q < 4; lane_q++) {
            uint32_t v = 0;
            if (head < a.H)
                v = *(const uint32_t *)(q + head * DIMS + first + lane_q * each + 2 * hi);
            const float x = __uint_as_float(v << 16) * factors[h];
            const float y = __uint_as_float(v & 0xffff0000u) * factors[h];
            out[lane_q] = rotated ? td_bf16_pair(x, y) : td_f16_round_pair(x, y);
        }
        *(uint4 *)(w.q + operand_at(w, token, head, operand, OPERANDS) +
                   td_swizzle(head % w.group, piece)) = make_uint4(out[0], out[1], out[2], out[3]);
    }
}

/* A block takes a token's rows, or PREPARED of its heads. */
__global__ void __launch_bounds__(THREADS)
    prepare_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w)
{
    const int each = 1 + w.heads / PREPARED, job = blockIdx.x % each;
    if (job == 0)
        locate(a, w, blockIdx.x / each);
    else
        prepare_queries(a, w, blockIdx.x / each, (job - 1) * PREPARED);
}

constexpr int HELD = 8; /* scores of a thread: all of a row that has no more than 2048 */

/* This thread's scores from key `base` on; NO_KEY behind the end. */
__device__ inline void load_scores(const float *scores, int base, int n, float s[HELD])
{
    const float none = __uint_as_float(NO_KEY);
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
        const int at = base + i * THREADS + (int)threadIdx.x * 4;
        float4 v = {none, none, none, none};
        if (at < n)
            v = *(const float4 *)(scores + at);
        s[i] = v.x;
        s[i + 1] = v.y;
        s[i + 2] = v.z;
        s[i + 3] = v.w;
    }
}

/* s becomes exp(s - max), 0 where there is no key; some 2^-19 of it off for those that count. */
__device__ inline void weigh(float s[HELD], float max)
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        s[i] = __float_as_uint(s[i]) == NO_KEY ? 0.0f : exp2f((s[i] - max) * 1.44269504f);
}

/* A block takes a token's head: p = bf16(exp(s - max) / sum). Heads that only fill a group up get
 * zeros. */
__global__ void __launch_bounds__(THREADS)
    softmax_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w)
{
    __shared__ float maxima[THREADS / 32], part[32];
    const int64_t token = blockIdx.x / w.heads;
    const int head = blockIdx.x % w.heads, step = THREADS * HELD;
    const int n = (w.used[token] + 2 * TILE - 1) / (2 * TILE) * 2 * TILE;
    const int there = head < a.H ? (w.used[token] + TILE - 1) / TILE * TILE : 0;
    const float *scores = w.scores + (token * w.heads + head) * w.keys;
    float s[HELD], max = -INFINITY, sum = 0.0f;
    load_scores(scores, 0, there, s);
    for (int base = 0; base < n; base += step) {
        if (n > step)
            load_scores(scores, base, there, s);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            max = fmaxf(max, s[i]); /* NaN does not count */
    }
    max = td_warp_max(max);
    if (threadIdx.x % 32 == 0)
        maxima[threadIdx.x / 32] = max;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++)
        max = fmaxf(max, maxima[i]);
    for (int base = 0; base < n; base += step) {
        if (n > step)
            load_scores(scores, base, there, s);
        weigh(s, max);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            sum += s[i];
    }
    sum = td_block_sum(sum, part);
    const float inverse = there > 0 ? 1.0f / sum : 0.0f;
    for (int base = 0; base < n; base += step) {
        if (n > step) {
            load_scores(scores, base, there, s);
            weigh(s, max);
        }
#pragma unroll
        for (int i = 0; i < HELD; i += 4) {
            const int at = base + i * THREADS + (int)threadIdx.x * 4;
            if (at < n)
                *(uint2 *)(w.p + operand_at(w, token, head, at / TILE, w.keys / TILE) +
                           td_swizzle(head % w.group, at % TILE / 8) + at % 8 * 2) =
                    make_uint2(td_bf16_pair(s[i] * inverse, s[i + 1] * inverse),
                               td_bf16_pair(s[i + 2] * inverse, s[i + 3] * inverse));
        }
    }
}

} // namespace mla8
#endif
