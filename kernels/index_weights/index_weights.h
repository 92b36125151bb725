/* index_weights.h - head weights of the indexer (model-spec A.6): w = ((xw * Hi^-1/2) * qs) *
 * 128^-1/2, f32, in that order; qs NULL (precise mode) counts as 1. */
#ifndef TD_KERNELS_INDEX_WEIGHTS_H
#define TD_KERNELS_INDEX_WEIGHTS_H
#include "kernels/shapes.h"

typedef struct {
    const float *xw; /* [T, Hi] f32(x) * f32(weights_proj) */
    const float *qs; /* [T, Hi] or NULL */
    float *w;        /* [T, Hi]; may alias xw */
    int T, Hi, dim;  /* dim: index_head_dim (128) */
} td_index_weights_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_index_weights_valid(const td_index_weights_args *a)
{
    if (a->T < 0 || a->Hi < 1 || a->dim < 1)
        return 0;
    return a->T == 0 || (a->xw != NULL && a->w != NULL);
}

td_status td_index_weights_ref(const td_index_weights_args *a,
                               td_stream *stream); /* plain judge: tests only */
td_status td_index_weights_cpu(const td_index_weights_args *a, td_stream *stream);
td_status td_index_weights_cuda(const td_index_weights_args *a,
                                td_stream *stream); /* in the plug-in */
#endif
