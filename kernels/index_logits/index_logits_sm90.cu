/* index_logits_sm90.cu - only the device knows row_len, so a block takes some rows and every so
 * many-th tile of their keys: tiles behind row_len cost nothing, however long the context may be.
 * tensor: e4m3 keys, by wgmma: a warpgroup holds 64 keys as f16 (the conversion is exact) in
 *   registers and meets 64 heads of a row at a time, which the block widens into shared memory two
 *   rows ahead; keys stay for all of the block's rows that are of the same sequence. A lane adds
 *   its heads in ascending order, then the four lanes of a key are added: no order depends on the
 *   grid or on the other rows.
 * plain: f32 keys of any dim; a thread per key. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pipe.cuh"
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
    float y;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- tensor ---- */

#define RING 4 /* items in shared memory */

typedef struct {
    unsigned char q[RING][2 * HALF]; /* operands of wgmma */
    float w[RING][HEADS];
    uint64_t there[RING];               /* barriers */
    int len[MOST_ROWS], seq[MOST_ROWS]; /* of the block's n rows; len: wanted() */
    int n, most;                        /* most: the largest len */
} block_state;

/* What the block works on: heads from h on of its row r and the tile of keys that begins at
 * `first`; first >= most: nothing. */
typedef struct {
    int first, r, h;
} item;

/* The block's rows that have keys in a tile. */
__device__ static int next_row(const block_state &b, int r, int first)
{
    while (r < b.n && b.len[r] <= first)
        r++;
    return r;
}

/* step: from one of the block's tiles to the next. */
__device__ static item next_item(const td_index_logits_args &a, const block_state &b, item at,
                                 int64_t step)
{
    at.h += HEADS;
    if (at.h < a.Hi || at.first >= b.most)
        return at;
    at.h = 0;
    at.r = next_row(b, at.r + 1, at.first);
    if (at.r == b.n) {
        at.first = at.first + step < b.most ? (int)(at.first + step) : b.most;
        at.r = next_row(b, 0, at.first);
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
__device__ static int end_of_keys(const block_state &b, int r, int first)
{
    int end = 0;
    for (int i = r; i < b.n; i++)
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

/* Puts an item where products find it; it is theirs when all threads have arrived. */
__device__ static void put(block_state &b, int k, const share &s)
{
    widen(s, b.q[k % RING], b.w[k % RING]);
    td_wgmma_publish();
}

/* All items from `now` on, which is the block's item 0. A thread arrives for item k + 2 behind its
 * item k, so who finds item k there knows that nobody works on k - 2 any more, whose place k + 2
 * takes; warpgroups may be two items apart. */
__device__ static void work(const td_index_logits_args &a, block_state &b, int64_t t0, item now,
                            int64_t step)
{
    const int mine = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4;
    item coming[2] = {next_item(a, b, now, step), {}};
    int held = -1, held_first = -1; /* the sequence and tile of the keys in registers */
    two_keys keys;
    float sum[2] = {}, d[HEADS / 2] = {};
    put(b, 0, fetch(a, t0 + now.r, now.h));
    td_pipe_arrive(&b.there[0]);
    if (coming[0].first < b.most) {
        put(b, 1, fetch(a, t0 + coming[0].r, coming[0].h));
        td_pipe_arrive(&b.there[1]);
    }
    coming[1] = next_item(a, b, coming[0], step);
    share next = {};
    if (coming[1].first < b.most)
        next = fetch(a, t0 + coming[1].r, coming[1].h);
    for (int k = 0; now.first < b.most; k++) {
        const int64_t t = t0 + now.r;
        const int s = now.first + mine;
        if (b.seq[now.r] != held || now.first != held_first) {
            load_keys(a, t, s, end_of_keys(b, now.r, now.first), keys);
            held = b.seq[now.r];
            held_first = now.first;
        }
        if (now.h == 0)
            sum[0] = sum[1] = 0;
        td_pipe_wait(&b.there[k % RING], k / RING % 2);
        start(keys, b.q[k % RING], d);
        const item after = next_item(a, b, coming[1], step);
        const bool more = coming[1].first < b.most;
        if (more)
            put(b, k + 2, next);
        if (after.first < b.most)
            next = fetch(a, t0 + after.r, after.h);
        td_wgmma_wait<0>();
        td_wgmma_hold<HEADS / 2>(d);
        add_heads(d, b.w[k % RING], sum);
        if (more)
            td_pipe_arrive(&b.there[(k + 2) % RING]);
        if (now.h + HEADS >= a.Hi)
            store_scores(a, t, s, b.len[now.r], keys, sum);
        now = coming[0];
        coming[0] = coming[1];
        coming[1] = after;
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
    const int first = (int)(blockIdx.x % parts) * KEYS;
    if ((int)threadIdx.x < n) {
        b.len[threadIdx.x] = wanted(a, t0 + threadIdx.x);
        b.seq[threadIdx.x] = a.rows.row_seq[t0 + threadIdx.x];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        b.n = n;
        b.most = 0;
        for (int r = 0; r < n; r++)
            b.most = b.len[r] > b.most ? b.len[r] : b.most;
        for (int i = 0; i < RING; i++)
            td_pipe_init(&b.there[i], THREADS);
    }
    __syncthreads();
    if (first < b.most) {
        const item now = {first, next_row(b, 0, first), 0};
        work(a, b, t0, now, (int64_t)parts * KEYS);
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
        /* Few rows: a row to a block, so that there are many. */
        const int rows = a->T < 64 ? 1 : a->T < 32 * MOST_ROWS ? a->T / 32 : MOST_ROWS;
        const int groups = (a->T + rows - 1) / rows;
        const int parts = parts_of(groups, (a->y_stride + KEYS - 1) / KEYS);
        const td_status st = td_cuda_allow_shared(s, (const void *)tensor_kernel,
                                                  sizeof(block_state), "index_logits");
        if (st < 0)
            return st;
        tensor_kernel<<<(unsigned)groups *(unsigned)parts, THREADS, sizeof(block_state),
                        s->stream>>>(*a, rows, parts);
    } else {
        const int parts = parts_of(a->T, (a->y_stride + THREADS - 1) / THREADS);
        plain_kernel<<<(unsigned)a->T *(unsigned)parts, THREADS, 0, s->stream>>>(*a, parts);
    }
    return td_cuda_launched(s, "index_logits");
}
