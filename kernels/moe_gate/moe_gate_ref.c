#include "kernels/moe_gate/moe_gate.h"

#include <stdlib.h>

#include "kernels/numbers.h"

/* Position of the largest of v[n] that is not taken; the first of several; NaN counts as -inf. */
static int largest(const float *v, const int *taken, int n)
{
    int best = -1;
    float best_v = 0;
    for (int i = 0; i < n; i++) {
        float x = isnan(v[i]) ? -INFINITY : v[i];
        if (!taken[i] && (best < 0 || x > best_v)) {
            best = i;
            best_v = x;
        }
    }
    return best;
}

static float group_score(const float *biased, int n)
{
    int *taken = calloc((size_t)n, sizeof(*taken));
    int first = largest(biased, taken, n);
    float score = isnan(biased[first]) ? -INFINITY : biased[first];
    taken[first] = 1;
    if (n > 1) {
        float second = biased[largest(biased, taken, n)];
        score += isnan(second) ? -INFINITY : second;
    }
    free(taken);
    return score;
}

static void row(const td_moe_gate_args *a, int64_t t)
{
    const int n = a->E / a->n_group;
    float *s = calloc((size_t)a->E, sizeof(*s)), *biased = calloc((size_t)a->E, sizeof(*biased));
    float *groups = calloc((size_t)a->n_group, sizeof(*groups));
    int *taken = calloc((size_t)a->E, sizeof(*taken));
    int *kept = calloc((size_t)a->n_group, sizeof(*kept));
    for (int e = 0; e < a->E; e++) {
        s[e] = 1.0f / (1.0f + td_expf(-a->logits[t * a->E + e]));
        biased[e] = a->bias == NULL ? s[e] : s[e] + a->bias[e];
        taken[e] = 1; /* unless its group is kept */
    }
    for (int g = 0; g < a->n_group; g++)
        groups[g] = group_score(biased + g * n, n);
    for (int i = 0; i < a->topk_group; i++) {
        int g = largest(groups, kept, a->n_group);
        kept[g] = 1;
        for (int e = g * n; e < (g + 1) * n; e++)
            taken[e] = 0;
    }
    float sum = 0;
    for (int k = 0; k < a->K; k++) {
        int e = largest(biased, taken, a->E);
        taken[e] = 1;
        a->ids[t * a->K + k] = e;
        sum += s[e];
    }
    for (int k = 0; k < a->K; k++) {
        float w = s[a->ids[t * a->K + k]];
        a->weights[t * a->K + k] = a->norm_topk ? w / (sum + a->eps) * a->scale : w * a->scale;
    }
    free(s);
    free(biased);
    free(groups);
    free(taken);
    free(kept);
}

td_status td_moe_gate_ref(const td_moe_gate_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_moe_gate_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++)
        row(a, t);
    return TD_OK;
}
