/* silu_mul.h - y = act( silu(f32(gate)) * f32(up) ), silu(v) = v / (1 + exp(-v)) (model-spec A.8);
 * with q also AQ_128 of the rounded y. exp is td_expf (numbers.h): bits are fixed. */
#ifndef TD_KERNELS_SILU_MUL_H
#define TD_KERNELS_SILU_MUL_H
#include "kernels/shapes.h"

typedef struct {
    const void *gate; /* [T, I] act */
    const void *up;   /* [T, I] act */
    void *y;          /* [T, I] act; may alias gate or up */
    uint8_t *q;       /* [T, I] e4m3; NULL: not wanted (always NULL when act is f32) */
    float *qs;        /* [T, ceil(I/128)] */
    int T, I;
    int ue8m0;
    td_dtype act;
} td_silu_mul_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_silu_mul_valid(const td_silu_mul_args *a)
{
    if (a->T < 0 || a->I < 0 || (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    if (a->T == 0 || a->I == 0)
        return 1;
    return a->gate != NULL && a->up != NULL && a->y != NULL &&
           (a->q == NULL || (a->qs != NULL && a->act == TD_BF16));
}

td_status td_silu_mul_ref(const td_silu_mul_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_silu_mul_cpu(const td_silu_mul_args *a, td_stream *stream);
td_status td_silu_mul_cuda(const td_silu_mul_args *a, td_stream *stream); /* in the plug-in */
#endif
