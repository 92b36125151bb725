/* topk_sm90.cu - the k-th largest key by four passes of a radix descent over 32-bit keys that order
 * as the scores do (histograms of counts: no order of additions matters), then what is above it,
 * and the first few that equal it, at offsets from a scan. The selection is fixed by the contract,
 * so the forms give the same bits:
 *
 * Many rows: a block per row, which is read five times; no scratch grows with its length.
 *
 * Few rows: a cluster of blocks per row, a part of the row to each. A part is read once and stays
 * as keys in shared memory; the blocks add up each other's histograms and counts. A short row is
 * the first block's alone. */
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/select.cuh"
extern "C" {
#include "kernels/topk/topk.h"
}

#define THREADS 1024
#define WARPS (THREADS / 32)

/* The k-th largest key; *ties: how many that equal it belong to the k. */
__device__ static uint32_t kth_key(const float *x, int len, uint32_t k, uint32_t *ties)
{
    __shared__ uint32_t bins[TD_RADIX_BINS], shared_prefix, shared_need;
    uint32_t prefix = 0, need = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < TD_RADIX_BINS)
            bins[threadIdx.x] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < len; i += THREADS) {
            const uint32_t key = td_order_key(x[i]);
            if (((uint64_t)(key ^ prefix) >> (shift + 8)) == 0)
                atomicAdd(&bins[(key >> shift) & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            prefix |= td_find_bin(bins, &need) << shift;
            if (threadIdx.x == 0) {
                shared_prefix = prefix;
                shared_need = need;
            }
        }
        __syncthreads();
        prefix = shared_prefix;
        need = shared_need;
    }
    *ties = need;
    return prefix;
}

/* Two exclusive counts over the block in one word each: lower half keys above, upper half equal. */
__device__ static uint32_t scan(uint32_t above, uint32_t equal, uint32_t *warps, uint32_t *total)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const uint32_t below = (1u << lane) - 1u;
    const uint32_t a = __ballot_sync(0xffffffffu, above), e = __ballot_sync(0xffffffffu, equal);
    if (lane == 0)
        warps[warp] = (uint32_t)__popc(a) | (uint32_t)__popc(e) << 16;
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? warps[w] : 0;
        all += warps[w];
    }
    __syncthreads();
    *total = all;
    return before + ((uint32_t)__popc(a & below) | (uint32_t)__popc(e & below) << 16);
}

__global__ void __launch_bounds__(THREADS) topk_kernel(td_topk_args a)
{
    __shared__ uint32_t warps[WARPS];
    const int64_t t = blockIdx.x;
    const float *x = a.logits + t * a.stride;
    int32_t *selected = a.selected + t * a.k;
    const int len = a.row_len[t];
    if (len <= a.k) {
        for (int i = (int)threadIdx.x; i < a.k; i += THREADS)
            selected[i] = i < len ? i : -1;
        return;
    }
    uint32_t ties, n_above = 0, n_equal = 0;
    const uint32_t kth = kth_key(x, len, (uint32_t)a.k, &ties);
    for (int64_t base = 0; base < len; base += THREADS) {
        const int64_t i = base + threadIdx.x;
        const uint32_t key = i < len ? td_order_key(x[i]) : 0; /* no key is 0 */
        uint32_t total;
        const uint32_t before = scan(key > kth, key == kth, warps, &total);
        const uint32_t equal = n_equal + (before >> 16);
        const uint32_t at = n_above + (before & 0xffffu) + (equal < ties ? equal : ties);
        if (key > kth || (key == kth && equal < ties))
            selected[at] = (int32_t)i;
        n_above += total & 0xffffu;
        n_equal += total >> 16;
    }
}

/* ---- few rows ---- */

#define PASSES 4
#define AHEAD 8                /* loads of a thread on their way */
#define SHORT 8192             /* positions that one block has sooner than a cluster */
#define MAX_SHARED (200 << 10) /* of a block */

