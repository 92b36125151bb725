/* index_logits_sm90.cu - only the device knows row_len, so a block takes some rows and every so
 * many-th tile of their keys: tiles behind row_len cost nothing, however long the context may be.
 * tensor: e4m3 keys, by wgmma: a warpgroup holds 64 keys as f16 (the conversion is exact) in
 *   registers and meets 64 heads of a row at a time, which the block widens into shared memory
 *   while the row before is worked on; keys stay for all of the block's rows that are of the same
 *   sequence. A lane adds its heads in ascending order, then the four lanes of a key are added: no
 *   order depends on the grid or on the other rows.
 * plain: f32 keys of any dim; a thread per key. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/swizzle.cuh"
#include "kernels/cuda/wgmma.cuh"
extern "C" {
#include "kernels/index_logits/index_logits.h"
}

#define DIM 128
#define THREADS 256
#define KEYS (THREADS / 2)            /* of a block: 64 to a warpgroup */
#define HEADS 64                      /* in shared memory at a time */
#define HALF (HEADS * TD_SWIZZLE_ROW) /* bytes: f16, 64 of a head's elements */
#define MOST_ROWS 64                  /* of a block */
#define BLOCKS 4096                   /* enough to keep any GPU busy, rows permitting */

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

typedef struct {
    unsigned char q[2][2 * HALF]; /* operands of wgmma: heads of the row worked on, of the next */
    float w[2][HEADS];
    int len[MOST_ROWS], seq[MOST_ROWS]; /* of the block's rows; len: wanted() */
} block_state;

/* What the block works on: heads from h on of its row r; r >= n: nothing. */
typedef struct {
    int r, h;
} item;

/* The block's rows that have keys in the tile that begins at `first`. */
__device__ static int next_row(const block_state &b, int r, int n, int first)
{
    while (r < n && b.len[r] <= first)
        r++;
    return r;
}

__device__ static item next_item(const td_index_logits_args &a, const block_state &b, item at,
                                 int n, int first)
{
    at.h += HEADS;
    if (at.h >= a.Hi) {
        at.h = 0;
        at.r = next_row(b, at.r + 1, n, first);
    }
    return at;
}

/* A thread's share of an item on its way to shared memory: of head threadIdx.x / 4, elements 4i ..
 * 4i + 3 (i = threadIdx.x % 4) of each sixteen. */
typedef struct {
    uint32_t codes[2][4];
    float w;
} share;

/* Zeros behind the last head. */
__device__ static share fetch(const td_index_logits_args &a, int64_t t, int h)
{
    const int head = h + (int)threadIdx.x / 4, i = (int)threadIdx.x % 4;
    const unsigned char *from = (const unsigned char *)a.q + (t * a.Hi + head) * DIM + 4 * i;
    share s = {};
#pragma unroll
    for (int k = 0; k < 8; k++)
        s.codes[k / 4][k % 4] = head < a.Hi ? *(const uint32_t *)(from + 16 * k) : 0;
    if (threadIdx.x < HEADS && h + (int)threadIdx.x < a.Hi)
        s.w = a.w[t * a.Hi + h + threadIdx.x];
    return s;
}

/* A sum over k may take k in any order that both sides share: with lane = 4g + q, step 4p + i of
 * eight takes, for its columns 2q, 2q + 1, 2q + 8 and 2q + 9, elements 4i .. 4i + 3 of the sixteen
 * at (4p + q) * 16, so that a lane loads keys 16 bytes at a time. */
