/* sparse_mla_sm90.cu - two forms, both in two passes over the keys: the contract rounds p after the
 * division, so all scores of a row must stand before the first p is used.
 * tensor: bf16 activations, C 512, R 64: a block takes one token and 16 heads; tiles of 64 gathered
 *   keys in shared memory, products by mma. Scores of fp8 keys are exact in the codes (a group's
 *   scale multiplies the group's sum); the second product takes code * scale rounded to bf16.
 * plain: every other shape; a block takes one token and head, sums in f64 as the judge does. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
extern "C" {
#include "kernels/sparse_mla/sparse_mla.h"
}

#define WARPS 8
#define THREADS (WARPS * 32)
#define HEADS 16    /* rows of an mma */
#define TILE 64     /* keys */
#define MIN_HEADS 8 /* of 16 in a tile; fewer are as fast, and exact, in f64 */
#define DIM_C 512
#define DIM_R 64
#define DIMS (DIM_C + DIM_R)
#define ROW (DIMS + 8) /* of a tile in shared memory: eight rows lie in different banks */
#define FP8_ROW (DIM_C + DIM_C / TD_QUANT_GROUP * 4 + DIM_R * 2)
#define MAX_K 2048 /* the scores fill what the tile leaves of shared memory */
#define PLAIN_SHARED ((size_t)96 << 10)

__device__ static const unsigned char *key_row(const td_kv_view &kv, const td_rows_view &rows,
                                               int seq, int position, int64_t row_bytes)
{
    const int32_t page = rows.block_table[(int64_t)seq * rows.max_pages + position / kv.page_rows];
    return kv.plane + (uint64_t)page * kv.page_stride + (position % kv.page_rows) * row_bytes;
}

/* ---- tensor ---- */

typedef struct {
    td_bf16 *q, *tile; /* [HEADS][ROW], [TILE][ROW] */
    float *scales;     /* [TILE][4] of fp8 keys */
    float *s;          /* [HEADS][stride]: scores, then p */
    int stride;
} room;

static size_t room_bytes(int k)
{
    const size_t padded = (size_t)(k + TILE - 1) / TILE * TILE;
    return (HEADS + TILE) * ROW * sizeof(td_bf16) + TILE * 4 * sizeof(float) +
           HEADS * (padded + 8) * sizeof(float);
}

__device__ static room room_of(unsigned char *shared, int k)
{
    room r;
    r.q = (td_bf16 *)shared;
    r.tile = r.q + HEADS * ROW;
    r.scales = (float *)(r.tile + TILE * ROW);
    r.s = r.scales + TILE * 4;
    r.stride = (k + TILE - 1) / TILE * TILE + 8;
    return r;
}

