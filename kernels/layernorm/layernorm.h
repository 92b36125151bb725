/* layernorm.h - LayerNorm with bias (model-spec A.3, the indexer's k_norm): y = act( (x-mu) *
 * rsqrt(var+eps) * w + b ), f32 inside, biased variance. */
#ifndef TD_KERNELS_LAYERNORM_H
#define TD_KERNELS_LAYERNORM_H
#include "kernels/shapes.h"

typedef struct {
    const void *x;  /* [T, D] act */
    const float *w; /* [D] */
    const float *b; /* [D] */
    void *y;        /* [T, D] act; may alias x */
    int T, D;
    float eps;
    td_dtype act;
} td_layernorm_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_layernorm_valid(const td_layernorm_args *a)
{
    if (a->T < 0 || a->D < 1 || (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    return a->T == 0 || (a->x != NULL && a->w != NULL && a->b != NULL && a->y != NULL);
}

td_status td_layernorm_ref(const td_layernorm_args *a,
                           td_stream *stream); /* plain judge: tests only */
td_status td_layernorm_cpu(const td_layernorm_args *a, td_stream *stream);
td_status td_layernorm_cuda(const td_layernorm_args *a, td_stream *stream); /* in the plug-in */
#endif