__device__ static void widen(const share &s, unsigned char *q, float *w)
{
    const int head = (int)threadIdx.x / 4, i = (int)threadIdx.x % 4;
#pragma unroll
    for (int p = 0; p < 2; p++) {
        uint32_t lo[4], hi[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            td_e4m3x4_to_f16(s.codes[p][k], &lo[k], &hi[k]);
        *(uint4 *)(q + p * HALF + td_swizzle(head, 2 * i)) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
        *(uint4 *)(q + p * HALF + td_swizzle(head, 2 * i + 1)) =
            make_uint4(hi[0], hi[1], hi[2], hi[3]);
    }
    if (threadIdx.x < HEADS)
        w[threadIdx.x] = s.w;
}

/* A lane's two keys, rows g and g + 8 of its warp's sixteen, as operands of eight steps. */
typedef struct {
    uint32_t a[DIM / 16][4];
    float scale[2];
} two_keys;

/* Positions s and s + 8 of row t's sequence; zeros from `end` on. */
__device__ static void load_keys(const td_index_logits_args &a, int64_t t, int s, int end,
                                 two_keys &keys)
{
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int at = s + 8 * row, slot = at % a.kv.page_rows;
        const unsigned char *page = at < end ? page_of(a, t, at) : NULL;
        keys.scale[row] =
            page == NULL ? 0 : ((const float *)(page + (int64_t)a.kv.page_rows * DIM))[slot];
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const uint4 codes =
                page == NULL
                    ? make_uint4(0, 0, 0, 0)
                    : *(const uint4 *)(page + (int64_t)slot * DIM + (4 * p + threadIdx.x % 4) * 16);
            const uint32_t four[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                td_e4m3x4_to_f16(four[i], &keys.a[4 * p + i][row], &keys.a[4 * p + i][2 + row]);
        }
    }
}

/* Where keys end that the block's rows from r on want, of the sequence that row r is of, before one
 * of another comes. */
__device__ static int end_of_keys(const block_state &b, int r, int n, int first)
{
    int end = 0;
    for (int i = r; i < n; i++)
        if (b.len[i] > first) {
            if (b.seq[i] != b.seq[r])
                break;
            end = b.len[i] > end ? b.len[i] : end;
        }
    return end;
}

/* Starts d[key][head] = key . head. */
__device__ static void start(two_keys &keys, const unsigned char *q, float d[HEADS / 2])
{
    const uint64_t heads = td_wgmma_desc(q);
    td_wgmma_hold<HEADS / 2>(d);
    td_wgmma_hold<DIM / 4>(&keys.a[0][0]);
    td_wgmma_begin();
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
        td_wgmma_f16<HEADS>(d, keys.a[k], heads + k / 4 * (HALF >> 4) + k % 4 * TD_SWIZZLE_K32,
                            k > 0);
    td_wgmma_commit();
}

/* This lane's heads of two keys. */
__device__ static void add_heads(const float d[HEADS / 2], const float *w, float sum[2])
{
    const float *mine = w + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < HEADS / 8; j++) {
        const float2 two = *(const float2 *)(mine + 8 * j);
        for (int row = 0; row < 2; row++) {
            sum[row] += relu(d[4 * j + 2 * row]) * two.x;
            sum[row] += relu(d[4 * j + 2 * row + 1]) * two.y;
        }
    }
}

/* The scores of keys s and s + 8 from the sums that four lanes have. */
__device__ static void store_scores(const td_index_logits_args &a, int64_t t, int s, int len,
                                    const two_keys &keys, float sum[2])
{
    const int row = (int)threadIdx.x % 4; /* of two: lanes with 2 and 3 store nothing */
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
    }
    if (row < 2 && s + 8 * row < len)
        a.y[t * a.y_stride + s + 8 * row] =
            row == 0 ? keys.scale[0] * sum[0] : keys.scale[1] * sum[1];
}