/* 16 codes as bf16, times scale. */
__device__ static void widen_codes(uint4 codes, float scale, td_bf16 *out)
{
    const uint32_t in[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t pairs[8];
    for (int i = 0; i < 4; i++) {
        uint32_t lo, hi;
        td_e4m3x4_to_f16(in[i], &lo, &hi);
        const float2 a = td_f16_pair(lo), b = td_f16_pair(hi);
        pairs[2 * i] = td_bf16_pair(a.x * scale, a.y * scale);
        pairs[2 * i + 1] = td_bf16_pair(b.x * scale, b.y * scale);
    }
    *(uint4 *)out = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    *(uint4 *)(out + 8) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

/* One key by one warp. scaled: values, without rope; otherwise codes, scales beside them, rope. */
__device__ static void load_fp8(const unsigned char *from, int scaled, td_bf16 *to, float *scales)
{
    const int lane = (int)threadIdx.x % 32;
    const float *own = (const float *)(from + DIM_C);
    const uint4 codes = *(const uint4 *)(from + lane * 16);
    widen_codes(codes, scaled ? own[lane * 16 / TD_QUANT_GROUP] : 1.0f, to + lane * 16);
    if (scaled)
        return;
    if (lane < 4)
        scales[lane] = own[lane];
    if (lane < DIM_R / 8)
        *(uint4 *)(to + DIM_C + lane * 8) =
            *(const uint4 *)(from + DIM_C + DIM_C / TD_QUANT_GROUP * 4 + lane * 16);
}

/* Keys first..first + TILE - 1 of the selection; those that are not there are zeros. */
__device__ static void load_tile(const td_sparse_mla_args &a, const int32_t *selected, int seq,
                                 int first, int n, int scaled, room r)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int fp8 = a.kv.dtype == 0;
    for (int i = warp; i < TILE; i += WARPS) {
        td_bf16 *to = r.tile + i * ROW;
        const int position = first + i < n ? selected[first + i] : -1;
        if (position < 0) {
            for (int c = lane; c < DIMS / 8; c += 32)
                *(uint4 *)(to + c * 8) = make_uint4(0, 0, 0, 0);
            if (lane < 4)
                r.scales[i * 4 + lane] = 0.0f;
            continue;
        }
        const unsigned char *from = key_row(a.kv, a.rows, seq, position, fp8 ? FP8_ROW : 2 * DIMS);
        if (fp8)
            load_fp8(from, scaled, to, r.scales + i * 4);
        else
            for (int c = lane; c < DIMS / 8; c += 32)
                *(uint4 *)(to + c * 8) = *(const uint4 *)(from + c * 16);
    }
}

/* Adds 16 heads x 8 keys over dims begin..end - 1. */
__device__ static void dot_range(const room &r, int keys, int begin, int end, float d[4])
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
    const td_bf16 *lo = r.q + g * ROW + 2 * q, *hi = lo + 8 * ROW;
    const td_bf16 *key = r.tile + (keys + g) * ROW + 2 * q;
    for (int k = begin; k < end; k += 16) {
        const uint32_t x[4] = {*(const uint32_t *)(lo + k), *(const uint32_t *)(hi + k),
                               *(const uint32_t *)(lo + k + 8), *(const uint32_t *)(hi + k + 8)};
        td_mma_bf16(d, x, *(const uint32_t *)(key + k), *(const uint32_t *)(key + k + 8));
    }
}

/* Scores of the tile: a warp takes eight keys. */
__device__ static void score_tile(const room &r, int first, int fp8, float scale)
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
    const int keys = (int)threadIdx.x / 32 * 8;
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (fp8) {
        const float *scales = r.scales + (keys + 2 * q) * 4; /* of columns 2q and 2q + 1 */
        for (int i = 0; i < DIM_C / TD_QUANT_GROUP; i++) {
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            dot_range(r, keys, i * TD_QUANT_GROUP, (i + 1) * TD_QUANT_GROUP, part);
            for (int j = 0; j < 4; j++)
                d[j] = fmaf(part[j], scales[j % 2 * 4 + i], d[j]);
        }
        dot_range(r, keys, DIM_C, DIMS, d);
    } else {
        dot_range(r, keys, 0, DIMS, d);
    }
    float *s = r.s + g * r.stride + first + keys + 2 * q;
    s[0] = d[0] * scale;
    s[1] = d[1] * scale;
    s[8 * r.stride] = d[2] * scale;
    s[8 * r.stride + 1] = d[3] * scale;
}

/* p of one head by one warp, rounded to bf16; 0 where nothing is selected, up to n_padded. */
__device__ static void softmax(float *s, const int32_t *selected, int n, int n_padded)
{
    const int lane = (int)threadIdx.x % 32;
    float max = -INFINITY;
    double sum = 0.0;
    for (int i = lane; i < n; i += 32)
        if (selected[i] >= 0)
            max = fmaxf(max, s[i]);
    max = td_warp_max(max);
    for (int i = lane; i < n_padded; i += 32) {
        s[i] = i < n && selected[i] >= 0 ? td_expf(s[i] - max) : 0.0f;
        sum += s[i];
    }
    for (int m = 16; m > 0; m /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, m);
    for (int i = lane; i < n_padded; i += 32)
        s[i] = i < n && selected[i] >= 0 ? td_round<td_bf16>((float)(s[i] / sum)) : 0.0f;
}

/* Two f32 that are bf16 already. */
__device__ static uint32_t pack(const float *p)
{
    return __byte_perm(__float_as_uint(p[0]), __float_as_uint(p[1]), 0x7632);
}

