/* rmsnorm.h - RMS norm, with or without a residual sum (model-spec A.3):
 *   z = f32(x) + f32(res);  y = act( w * (z * rsqrt(mean z^2 + eps)) );  res_out = act(z)
 * The norm uses the unrounded z. Without res: z = x. With q: the rounded y is also quantised,
 * AQ_128. */
#ifndef TD_KERNELS_RMSNORM_H
#define TD_KERNELS_RMSNORM_H
#include "kernels/shapes.h"

typedef struct {
    const void *x;   /* [T, D] act, row stride x_stride */
    const void *res; /* [T, D] act, contiguous; NULL: none */
    const float *w;  /* [D] */
    void *y;         /* [T, D] act, row stride y_stride; may alias x */
    void *res_out;   /* [T, D] act, contiguous; NULL with res NULL; may alias res */
    uint8_t *q;      /* [T, D] e4m3, contiguous; NULL: not wanted (always NULL when act is f32) */
    float *qs;       /* [T, ceil(D/128)] */
    int T, D;
    int64_t x_stride, y_stride;
    float eps;
    int ue8m0; /* scales of q are powers of two */
    td_dtype act;
} td_rmsnorm_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_rmsnorm_valid(const td_rmsnorm_args *a)
{
    if (a->T < 0 || a->D < 1 || (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    if (a->T == 0)
        return 1;
    return a->x != NULL && a->w != NULL && a->y != NULL && a->x_stride >= 0 &&
           (a->T == 1 || a->y_stride >= a->D) && (a->res_out == NULL || a->res != NULL) &&
           (a->q == NULL || (a->qs != NULL && a->act == TD_BF16));
}

td_status td_rmsnorm_ref(const td_rmsnorm_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_rmsnorm_cpu(const td_rmsnorm_args *a, td_stream *stream);
td_status td_rmsnorm_cuda(const td_rmsnorm_args *a, td_stream *stream); /* in the plug-in */
#endif
