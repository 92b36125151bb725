/* moe_gate_sm90.cu - a warp per token. Biased scores stand in shared memory as keys that order as
 * they do (select.cuh), 0 for what may not be chosen; lane l owns every e with e % 32 = l, so that
 * a lane reads what it wrote itself. A choice is two reductions over the warp: the largest key, and
 * the lowest place that has it. Sums are made by every lane alike, in the order of selection, so
 * their bits are those of the judge. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/select.cuh"
extern "C" {
#include "kernels/moe_gate/moe_gate.h"
}

/* The first largest of keys[begin .. end - 1] but for `skip` (-1: none), or -1 when all are 0;
 * *key: its key. Every lane has both. */
__device__ static int largest(const uint32_t *keys, int begin, int end, int skip, uint32_t *key)
{
    uint32_t best = 0;
    int at = -1;
#pragma unroll 4
    for (int i = begin / 32 * 32 + (int)threadIdx.x; i < end; i += 32) {
        const uint32_t k = i < begin || i == skip ? 0 : keys[i];
        at = k > best ? i : at;
        best = k > best ? k : best;
    }
    *key = __reduce_max_sync(0xffffffffu, best);
    return (int)__reduce_min_sync(0xffffffffu, best == *key ? (uint32_t)at : UINT32_MAX);
}

__device__ static float group_score(const uint32_t *keys, int begin, int end)
{
    uint32_t key;
    const int first = largest(keys, begin, end, -1, &key);
    float score = td_order_value(key);
    if (end - begin > 1) {
        largest(keys, begin, end, first, &key);
        score += td_order_value(key);
    }
    return score;
}

/* Keys of experts whose group is not kept become 0. */
__device__ static void keep_groups(const td_moe_gate_args &a, uint32_t *keys, uint32_t *groups)
{
    const int n = a.E / a.n_group, lane = (int)threadIdx.x;
    for (int g = 0; g < a.n_group; g++) {
        const float score = group_score(keys, g * n, (g + 1) * n);
        if (g % 32 == lane)
            groups[g] = td_order_key(score);
    }
    for (int i = 0; i < a.topk_group; i++) {
        uint32_t key;
        const int g = largest(groups, 0, a.n_group, -1, &key);
        if (g % 32 == lane)
            groups[g] = 0; /* kept */
    }
    __syncwarp();
    for (int e = lane; e < a.E; e += 32)
        if (groups[e / n] != 0)
            keys[e] = 0;
}

__global__ void __launch_bounds__(32) gate_kernel(td_moe_gate_args a)
{
    extern __shared__ float s[]; /* [E], keys [E], groups [n_group], scores of the chosen [K] */
    uint32_t *keys = (uint32_t *)(s + a.E), *groups = keys + a.E;
    float *chosen = (float *)(groups + a.n_group);
    const int64_t t = blockIdx.x;
    const int lane = (int)threadIdx.x;
#pragma unroll 8
    for (int e = lane; e < a.E; e += 32) {
        const float score = 1.0f / (1.0f + td_expf(-a.logits[t * a.E + e]));
        s[e] = score;
        keys[e] = td_order_key(a.bias == NULL ? score : score + a.bias[e]);
    }
    __syncwarp();
    keep_groups(a, keys, groups);
    float sum = 0.0f;
    for (int k = 0; k < a.K; k++) {
        uint32_t key;
        const int e = largest(keys, 0, a.E, -1, &key);
        const float score = s[e];
        sum += score;
        if (e % 32 == lane)
            keys[e] = 0;
        if (k % 32 == lane) {
            a.ids[t * a.K + k] = e;
            chosen[k] = score;
        }
    }
    for (int k = lane; k < a.K; k += 32)
        a.weights[t * a.K + k] =
            a.norm_topk ? chosen[k] / (sum + a.eps) * a.scale : chosen[k] * a.scale;
}

extern "C" td_status td_moe_gate_cuda(const td_moe_gate_args *a, td_stream *s)
{
    if (!td_moe_gate_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    const size_t shared = ((size_t)a->E * 2 + (size_t)a->n_group + (size_t)a->K) * 4;
    td_status st = td_cuda_allow_shared(s, (const void *)gate_kernel, shared, "moe_gate");
    if (st < 0)
        return st;
    gate_kernel<<<(unsigned)a->T, 32, shared, s->stream>>>(*a);
    return td_cuda_launched(s, "moe_gate");
}
