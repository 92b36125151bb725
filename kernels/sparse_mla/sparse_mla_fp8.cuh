/* sparse_mla_fp8.cuh - sparse_mla on wgmma: bf16 activations, C 512, R 64, fp8 caches, any
 * selection; 16, 32, 64 or 128 heads to a block. Keys stand on the instruction's 64-row side, in
 * registers, where their codes become f16 or bf16; queries and p are its other operand. The
 * contract rounds p after the division, hence passes, with their results in scratch memory:
 *   locate: where each selected row stands, and how far the selection reaches
 *   scores: f32 (sparse_mla_fp8_scores.cuh)
 *   softmax: p, over all keys of a row and head
 *   values: the share of u of each part of the keys (sparse_mla_fp8_values.cuh)
 *   sum: of the parts, in their order
 * The parts' length depends on k alone, so that a row's bits do not depend on the batch; they give
 * a single row work for many blocks. Heads are padded to whole blocks, keys to whole parts. */
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
constexpr int TILE = 64;        /* keys */
constexpr int MIN_PARTS = 4;    /* of the selected keys */
constexpr int MOST_PART = 1024; /* keys */
constexpr int THREADS = 256;
constexpr int SMS = 132;                      /* blocks of a round; no bit depends on it */
constexpr size_t SCRATCH = (size_t)288 << 20; /* for as many tokens as go in one launch */
constexpr uint32_t NO_KEY = 0xffffffffu;      /* a score's bits; arithmetic makes another NaN */

typedef struct {     /* tokens first.. of a launch */
    int64_t *places; /* [tokens, keys] of a row in the plane, bytes; -1: none */
    int32_t *used;   /* [tokens] one behind the last key that is selected */
    float *scores;   /* [tokens, heads, keys] scaled, or NO_KEY; up to used, in whole tiles */
    td_bf16 *p;      /* [tokens, heads, keys] likewise */
    float *u;        /* [n_parts, tokens, heads, DIM_C]; where the scores were */
    int64_t first;   /* token */
    int tokens, heads, keys, part, n_parts;
    int n_groups; /* of heads */
    int chunk;    /* keys of a block of scores */
} work;

/* A block takes a token. */
__global__ void __launch_bounds__(THREADS)
    locate_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w)
{
    __shared__ int used;
    const int64_t token = blockIdx.x, t = w.first + token;
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

/* s becomes exp(s - max), 0 where there is no key. */
__device__ inline void weigh(float s[HELD], float max)
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        s[i] = __float_as_uint(s[i]) == NO_KEY ? 0.0f : td_expf(s[i] - max);
}

/* A block takes a token's head: p = bf16(exp(s - max) / sum). */
__global__ void __launch_bounds__(THREADS)
    softmax_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w)
{
    __shared__ float maxima[THREADS / 32], part[32];
    const int64_t token = blockIdx.x / a.H, row = token * w.heads + blockIdx.x % a.H;
    const int n = (w.used[token] + TILE - 1) / TILE * TILE, step = THREADS * HELD;
    const float *scores = w.scores + row * w.keys;
    float s[HELD], max = -INFINITY, sum = 0.0f;
    load_scores(scores, 0, n, s);
    for (int base = 0; base < n; base += step) {
        if (n > step)
            load_scores(scores, base, n, s);
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
            load_scores(scores, base, n, s);
        weigh(s, max);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            sum += s[i];
    }
    sum = td_block_sum(sum, part);
    for (int base = 0; base < n; base += step) {
        if (n > step) {
            load_scores(scores, base, n, s);
            weigh(s, max);
        }
#pragma unroll
        for (int i = 0; i < HELD; i += 4) {
            const int at = base + i * THREADS + (int)threadIdx.x * 4;
            if (at < n)
                *(uint2 *)(w.p + row * w.keys + at) =
                    make_uint2(td_bf16_pair(s[i] / sum, s[i + 1] / sum),
                               td_bf16_pair(s[i + 2] / sum, s[i + 3] / sum));
        }
    }
}

/* u = the parts' shares, in their order. A block takes a token's head, a thread four columns. */
__global__ void __launch_bounds__(DIM_C / 4)
    sum_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w)
{
    const int64_t token = blockIdx.x / a.H, h = blockIdx.x % a.H;
    const int64_t rows = (int64_t)w.tokens * w.heads, row = token * w.heads + h;
    const int n_parts = w.keys > 0 ? (w.used[token] + w.part - 1) / w.part : 0;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int part = 0; part < n_parts; part++) {
        const float4 v = ((const float4 *)(w.u + (part * rows + row) * DIM_C))[threadIdx.x];
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
    }
    td_bf16 *out = (td_bf16 *)a.u + ((w.first + token) * a.H + h) * DIM_C;
    ((uint2 *)out)[threadIdx.x] =
        make_uint2(td_bf16_pair(sum.x, sum.y), td_bf16_pair(sum.z, sum.w));
}

} // namespace mla8
#endif
