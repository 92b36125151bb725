/* sample_sm90.cu - a block per row and no sort. What stays is told by a key: everything above it,
 * and the first few ids that equal it. top-k finds the key by a radix descent over counts, top-p by
 * one over weights; the draw is a scan of weights in the order of ids. All sums are of integers, so
 * their order does not matter. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/select.cuh"
extern "C" {
#include "kernels/random.h"
#include "kernels/sample/sample.h"
}

#define THREADS 1024
#define WARPS (THREADS / 32)
#define AHEAD 8 /* loads of a thread on their way */

typedef unsigned long long u64; /* as atomicAdd and shuffles take it */

typedef struct {
    const float *x;
    const uint8_t *forbid;
    int V;
    uint32_t top_key; /* of the largest logit */
    float top, temperature;
} row;

typedef struct {
    uint32_t key; /* what is above stays, and of what equals it */
    u64 ties;     /* the first so many */
} cut;

/* 0: the token does not exist. */
__device__ static uint32_t key_at(const row &r, int64_t i)
{
    if (i >= r.V || (r.forbid != NULL && (r.forbid[i / 8] >> (i % 8) & 1)))
        return 0;
    return td_order_key(r.x[i]);
}

/* visit(id, key) for this thread's share of the ids, in ascending order; keys as of key_at(). */
template <typename Visit> __device__ static void each_key(const row &r, Visit visit)
{
    for (int base = (int)threadIdx.x; base < r.V; base += AHEAD * THREADS) {
        float x[AHEAD];
        uint8_t forbid[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int i = base + j * THREADS;
            x[j] = i < r.V ? r.x[i] : 0.0f;
            forbid[j] = i < r.V && r.forbid != NULL ? r.forbid[i / 8] >> (i % 8) & 1 : 0;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (base + j * THREADS < r.V)
                visit(base + j * THREADS, forbid[j] ? 0 : td_order_key(x[j]));
    }
}

__device__ static u64 weight(const row &r, uint32_t key)
{
    const float e =
        key == r.top_key ? 1.0f : td_expf((td_order_value(key) - r.top) / r.temperature);
    return e > 0.0f ? (u64)(e * TD_SAMPLE_ONE) : 0;
}

__device__ static u64 block_sum(u64 v)
{
    __shared__ u64 part[WARPS];
    u64 sum = 0;
    for (int m = 16; m > 0; m /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        sum += part[w];
    __syncthreads();
    return sum;
}

__device__ static uint32_t block_max(uint32_t v)
{
    __shared__ uint32_t most;
    if (threadIdx.x == 0)
        most = 0;
    __syncthreads();
    v = __reduce_max_sync(0xffffffffu, v);
    if (threadIdx.x % 32 == 0)
        atomicMax(&most, v);
    __syncthreads();
    v = most;
    __syncthreads();
    return v;
}

/* The largest key; *token: the lowest id that has it. */
__device__ static uint32_t top_key(const row &r, int32_t *token)
{
    uint32_t most = 0;
    int first = 0;
    each_key(r, [&](int i, uint32_t key) {
        first = key > most ? i : first;
        most = max(most, key);
    });
    const uint32_t top = block_max(most);
    /* Ids counted from the end: the largest is the lowest id. */
    *token = r.V - (int32_t)block_max(most == top ? (uint32_t)(r.V - first) : 0);
    return top;
}

__device__ static u64 count_tokens(const row &r)
{
    u64 n = 0;
    each_key(r, [&](int, uint32_t key) { n += key != 0; });
    return block_sum(n);
}

__device__ static u64 sum_weights(const row &r, cut c)
{
    u64 sum = 0;
    each_key(r, [&](int, uint32_t key) { sum += key > c.key ? weight(r, key) : 0; });
    return block_sum(sum) + (c.ties > 0 ? c.ties * weight(r, c.key) : 0);
}

/* Adds what is in c and has the prefix to its bin: 1 each, or its weight. */
__device__ static void fill_bins(const row &r, cut c, bool counts, uint32_t prefix, int shift,
                                 u64 *bins)
{
    each_key(r, [&](int, uint32_t key) {
        if (key <= c.key || ((uint64_t)(key ^ prefix) >> (shift + 8)) != 0)
            return;
        const u64 w = counts ? 1 : weight(r, key);
        if (w > 0)
            atomicAdd(&bins[(key >> shift) & 255], w);
    });
    if (threadIdx.x == 0 && c.ties > 0 && ((uint64_t)(c.key ^ prefix) >> (shift + 8)) == 0)
        atomicAdd(&bins[(c.key >> shift) & 255], counts ? c.ties : c.ties * weight(r, c.key));
}

/* The key at which counts or weights from the top reach need; *need: what is left of it for the
 * tokens of that key. */
__device__ static uint32_t descend(const row &r, cut c, bool counts, u64 *need)
{
    __shared__ u64 bins[TD_RADIX_BINS], shared_need;
    __shared__ uint32_t shared_prefix;
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < TD_RADIX_BINS)
            bins[threadIdx.x] = 0;
        __syncthreads();
        fill_bins(r, c, counts, prefix, shift, bins);
        __syncthreads();
        if (threadIdx.x < 32) {
            prefix |= td_find_bin(bins, need) << shift;
            if (threadIdx.x == 0) {
                shared_prefix = prefix;
                shared_need = *need;
            }
        }
        __syncthreads();
        prefix = shared_prefix;
        *need = shared_need;
    }
    return prefix;
}