/* A block's dynamic shared memory; keys follow. */
struct part_room {
    uint32_t bins[PASSES][TD_RADIX_BINS], all[PASSES][TD_RADIX_BINS]; /* own; the cluster's */
    uint32_t prefix, need;
    uint32_t n_above, n_equal; /* of the part */
    uint32_t above[WARPS], equal[WARPS];
};

/* Positions of a row of len that a block of a cluster takes. */
__host__ __device__ static inline int64_t part_of(int64_t len, int n_ranks)
{
    return ((len + n_ranks - 1) / n_ranks + 31) / 32 * 32;
}

/* Keys of a part, and how many have which upper eight bits. */
__device__ static void load_part(const float *x, int n, part_room *room, uint32_t *keys)
{
    for (int base = (int)threadIdx.x; base < n; base += AHEAD * THREADS) {
        float v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            v[j] = base + j * THREADS < n ? x[base + j * THREADS] : 0.0f;
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (base + j * THREADS < n) {
                const uint32_t key = td_order_key(v[j]);
                keys[base + j * THREADS] = key;
                atomicAdd(&room->bins[0][key >> 24], 1u);
            }
    }
}

__device__ static void sync_parts(int n_ranks)
{
    if (n_ranks > 1)
        td_cluster_sync();
    else
        __syncthreads();
}

/* kth_key() by a cluster: every block has the same result. */
__device__ static uint32_t cluster_kth_key(const uint32_t *keys, int n, uint32_t k, int n_ranks,
                                           part_room *room, uint32_t *ties)
{
    const int bin = (int)threadIdx.x % TD_RADIX_BINS;
    uint32_t prefix = 0, need = k;
    for (int pass = 0; pass < PASSES; pass++) {
        const int shift = 24 - 8 * pass;
        for (int i = (int)threadIdx.x; i < n && pass > 0; i += THREADS)
            if (((uint64_t)(keys[i] ^ prefix) >> (shift + 8)) == 0)
                atomicAdd(&room->bins[pass][(keys[i] >> shift) & 255], 1u);
        sync_parts(n_ranks);
        uint32_t sum = 0;
        for (int r = (int)threadIdx.x / TD_RADIX_BINS; r < n_ranks; r += THREADS / TD_RADIX_BINS)
            sum += td_cluster_peer(room->bins[pass], r)[bin];
        atomicAdd(&room->all[pass][bin], sum);
        __syncthreads();
        if (threadIdx.x < 32) {
            prefix |= td_find_bin(room->all[pass], &need) << shift;
            if (threadIdx.x == 0) {
                room->prefix = prefix;
                room->need = need;
            }
        }
        __syncthreads();
        prefix = room->prefix;
        need = room->need;
    }
    *ties = need;
    return prefix;
}