/* One tile of keys and every row of the block that wants some of it. */
__device__ static void tile(const td_index_logits_args &a, block_state &b, int64_t t0, int n,
                            int first)
{
    const int s = first + (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4;
    item now = {next_row(b, 0, n, first), 0};
    item next = next_item(a, b, now, n, first);
    int held = -1; /* the sequence of the keys in registers */
    two_keys keys;
    float sum[2] = {}, d[HEADS / 2] = {};
    share coming = fetch(a, t0 + now.r, now.h);
    widen(coming, b.q[0], b.w[0]);
    if (next.r < n)
        coming = fetch(a, t0 + next.r, next.h);
    td_wgmma_publish();
    __syncthreads();
    for (int k = 0; now.r < n; k = 1 - k) {
        const int64_t t = t0 + now.r;
        if (b.seq[now.r] != held) {
            load_keys(a, t, s, end_of_keys(b, now.r, n, first), keys);
            held = b.seq[now.r];
        }
        if (now.h == 0)
            sum[0] = sum[1] = 0;
        start(keys, b.q[k], d);
        if (next.r < n)
            widen(coming, b.q[1 - k], b.w[1 - k]);
        const item after = next.r < n ? next_item(a, b, next, n, first) : next;
        if (after.r < n)
            coming = fetch(a, t0 + after.r, after.h);
        td_wgmma_wait<0>();
        td_wgmma_hold<HEADS / 2>(d);
        add_heads(d, b.w[k], sum);
        if (now.h + HEADS >= a.Hi)
            store_scores(a, t, s, b.len[now.r], keys, sum);
        td_wgmma_publish();
        __syncthreads(); /* the next item is there, and nobody works on this one any more */
        now = next;
        next = after;
    }
}

/* rows: of a block. */
__global__ void __launch_bounds__(THREADS, 2)
    tensor_kernel(td_index_logits_args a, int rows, int parts)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    block_state &b = *(block_state *)shared;
    const int64_t t0 = (int64_t)(blockIdx.x / parts) * rows;
    const int n = a.T - t0 < rows ? (int)(a.T - t0) : rows;
    int most = 0;
    for (int r = (int)threadIdx.x; r < n; r += THREADS) {
        b.len[r] = wanted(a, t0 + r);
        b.seq[r] = a.rows.row_seq[t0 + r];
    }
    __syncthreads();
    for (int r = 0; r < n; r++)
        most = b.len[r] > most ? b.len[r] : most;
    for (int64_t first = (int64_t)(blockIdx.x % parts) * KEYS; first < most;
         first += (int64_t)parts * KEYS)
        tile(a, b, t0, n, (int)first);
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

__global__ void __launch_bounds__(THREADS) plain_kernel(td_index_logits_args a, int parts)
{
    const int64_t t = blockIdx.x / parts;
    const int len = wanted(a, t);
    for (int64_t s = (int64_t)(blockIdx.x % parts) * THREADS + threadIdx.x; s < len;
         s += (int64_t)parts * THREADS)
        a.y[t * a.y_stride + s] = plain_score(a, t, s);
}

/* How many blocks share the keys of a row, or of some rows: enough blocks, but no more than there
 * are tiles. */
static int parts_of(int64_t n_groups, int64_t n_tiles)
{
    const int64_t share = (BLOCKS + n_groups - 1) / n_groups;
    return (int)(n_tiles < share ? n_tiles : share);
}

extern "C" td_status td_index_logits_cuda(const td_index_logits_args *a, td_stream *s)
{
    if (!td_index_logits_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->y_stride == 0)
        return TD_OK;
    const uint64_t pages = (uintptr_t)a->kv.plane | a->kv.page_stride;
    if (a->kv.dtype != 2 && pages % 16 == 0 && (uintptr_t)a->q % 4 == 0) {
        /* Few rows: a row to a block, which then has the GPU to itself. */
        const int rows = a->T < 128 ? 1 : a->T < 64 * MOST_ROWS ? a->T / 64 : MOST_ROWS;
        const int groups = (a->T + rows - 1) / rows;
        const int parts = parts_of(groups, (a->y_stride + KEYS - 1) / KEYS);
        tensor_kernel<<<(unsigned)groups *(unsigned)parts, THREADS, sizeof(block_state),
                        s->stream>>>(*a, rows, parts);
    } else {
        const int parts = parts_of(a->T, (a->y_stride + THREADS - 1) / THREADS);
        plain_kernel<<<(unsigned)a->T *(unsigned)parts, THREADS, 0, s->stream>>>(*a, parts);
    }
    return td_cuda_launched(s, "index_logits");
}
