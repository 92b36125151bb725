#include "kernels/numbers.h"
#include "kernels/random.h"
#include "kernels/sample/sample.h"

#include <stdlib.h>

typedef struct {
    float l;
    int32_t id;
    uint64_t w;
} entry;

/* Descending logit, then ascending id. */
static int by_rank(const void *pa, const void *pb)
{
    const entry *a = pa, *b = pb;
    if (a->l != b->l)
        return a->l > b->l ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

static int by_id(const void *pa, const void *pb)
{
    const entry *a = pa, *b = pb;
    return a->id < b->id ? -1 : a->id > b->id;
}

static uint64_t weight(float l, float m, float temperature)
{
    float e = l == m ? 1.0f : td_expf((l - m) / temperature);
    return e > 0.0f ? (uint64_t)(e * TD_SAMPLE_ONE) : 0;
}

/* all: [n] allowed tokens in rank order. Returns how many of them stay. */
static int cut(const entry *all, int n, int top_k, float top_p)
{
    if (top_k > 0 && top_k < n)
        n = top_k;
    if (!(top_p < 1.0f))
        return n;
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        total += all[i].w;
    for (int i = 0; i < n; i++) {
        sum += all[i].w;
        if (sum >= td_sample_need(top_p, total))
            return i + 1;
    }
    return n;
}

static int32_t draw(const td_sample_args *a, int t, entry *all)
{
    const float *logits = a->logits + t * a->stride;
    const uint8_t *forbid = a->forbid_ids_mask;
    if (forbid != NULL)
        forbid += (int64_t)t * td_ceil_div(a->V, 8);
    int n = 0;
    for (int i = 0; i < a->V; i++)
        if (forbid == NULL || !(forbid[i / 8] >> (i % 8) & 1))
            all[n++] = (entry){isnan(logits[i]) ? -INFINITY : logits[i], i, 0};
    if (n == 0)
        return -1;
    qsort(all, (size_t)n, sizeof(*all), by_rank);
    if (!(a->temperature[t] > 0.0f) || all[0].l == -INFINITY)
        return all[0].id;
    for (int i = 0; i < n; i++)
        all[i].w = weight(all[i].l, all[0].l, a->temperature[t]);
    n = cut(all, n, a->top_k[t], a->top_p[t]);
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        total += all[i].w;
    qsort(all, (size_t)n, sizeof(*all), by_id);
    uint64_t r = td_random_u64(a->seed[t], a->position[t], TD_RANDOM_TOKEN);
    uint64_t at = td_random_below(r, total);
    for (int i = 0; i < n; i++) {
        sum += all[i].w;
        if (sum > at)
            return all[i].id;
    }
    return -1; /* not reached: at < total */
}

td_status td_sample_ref(const td_sample_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_sample_valid(a))
        return TD_BAD_SHAPE;
    entry *all = malloc((size_t)a->V * sizeof(*all));
    if (all == NULL)
        return TD_NOMEM;
    for (int t = 0; t < a->T; t++)
        a->token[t] = draw(a, t, all);
    free(all);
    return TD_OK;
}
