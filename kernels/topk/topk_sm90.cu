/* topk_sm90.cu - a block per row: the k-th largest key by four passes of a radix descent over
 * 32-bit keys that order as the scores do (histograms of counts: no order of additions matters),
 * then one pass that writes what is above it, and the first few that equal it, at offsets from a
 * scan. The row is read five times; no scratch grows with its length. */
#include "kernels/cuda/cuda.cuh"
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

extern "C" td_status td_topk_cuda(const td_topk_args *a, td_stream *s)
{
    if (!td_topk_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->k == 0)
        return TD_OK;
    topk_kernel<<<(unsigned)a->T, THREADS, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "topk");
}