__device__ static cut keep(const row &r, int top_k, float top_p)
{
    cut c = {0, 0};
    if (top_k > 0 && (u64)top_k < count_tokens(r)) {
        u64 need = (u64)top_k;
        const uint32_t key = descend(r, c, true, &need);
        c.key = key;
        c.ties = need;
    }
    if (top_p < 1.0f) {
        u64 need = td_sample_need(top_p, sum_weights(r, c));
        const uint32_t key = descend(r, c, false, &need);
        const u64 w = weight(r, key); /* not 0: it reached need */
        c.key = key;
        c.ties = (need + w - 1) / w;
    }
    return c;
}

/* Sum over the threads before this one; *total: over all. warps: [WARPS], free again on return. */
__device__ static u64 scan(u64 v, u64 *warps, u64 *total)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    u64 upto = v, before = 0, all = 0;
    for (int d = 1; d < 32; d *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, upto, d);
        if (lane >= d)
            upto += other;
    }
    if (lane == 31)
        warps[warp] = upto;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? warps[w] : 0;
        all += warps[w];
    }
    __syncthreads();
    *total = all;
    return before + upto - v;
}

/* The first id at which the running sum of what stays exceeds `at`; written by its thread. */
__device__ static void draw(const row &r, cut c, u64 at, int32_t *token)
{
    __shared__ u64 warps[WARPS];
    u64 sum = 0, ties = 0, total;
    for (int64_t base = 0; base < r.V && sum <= at; base += THREADS) {
        const uint32_t key = key_at(r, base + threadIdx.x);
        const bool tied = key != 0 && key == c.key;
        const u64 rank = ties + scan(tied, warps, &total);
        ties += total;
        const u64 w = key > c.key || (tied && rank < c.ties) ? weight(r, key) : 0;
        const u64 before = sum + scan(w, warps, &total);
        sum += total;
        if (before <= at && at < before + w)
            *token = (int32_t)(base + threadIdx.x);
    }
}

__global__ void __launch_bounds__(THREADS) sample_kernel(td_sample_args a)
{
    const int64_t t = blockIdx.x;
    row r = {a.logits + t * a.stride, NULL, a.V, 0, 0.0f, a.temperature[t]};
    if (a.forbid_ids_mask != NULL)
        r.forbid = a.forbid_ids_mask + t * ((a.V + 7) / 8);
    int32_t first;
    r.top_key = top_key(r, &first);
    r.top = td_order_value(r.top_key);
    if (r.top_key == 0 || !(r.temperature > 0.0f) || r.top == -INFINITY) {
        if (threadIdx.x == 0)
            a.token[t] = r.top_key == 0 ? -1 : first;
        return;
    }
    const cut c = keep(r, a.top_k[t], a.top_p[t]);
    const uint64_t bits = td_random_u64(a.seed[t], a.position[t], TD_RANDOM_TOKEN);
    draw(r, c, td_random_below(bits, sum_weights(r, c)), &a.token[t]);
}

extern "C" td_status td_sample_cuda(const td_sample_args *a, td_stream *s)
{
    if (!td_sample_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    sample_kernel<<<(unsigned)a->T, THREADS, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "sample");
}
