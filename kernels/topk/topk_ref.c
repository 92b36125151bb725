#include "kernels/topk/topk.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    float score;
    int32_t position;
} entry;

/* Descending score, then ascending position. */
static int by_rank(const void *pa, const void *pb)
{
    const entry *a = pa, *b = pb;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->position < b->position ? -1 : 1;
}

static int by_position(const void *pa, const void *pb)
{
    const int32_t *a = pa, *b = pb;
    return *a < *b ? -1 : *a > *b;
}

static td_status select_row(const float *logits, int len, int k, int32_t *selected)
{
    for (int i = 0; i < k; i++)
        selected[i] = i < len ? i : -1;
    if (len <= k)
        return TD_OK;
    entry *all = malloc((size_t)len * sizeof(*all));
    if (all == NULL)
        return TD_NOMEM;
    for (int i = 0; i < len; i++)
        all[i] = (entry){isnan(logits[i]) ? -INFINITY : logits[i], i};
    qsort(all, (size_t)len, sizeof(*all), by_rank);
    for (int i = 0; i < k; i++)
        selected[i] = all[i].position;
    qsort(selected, (size_t)k, sizeof(*selected), by_position);
    free(all);
    return TD_OK;
}

td_status td_topk_ref(const td_topk_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_topk_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T && a->k > 0; t++) {
        td_status st =
            select_row(a->logits + t * a->stride, a->row_len[t], a->k, a->selected + t * a->k);
        if (st != TD_OK)
            return st;
    }
    return TD_OK;
}
