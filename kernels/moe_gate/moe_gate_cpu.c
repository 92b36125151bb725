/* moe_gate_cpu.c - a row per item: scores in registers of 16, then one walk over the experts for
 * the groups and one over the kept groups for the best K, which stand sorted all the time. Bound:
 * arithmetic. */
#include "kernels/moe_gate/moe_gate.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/moe_gate/moe_gate_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_moe_gate_args *a;
    td_stream *stream;
    size_t n_bytes;
    void (*scores)(const td_moe_gate_args *a, int64_t t, float *s, float *key);
} job;

/* Whole registers are stored past E. */
static size_t padded(int n)
{
    return (size_t)td_ceil_div(n, LANES) * LANES;
}

static float group_score(const float *key, int n)
{
    float first = key[0], second = -INFINITY;
    for (int i = 1; i < n; i++) {
        float low = key[i] > first ? first : key[i];
        first = key[i] > first ? key[i] : first;
        second = low > second ? low : second;
    }
    return n > 1 ? first + second : first;
}

/* kept[g] = 1 for the best topk_group groups; the lower id of equal ones. */
static void keep_groups(const td_moe_gate_args *a, const float *key, float *score,
                        unsigned char *kept)
{
    const int n = a->E / a->n_group;
    for (int g = 0; g < a->n_group; g++) {
        score[g] = group_score(key + g * n, n);
        kept[g] = 0;
    }
    for (int i = 0; i < a->topk_group; i++) {
        int best = -1;
        for (int g = 0; g < a->n_group; g++)
            if (!kept[g] && (best < 0 || score[g] > score[best]))
                best = g;
        kept[best] = 1;
    }
}

/* Experts come in ascending order: one that equals another stands behind it. */
static void choose(const td_moe_gate_args *a, const float *key, const unsigned char *kept,
                   int32_t *ids)
{
    const int n = a->E / a->n_group;
    int count = 0;
    for (int g = 0; g < a->n_group; g++)
        for (int e = g * n; kept[g] && e < (g + 1) * n; e++) {
            if (count == a->K && !(key[e] > key[ids[count - 1]]))
                continue;
            int at = count < a->K ? count++ : count - 1;
            for (; at > 0 && key[e] > key[ids[at - 1]]; at--)
                ids[at] = ids[at - 1];
            ids[at] = e;
        }
}

static void rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_moe_gate_args *a = j->a;
    float *s = td_cpu_scratch(j->stream, thread, j->n_bytes);
    float *key = s + padded(a->E), *score = key + padded(a->E);
    unsigned char *kept = (unsigned char *)(score + a->n_group);
    for (int64_t t = begin; t < end; t++) {
        int32_t *ids = a->ids + t * a->K;
        j->scores(a, t, s, key);
        keep_groups(a, key, score, kept);
        choose(a, key, kept, ids);
        float sum = 0;
        for (int k = 0; k < a->K; k++)
            sum += s[ids[k]];
        for (int k = 0; k < a->K; k++) {
            float w = s[ids[k]];
            a->weights[t * a->K + k] = a->norm_topk ? w / (sum + a->eps) * a->scale : w * a->scale;
        }
    }
}

td_status td_moe_gate_cpu(const td_moe_gate_args *a, td_stream *stream)
{
    if (!td_moe_gate_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, stream, 2 * padded(a->E) * sizeof(float) + (size_t)a->n_group * 5,
             LANES_PICK(td_cpu_isa(stream), moe_gate_scores)};
    if (td_cpu_reserve(stream, j.n_bytes) != TD_OK)
        return TD_NOMEM;
    td_cpu_for(stream, a->T, 1 + 4096 / a->E, rows, &j);
    return TD_OK;
}