/* Adds the tile's part of 16 heads x 64 columns; a warp owns its columns. */
__device__ static void value_tile(const room &r, int first, float u[8][4])
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int columns = (int)threadIdx.x / 32 * 64;
    const float *p = r.s + g * r.stride + first + 2 * q;
    for (int k = 0; k < TILE; k += 16) {
        const uint32_t x[4] = {pack(p + k), pack(p + 8 * r.stride + k), pack(p + k + 8),
                               pack(p + 8 * r.stride + k + 8)};
        const td_bf16 *row = r.tile + (k + lane % 16) * ROW + columns + lane / 16 * 8;
        for (int n = 0; n < 4; n++) { /* 16 keys x 16 columns, transposed as they are loaded */
            uint32_t b[4];
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                         : "r"((uint32_t)__cvta_generic_to_shared(row + n * 16))
                         : "memory");
            td_mma_bf16(u[2 * n], x, b[0], b[1]);
            td_mma_bf16(u[2 * n + 1], x, b[2], b[3]);
        }
    }
}

__device__ static void store(const td_sparse_mla_args &a, int64_t t, int head, float u[8][4])
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
    td_bf16 *out = (td_bf16 *)a.u + (t * a.H + head + g) * DIM_C + threadIdx.x / 32 * 64 + 2 * q;
    for (int n = 0; n < 8; n++)
        for (int i = 0; i < 4; i++)
            if (head + g + i / 2 * 8 < a.H)
                out[i / 2 * 8 * DIM_C + n * 8 + i % 2] = td_f32_to_bf16(u[n][i]);
}

/* One behind the last position that is selected. Every thread. */
__device__ static int count_used(const int32_t *selected, int k)
{
    __shared__ int most;
    if (threadIdx.x == 0)
        most = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < k; i += (int)blockDim.x)
        if (selected[i] >= 0)
            atomicMax(&most, i + 1);
    __syncthreads();
    return most;
}

__global__ void __launch_bounds__(THREADS) tensor_kernel(td_sparse_mla_args a, int n_groups)
{
    extern __shared__ uint4 shared[];
    const int64_t t = blockIdx.x / n_groups;
    const int head = (int)(blockIdx.x % n_groups) * HEADS, seq = a.rows.row_seq[t];
    const int32_t *selected = a.selected + t * a.k;
    const room r = room_of((unsigned char *)shared, a.k);
    const int n = seq < 0 ? 0 : count_used(selected, a.k);
    const int n_padded = (n + TILE - 1) / TILE * TILE, warp = (int)threadIdx.x / 32;
    float u[8][4] = {};
    for (int i = (int)threadIdx.x; i < HEADS * DIMS; i += THREADS) {
        const int h = i / DIMS, d = i % DIMS;
        r.q[h * ROW + d] =
            head + h < a.H ? ((const td_bf16 *)a.q)[(t * a.H + head + h) * DIMS + d] : (td_bf16)0;
    }
    for (int first = 0; first < n; first += TILE) {
        load_tile(a, selected, seq, first, n, 0, r);
        __syncthreads();
        score_tile(r, first, a.kv.dtype == 0, a.scale);
        __syncthreads();
    }
    for (int h = warp; h < HEADS && n > 0; h += WARPS)
        softmax(r.s + h * r.stride, selected, n, n_padded);
    for (int first = 0; first < n; first += TILE) {
        load_tile(a, selected, seq, first, n, 1, r);
        __syncthreads(); /* the p too */
        value_tile(r, first, u);
        __syncthreads();
    }
    store(a, t, head, u);
}

/* ---- plain ---- */

