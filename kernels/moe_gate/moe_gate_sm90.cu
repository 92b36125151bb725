/* moe_gate_sm90.cu - a warp per token; scores stand in shared memory, every choice is a reduction
 * over the warp. Sums are made by every lane alike, in the order of selection, so their bits are
 * those of the judge. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/moe_gate/moe_gate.h"
}

__device__ static float number(float x)
{
    return isnan(x) ? -INFINITY : x;
}

/* Of entries begin..end - 1 that are not taken, the first largest; -1: all are. Every lane. */
__device__ static int largest(const float *v, const uint8_t *taken, int begin, int end)
{
    int best = -1;
    float best_v = 0.0f;
    for (int i = begin + (int)threadIdx.x; i < end; i += 32)
        if (!taken[i] && (best < 0 || number(v[i]) > best_v)) {
            best = i;
            best_v = number(v[i]);
        }
    for (int m = 16; m > 0; m /= 2) {
        const int other = __shfl_xor_sync(0xffffffffu, best, m);
        const float other_v = __shfl_xor_sync(0xffffffffu, best_v, m);
        if (other >= 0 && (best < 0 || other_v > best_v || (other_v == best_v && other < best))) {
            best = other;
            best_v = other_v;
        }
    }
    return best;
}

__device__ static void mark(uint8_t *flags, int i, uint8_t value)
{
    __syncwarp();
    if (threadIdx.x == 0)
        flags[i] = value;
    __syncwarp();
}

__device__ static float group_score(const float *biased, uint8_t *taken, int begin, int end)
{
    const int first = largest(biased, taken, begin, end);
    float score = number(biased[first]);
    if (end - begin > 1) {
        mark(taken, first, 1);
        score += number(biased[largest(biased, taken, begin, end)]);
    }
    return score;
}

/* Leaves the experts of the kept groups untaken. */
__device__ static void keep_groups(const td_moe_gate_args &a, const float *biased, float *groups,
                                   uint8_t *taken, uint8_t *kept)
{
    const int n = a.E / a.n_group;
    for (int g = 0; g < a.n_group; g++) {
        const float score = group_score(biased, taken, g * n, (g + 1) * n);
        if (threadIdx.x == 0)
            groups[g] = score;
    }
    __syncwarp();
    for (int e = (int)threadIdx.x; e < a.E; e += 32)
        taken[e] = 1;
    for (int i = 0; i < a.topk_group; i++) {
        const int g = largest(groups, kept, 0, a.n_group);
        mark(kept, g, 1);
        for (int e = g * n + (int)threadIdx.x; e < (g + 1) * n; e += 32)
            taken[e] = 0;
    }
    __syncwarp();
}

__global__ void __launch_bounds__(32) gate_kernel(td_moe_gate_args a)
{
    extern __shared__ float s[]; /* [E], biased [E], groups [n_group], flags */
    float *biased = s + a.E, *groups = biased + a.E;
    uint8_t *taken = (uint8_t *)(groups + a.n_group), *kept = taken + a.E;
    const int64_t t = blockIdx.x;
    int32_t *ids = a.ids + t * a.K;
    for (int e = (int)threadIdx.x; e < a.E; e += 32) {
        s[e] = 1.0f / (1.0f + td_expf(-a.logits[t * a.E + e]));
        biased[e] = a.bias == NULL ? s[e] : s[e] + a.bias[e];
        taken[e] = 0;
    }
    for (int g = (int)threadIdx.x; g < a.n_group; g += 32)
        kept[g] = 0;
    __syncwarp();
    keep_groups(a, biased, groups, taken, kept);
    float sum = 0.0f;
    for (int k = 0; k < a.K; k++) {
        const int e = largest(biased, taken, 0, a.E);
        mark(taken, e, 1);
        sum += s[e];
        if (threadIdx.x == 0)
            ids[k] = e;
    }
    __syncwarp();
    for (int k = (int)threadIdx.x; k < a.K; k += 32) {
        const float w = s[ids[k]];
        a.weights[t * a.K + k] = a.norm_topk ? w / (sum + a.eps) * a.scale : w * a.scale;
    }
}

extern "C" td_status td_moe_gate_cuda(const td_moe_gate_args *a, td_stream *s)
{
    if (!td_moe_gate_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    const size_t shared = (size_t)a->E * 9 + (size_t)a->n_group * 5;
    td_status st = td_cuda_allow_shared(s, (const void *)gate_kernel, shared, "moe_gate");
    if (st < 0)
        return st;
    gate_kernel<<<(unsigned)a->T, 32, shared, s->stream>>>(*a);
    return td_cuda_launched(s, "moe_gate");
}
