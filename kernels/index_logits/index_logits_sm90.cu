/* index_logits_sm90.cu - a block takes a tile of 128 keys of one row; the grid is for y_stride
 * positions, since only the device knows row_len: tiles behind it end at once.
 * tensor: e4m3 keys, by mma: a warp holds 16 keys as f16 (the conversion is exact) in registers and
 *   meets eight heads at a time. A lane adds its heads in ascending order, then the four lanes of a
 *   key are added: no order depends on the grid.
 * plain: f32 keys of any dim; a thread per key. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
extern "C" {
#include "kernels/index_logits/index_logits.h"
}

#define DIM 128
#define WARPS 8
#define TILE (WARPS * 16) /* keys of a block; as many as threads of a plain block */
#define CHUNK 64          /* heads in shared memory at a time */
#define Q_ROW 144         /* bytes: eight rows lie in different banks */

/* How many positions of row t are wanted. */
__device__ static int wanted(const td_index_logits_args &a, int64_t t)
{
    const int len = a.rows.row_len[t];
    return a.rows.row_seq[t] < 0 || len <= a.skip_len ? 0 : len;
}

__device__ static const unsigned char *page_of(const td_index_logits_args &a, int64_t t, int s)
{
    const int64_t at = (int64_t)a.rows.row_seq[t] * a.rows.max_pages + s / a.kv.page_rows;
    return a.kv.plane + (uint64_t)a.rows.block_table[at] * a.kv.page_stride;
}

__device__ static float relu(float x) /* keeps NaN */
{
    return x < 0.0f ? 0.0f : x;
}

/* ---- tensor ---- */

/* This lane's bytes of one key: four of each 16; zeros behind the row's end. */
__device__ static void load_key(const td_index_logits_args &a, int64_t t, int s, int len,
                                uint32_t codes[8])
{
    const int q = (int)threadIdx.x % 4;
    const unsigned char *key =
        s < len ? page_of(a, t, s) + (int64_t)(s % a.kv.page_rows) * DIM : NULL;
    for (int i = 0; i < 8; i++)
        codes[i] = key == NULL ? 0 : *(const uint32_t *)(key + i * 16 + q * 4);
}

__device__ static float scale_of(const td_index_logits_args &a, int64_t t, int s)
{
    const float *scales = (const float *)(page_of(a, t, s) + (int64_t)a.kv.page_rows * DIM);
    return scales[s % a.kv.page_rows];
}

/* Heads first.. of row t and their weights; zeros behind the last. */
__device__ static void load_heads(const td_index_logits_args &a, int64_t t, int first,
                                  unsigned char *q, float *w)
{
    const unsigned char *from = (const unsigned char *)a.q + (t * a.Hi + first) * DIM;
    for (int i = (int)threadIdx.x; i < CHUNK * DIM / 4; i += WARPS * 32) {
        const int h = i / (DIM / 4), d = i % (DIM / 4) * 4;
        *(uint32_t *)(q + h * Q_ROW + d) =
            first + h < a.Hi ? *(const uint32_t *)(from + h * DIM + d) : 0;
    }
    for (int h = (int)threadIdx.x; h < CHUNK; h += WARPS * 32)
        w[h] = first + h < a.Hi ? a.w[t * a.Hi + first + h] : 0.0f;
}

/* Adds heads h..h + 7 of the chunk to the sums of keys g and g + 8. */
__device__ static void add_heads(const unsigned char *q, const float *w, int h,
                                 const uint32_t keys[8][4], float sum[2])
{
    const int g = (int)threadIdx.x % 32 / 4, lane_q = (int)threadIdx.x % 4;
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t b0, b1;
        td_e4m3x4_to_f16(*(const uint32_t *)(q + (h + g) * Q_ROW + i * 16 + lane_q * 4), &b0, &b1);
        td_mma_f16(d, keys[i], b0, b1);
    }
    for (int i = 0; i < 4; i++)
        sum[i / 2] += relu(d[i]) * w[h + 2 * lane_q + i % 2];
}

__global__ void __launch_bounds__(WARPS * 32) tensor_kernel(td_index_logits_args a, int64_t n_tiles)
{
    __shared__ __align__(16) unsigned char q[CHUNK * Q_ROW];
    __shared__ float w[CHUNK];
    const int64_t t = blockIdx.x / n_tiles, first = blockIdx.x % n_tiles * TILE;
    const int len = wanted(a, t);
    if (first >= len)
        return;
    const int g = (int)threadIdx.x % 32 / 4, s = (int)first + (int)threadIdx.x / 32 * 16 + g;
    uint32_t codes[2][8], keys[8][4];
    float sum[2] = {0.0f, 0.0f};
    load_key(a, t, s, len, codes[0]);
    load_key(a, t, s + 8, len, codes[1]);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        td_e4m3x4_to_f16(codes[0][i], &keys[i][0], &keys[i][2]);
        td_e4m3x4_to_f16(codes[1][i], &keys[i][1], &keys[i][3]);
    }
    for (int h = 0; h < a.Hi; h += CHUNK) {
        __syncthreads();
        load_heads(a, t, h, q, w);
        __syncthreads();
        for (int i = 0; i < CHUNK && h + i < a.Hi; i += 8)
            add_heads(q, w, i, keys, sum);
    }
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        if (threadIdx.x % 4 == 0 && s + 8 * i < len)
            a.y[t * a.y_stride + s + 8 * i] = scale_of(a, t, s + 8 * i) * sum[i];
    }
}

/* ---- plain ---- */

__global__ void __launch_bounds__(TILE) plain_kernel(td_index_logits_args a, int64_t n_tiles)
{
    const int64_t t = blockIdx.x / n_tiles;
    const int64_t s = blockIdx.x % n_tiles * TILE + threadIdx.x;
    if (s >= wanted(a, t))
        return;
    const unsigned char *page = page_of(a, t, (int)s);
    const int64_t row = s % a.kv.page_rows;
    float sum = 0.0f, scale = 1.0f;
    for (int h = 0; h < a.Hi; h++) {
        const int64_t th = t * a.Hi + h;
        float d = 0.0f;
        for (int i = 0; i < a.dim; i++)
            d = a.kv.dtype == 2 ? fmaf(((const float *)a.q)[th * a.dim + i],
                                       ((const float *)page)[row * a.dim + i], d)
                                : fmaf(td_e4m3_to_f32(((const uint8_t *)a.q)[th * a.dim + i]),
                                       td_e4m3_to_f32(page[row * a.dim + i]), d);
        sum += relu(d) * a.w[th];
    }
    if (a.kv.dtype != 2)
        memcpy(&scale, page + (int64_t)a.kv.page_rows * a.dim + row * 4, 4);
    a.y[t * a.y_stride + s] = scale * sum;
}

extern "C" td_status td_index_logits_cuda(const td_index_logits_args *a, td_stream *s)
{
    if (!td_index_logits_valid(a))
        return TD_BAD_SHAPE;
    const int64_t n_tiles = (a->y_stride + TILE - 1) / TILE;
    if (a->T == 0 || n_tiles == 0)
        return TD_OK;
    const uint64_t address = (uintptr_t)a->kv.plane | (uintptr_t)a->q | a->kv.page_stride;
    const unsigned grid = (unsigned)(a->T * n_tiles);
    if (a->kv.dtype != 2 && address % 4 == 0)
        tensor_kernel<<<grid, WARPS * 32, 0, s->stream>>>(*a, n_tiles);
    else
        plain_kernel<<<grid, TILE, 0, s->stream>>>(*a, n_tiles);
    return td_cuda_launched(s, "index_logits");
}