/* A warp takes n_each neighbouring keys of the part; those of its lane: i = first + lane + 32 j. */
__global__ void __launch_bounds__(THREADS) topk_cluster_kernel(td_topk_args a, int cluster)
{
    extern __shared__ __align__(16) unsigned char shared[];
    part_room *room = (part_room *)shared;
    uint32_t *keys = (uint32_t *)(room + 1);
    const int64_t t = blockIdx.x / (unsigned)cluster;
    const int rank = td_cluster_rank(), warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int len = a.row_len[t];
    const int n_ranks = len <= SHORT ? 1 : cluster;
    int32_t *selected = a.selected + t * a.k;
    if (rank >= n_ranks)
        return;
    if (len <= a.k) {
        for (int i = rank * THREADS + (int)threadIdx.x; i < a.k; i += n_ranks * THREADS)
            selected[i] = i < len ? i : -1;
        return;
    }
    const int part = (int)part_of(len, n_ranks), start = rank * part;
    const int n = len - start < 0 ? 0 : len - start < part ? len - start : part;
    for (int i = (int)threadIdx.x; i < PASSES * TD_RADIX_BINS; i += THREADS)
        room->bins[i / TD_RADIX_BINS][i % TD_RADIX_BINS] =
            room->all[i / TD_RADIX_BINS][i % TD_RADIX_BINS] = 0;
    __syncthreads();
    load_part(a.logits + t * a.stride + start, n, room, keys);
    uint32_t ties;
    const uint32_t kth = cluster_kth_key(keys, n, (uint32_t)a.k, n_ranks, room, &ties);

    const int n_each = (n + THREADS - 1) / THREADS * 32, first = warp * n_each;
    const int end = first + n_each < n ? first + n_each : n;
    uint32_t n_above = 0, n_equal = 0;
    for (int i = first + lane; i < end; i += 32) {
        n_above += keys[i] > kth;
        n_equal += keys[i] == kth;
    }
    n_above = __reduce_add_sync(0xffffffffu, n_above);
    n_equal = __reduce_add_sync(0xffffffffu, n_equal);
    if (lane == 0) {
        room->above[warp] = n_above;
        room->equal[warp] = n_equal;
    }
    __syncthreads();
    n_above = room->above[lane];
    n_equal = room->equal[lane];
    if (warp == 0) {
        const uint32_t above = __reduce_add_sync(0xffffffffu, n_above);
        const uint32_t equal = __reduce_add_sync(0xffffffffu, n_equal);
        if (lane == 0) {
            room->n_above = above;
            room->n_equal = equal;
        }
    }
    sync_parts(n_ranks);
    n_above = lane < warp ? n_above : 0;
    n_equal = lane < warp ? n_equal : 0;
    if (lane < rank) {
        n_above += *td_cluster_peer(&room->n_above, lane);
        n_equal += *td_cluster_peer(&room->n_equal, lane);
    }
    if (n_ranks > 1)
        td_cluster_arrive(); /* this block reads no other one's memory any more */
    n_above = __reduce_add_sync(0xffffffffu, n_above);
    n_equal = __reduce_add_sync(0xffffffffu, n_equal);
    for (int base = first; base < end; base += 32) {
        const uint32_t key = base + lane < end ? keys[base + lane] : 0; /* no key is 0 */
        const uint32_t below = (1u << lane) - 1u;
        const uint32_t above = __ballot_sync(0xffffffffu, key > kth);
        const uint32_t equals = __ballot_sync(0xffffffffu, key == kth);
        const uint32_t equal = n_equal + (uint32_t)__popc(equals & below);
        const uint32_t at = n_above + (uint32_t)__popc(above & below);
        if (key > kth || (key == kth && equal < ties))
            selected[at + (equal < ties ? equal : ties)] = start + base + lane;
        n_above += (uint32_t)__popc(above);
        n_equal += (uint32_t)__popc(equals);
    }
    if (n_ranks > 1)
        td_cluster_wait();
}

/* Blocks for each row: as many as there are SMs for; 1: the form for many rows. */
static int ranks_of(const td_topk_args *a)
{
    int n = TD_CLUSTER_MAX;
    while (n > 1 && (int64_t)a->T * n > 128)
        n /= 2;
    return n;
}

extern "C" td_status td_topk_cuda(const td_topk_args *a, td_stream *s)
{
    if (!td_topk_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->k == 0)
        return TD_OK;
    const int n_ranks = ranks_of(a);
    const int64_t part = part_of(a->stride, n_ranks), whole = part_of(SHORT, 1);
    const int64_t part_bytes = (part > whole ? part : whole) * (int64_t)sizeof(uint32_t);
    if (n_ranks > 1 && part_bytes <= MAX_SHARED - (int64_t)sizeof(part_room))
        return td_cluster_launch(s, "topk", topk_cluster_kernel, (unsigned)(a->T * n_ranks),
                                 THREADS, sizeof(part_room) + (size_t)part_bytes, n_ranks, *a,
                                 n_ranks);
    topk_kernel<<<(unsigned)a->T, THREADS, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "topk");
}
