/* index_logits_sm90.cu - only the device knows row_len, so a block takes one row and every so
 * many-th tile of its keys: tiles behind row_len cost nothing, however long the context may be.
 * tensor: e4m3 keys, by mma: a warp holds 32 keys as f16 (the conversion is exact) in registers and
 *   meets eight heads at a time, which stand in shared memory as f16. A lane adds its heads in
 *   ascending order, then the four lanes of a key are added: no order depends on the grid.
 * plain: f32 keys of any dim; a thread per key. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
extern "C" {
#include "kernels/index_logits/index_logits.h"
}

#define DIM 128
#define WARPS 8
#define THREADS (WARPS * 32)
#define TILE (WARPS * 32) /* keys of a block; as many as threads of a plain block */
#define CHUNK 64          /* heads in shared memory at a time */
#define Q_ROW (DIM + 8)   /* f16: eight rows lie in different banks */
#define BLOCKS 4096       /* enough to keep any GPU busy, rows permitting */

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

/* Keys s and s + 8 of this lane, as rows g and g + 8 of eight A operands. */
__device__ static void load_keys(const td_index_logits_args &a, int64_t t, int s, int len,
                                 uint32_t keys[8][4])
{
    uint32_t codes[2][8];
    load_key(a, t, s, len, codes[0]);
    load_key(a, t, s + 8, len, codes[1]);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        td_e4m3x4_to_f16(codes[0][i], &keys[i][0], &keys[i][2]);
        td_e4m3x4_to_f16(codes[1][i], &keys[i][1], &keys[i][3]);
    }
}

__device__ static float scale_of(const td_index_logits_args &a, int64_t t, int s)
{
    const float *scales = (const float *)(page_of(a, t, s) + (int64_t)a.kv.page_rows * DIM);
    return scales[s % a.kv.page_rows];
}

/* Heads first.. of row t as f16, in the order in which load_key() takes a key's bytes for pairs of
 * k, and their weights; zeros behind the last. */
__device__ static void load_heads(const td_index_logits_args &a, int64_t t, int first, uint16_t *q,
                                  float *w)
{
    const unsigned char *from = (const unsigned char *)a.q + (t * a.Hi + first) * DIM;
    for (int i = (int)threadIdx.x; i < CHUNK * DIM / 4; i += THREADS) {
        const int h = i / (DIM / 4), piece = i % (DIM / 4);
        uint32_t lo, hi;
        td_e4m3x4_to_f16(first + h < a.Hi ? *(const uint32_t *)(from + h * DIM + piece * 4) : 0,
                         &lo, &hi);
        uint16_t *to = q + h * Q_ROW + piece / 4 * 16 + piece % 4 * 2;
        *(uint32_t *)to = lo;
        *(uint32_t *)(to + 8) = hi;
    }
    for (int h = (int)threadIdx.x; h < CHUNK; h += THREADS)
        w[h] = first + h < a.Hi ? a.w[t * a.Hi + first + h] : 0.0f;
}

/* Adds heads h..h + 7 of the chunk to the sums of this lane's four keys. */
__device__ static void add_heads(const uint16_t *q, const float *w, int h,
                                 const uint32_t keys[2][8][4], float sum[2][2])
{
    const int lane = (int)threadIdx.x % 32;
    const uint16_t *row = q + (h + lane % 8) * Q_ROW + lane / 8 * 8;
    float d[2][4] = {};
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        uint32_t b[4];
        td_ldmatrix_x4(b, row + i * 16);
        for (int m = 0; m < 2; m++) {
            td_mma_f16(d[m], keys[m][i], b[0], b[1]);
            td_mma_f16(d[m], keys[m][i + 1], b[2], b[3]);
        }
    }
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < 4; i++)
            sum[m][i / 2] += relu(d[m][i]) * w[h + 2 * (lane % 4) + i % 2];
}

/* The scores of keys s, s + 8 from the sums that four lanes have. */
__device__ static void store_scores(const td_index_logits_args &a, int64_t t, int s, int len,
                                    float sum[2])
{
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        if (threadIdx.x % 4 == 0 && s + 8 * i < len)
            a.y[t * a.y_stride + s + 8 * i] = scale_of(a, t, s + 8 * i) * sum[i];
    }
}

__global__ void __launch_bounds__(THREADS, 2) tensor_kernel(td_index_logits_args a, int parts)
{
    __shared__ __align__(16) uint16_t q[CHUNK * Q_ROW];
    __shared__ float w[CHUNK];
    const int64_t t = blockIdx.x / parts;
    const int len = wanted(a, t);
    const int mine = (int)threadIdx.x / 32 * 32 + (int)threadIdx.x % 32 / 4;
    int held = -1; /* the chunk of heads in shared memory */
    for (int64_t first = (int64_t)(blockIdx.x % parts) * TILE; first < len;
         first += (int64_t)parts * TILE) {
        const int s = (int)first + mine;
        uint32_t keys[2][8][4];
        float sum[2][2] = {};
        load_keys(a, t, s, len, keys[0]);
        load_keys(a, t, s + 16, len, keys[1]);
        for (int h = 0; h < a.Hi; h += CHUNK) {
            if (held != h) {
                __syncthreads();
                load_heads(a, t, h, q, w);
                __syncthreads();
                held = h;
            }
            for (int i = 0; i < CHUNK && h + i < a.Hi; i += 8)
                add_heads(q, w, i, keys, sum);
        }
        store_scores(a, t, s, len, sum[0]);
        store_scores(a, t, s + 16, len, sum[1]);
    }
}

/* ---- plain ---- */

__device__ static float plain_score(const td_index_logits_args &a, int64_t t, int64_t s)
{
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
    return scale * sum;
}

__global__ void __launch_bounds__(TILE) plain_kernel(td_index_logits_args a, int parts)
{
    const int64_t t = blockIdx.x / parts;
    const int len = wanted(a, t);
    for (int64_t s = (int64_t)(blockIdx.x % parts) * TILE + threadIdx.x; s < len;
         s += (int64_t)parts * TILE)
        a.y[t * a.y_stride + s] = plain_score(a, t, s);
}

extern "C" td_status td_index_logits_cuda(const td_index_logits_args *a, td_stream *s)
{
    if (!td_index_logits_valid(a))
        return TD_BAD_SHAPE;
    const int64_t n_tiles = (a->y_stride + TILE - 1) / TILE;
    if (a->T == 0 || n_tiles == 0)
        return TD_OK;
    const uint64_t address = (uintptr_t)a->kv.plane | (uintptr_t)a->q | a->kv.page_stride;
    const int64_t share = (BLOCKS + a->T - 1) / a->T; /* blocks to a row */
    const int parts = (int)(n_tiles < share ? n_tiles : share);
    const unsigned grid = (unsigned)a->T * (unsigned)parts;
    if (a->kv.dtype != 2 && address % 4 == 0)
        tensor_kernel<<<grid, THREADS, 0, s->stream>>>(*a, parts);
    else
        plain_kernel<<<grid, TILE, 0, s->stream>>>(*a, parts);
    return td_cuda_launched(s, "index_logits");
}
