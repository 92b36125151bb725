/* topk.h - the k largest of each row's first row_len entries, as ascending positions, -1 behind
 * them (model-spec A.6). Equal scores: the lowest position wins; NaN counts as -inf. Exact. row_len
 * <= k selects all without reading logits. */
#ifndef TD_KERNELS_TOPK_H
#define TD_KERNELS_TOPK_H
#include "kernels/shapes.h"

typedef struct {
    const float *logits;    /* [T, stride] */
    const int32_t *row_len; /* [T] */
    int32_t *selected;      /* [T, k] */
    int T, k;
    int64_t stride;
} td_topk_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_topk_valid(const td_topk_args *a)
{
    if (a->T < 0 || a->k < 0 || a->stride < 0)
        return 0;
    return a->T == 0 || a->k == 0 ||
           (a->logits != NULL && a->row_len != NULL && a->selected != NULL);
}

td_status td_topk_ref(const td_topk_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_topk_cpu(const td_topk_args *a, td_stream *stream);
td_status td_topk_cuda(const td_topk_args *a, td_stream *stream); /* in the plug-in */
#endif