__device__ static float number(const void *x, int64_t i, int is_f32)
{
    return is_f32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

/* Element i of a cached row: the value. */
__device__ static float key_at(const td_sparse_mla_args &a, const unsigned char *row, int i)
{
    if (a.kv.dtype != 0)
        return number(row, i, a.kv.dtype == 2);
    if (i >= a.C)
        return number(row + a.C + a.C / TD_QUANT_GROUP * 4, i - a.C, 0);
    float scale; /* an odd R leaves it unaligned */
    memcpy(&scale, row + a.C + i / TD_QUANT_GROUP * 4, 4);
    return td_e4m3_to_f32(row[i]) * scale;
}

__device__ static double warp_sum(double v)
{
    for (int m = 16; m > 0; m /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}

/* Over the block, in a fixed order; every thread. */
__device__ static double block_sum(double v, double *part)
{
    double sum = 0.0;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        sum += part[w];
    return sum;
}

/* s: scores of the row's own positions, then p. */
__device__ static void plain_softmax(const td_sparse_mla_args &a, const int32_t *selected, int n,
                                     float *s)
{
    __shared__ float maxima[WARPS];
    __shared__ double part[WARPS];
    float max = -INFINITY;
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        if (selected[i] >= 0)
            max = fmaxf(max, s[i]);
    max = td_warp_max(max);
    if (threadIdx.x % 32 == 0)
        maxima[threadIdx.x / 32] = max;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        max = fmaxf(max, maxima[w]);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        if (selected[i] >= 0)
            sum += s[i] = td_expf(s[i] - max);
    sum = block_sum(sum, part);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        if (selected[i] >= 0) {
            const float p = (float)(s[i] / sum);
            s[i] = a.act == TD_BF16 ? td_round<td_bf16>(p) : p;
        }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS)
    plain_kernel(td_sparse_mla_args a, int64_t row_bytes, float *scratch)
{
    extern __shared__ uint4 shared[];
    const int64_t th = blockIdx.x, t = th / a.H;
    const int32_t *selected = a.selected + t * a.k;
    const int seq = a.rows.row_seq[t], dims = a.C + a.R, lane = (int)threadIdx.x % 32;
    const int n = seq < 0 ? 0 : count_used(selected, a.k), is_f32 = a.act == TD_F32;
    float *s = scratch == NULL ? (float *)shared : scratch + th * a.k;
    for (int i = (int)threadIdx.x / 32; i < n; i += WARPS) {
        if (selected[i] < 0)
            continue;
        const unsigned char *key = key_row(a.kv, a.rows, seq, selected[i], row_bytes);
        double sum = 0.0;
        for (int d = lane; d < dims; d += 32)
            sum = fma((double)number(a.q, th * dims + d, is_f32), (double)key_at(a, key, d), sum);
        sum = warp_sum(sum);
        if (lane == 0)
            s[i] = (float)sum * a.scale;
    }
    __syncthreads();
    plain_softmax(a, selected, n, s);
    for (int c = (int)threadIdx.x; c < a.C; c += THREADS) {
        double u = 0.0;
        for (int i = 0; i < n; i++)
            if (selected[i] >= 0)
                u = fma((double)s[i],
                        (double)key_at(a, key_row(a.kv, a.rows, seq, selected[i], row_bytes), c),
                        u);
        if (is_f32)
            ((float *)a.u)[th * a.C + c] = (float)u;
        else
            ((td_bf16 *)a.u)[th * a.C + c] = td_f32_to_bf16((float)u);
    }
}

static td_status run_plain(const td_sparse_mla_args *a, td_stream *s)
{
    const int64_t C = a->C, R = a->R, n = (int64_t)a->T * a->H;
    const int64_t row_bytes = a->kv.dtype == 0 ? C + C / TD_QUANT_GROUP * 4 + 2 * R
                                               : (a->kv.dtype == 1 ? 2 : 4) * (C + R);
    size_t bytes = (size_t)a->k * sizeof(float);
    float *scratch = NULL;
    if (bytes > PLAIN_SHARED) {
        scratch = (float *)td_cuda_scratch(s, (size_t)n * bytes);
        if (scratch == NULL)
            return TD_NOMEM;
        bytes = 0;
    }
    td_status st = td_cuda_allow_shared(s, (const void *)plain_kernel, bytes, "sparse_mla");
    if (st < 0)
        return st;
    plain_kernel<<<(unsigned)n, THREADS, bytes, s->stream>>>(*a, row_bytes, scratch);
    return td_cuda_launched(s, "sparse_mla");
}

extern "C" td_status td_sparse_mla_cuda(const td_sparse_mla_args *a, td_stream *s)
{
    if (!td_sparse_mla_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    const int aligned = ((uintptr_t)a->kv.plane | a->kv.page_stride) % 16 == 0;
    if (a->act != TD_BF16 || a->C != DIM_C || a->R != DIM_R || a->kv.dtype == 2 || !aligned ||
        a->k > MAX_K || a->H < MIN_HEADS)
        return run_plain(a, s);
    const size_t bytes = room_bytes(a->k);
    const int n_groups = (a->H + HEADS - 1) / HEADS;
    td_status st = td_cuda_allow_shared(s, (const void *)tensor_kernel, bytes, "sparse_mla");
    if (st < 0)
        return st;
    tensor_kernel<<<(unsigned)(a->T * n_groups), THREADS, bytes, s->stream>>>(*a, n_groups);
    return td_cuda_launched(s, "sparse_mla");
}
