/* quant.h - AQ_128 (model-spec 0.3): each row in groups of 128 (the last may be shorter); bits are
 * fixed by the formula. */
#ifndef TD_KERNELS_QUANT_H
#define TD_KERNELS_QUANT_H
#include "kernels/shapes.h"

typedef struct {
    const void *x; /* [T, K] bf16, row stride x_stride */
    uint8_t *q;    /* [T, K] e4m3, contiguous */
    float *qs;     /* [T, ceil(K/128)] */
    int T, K;
    int64_t x_stride;
    int ue8m0;
} td_quant_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_quant_valid(const td_quant_args *a)
{
    if (a->T < 0 || a->K < 0 || (a->T > 1 && a->x_stride < a->K))
        return 0;
    return a->T == 0 || a->K == 0 || (a->x != NULL && a->q != NULL && a->qs != NULL);
}

td_status td_quant_ref(const td_quant_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_quant_cpu(const td_quant_args *a, td_stream *stream);
td_status td_quant_cuda(const td_quant_args *a, td_stream *stream); /* in the plug-in */
#endif
