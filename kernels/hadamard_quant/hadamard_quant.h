/* hadamard_quant.h - the indexer's rotation and quantisation (model-spec A.6): h = bf16( Had128(x)
 * * 0.08838834764831845 ) in natural order (stride 1, 2, .., 64: (a,b) -> (a+b, a-b), f32), then
 * AQ_128 of h, one scale per row. Bits are fixed by the formula. */
#ifndef TD_KERNELS_HADAMARD_QUANT_H
#define TD_KERNELS_HADAMARD_QUANT_H
#include "kernels/shapes.h"

typedef struct {
    const td_bf16 *x; /* [T, 128] */
    uint8_t *q;       /* [T, 128] e4m3 */
    float *qs;        /* [T] */
    int T;            /* rows: tokens x heads */
    int ue8m0;
} td_hadamard_quant_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_hadamard_quant_valid(const td_hadamard_quant_args *a)
{
    return a->T == 0 || (a->T > 0 && a->x != NULL && a->q != NULL && a->qs != NULL);
}

td_status td_hadamard_quant_ref(const td_hadamard_quant_args *a,
                                td_stream *stream); /* plain judge: tests only */
td_status td_hadamard_quant_cpu(const td_hadamard_quant_args *a, td_stream *stream);
td_status td_hadamard_quant_cuda(const td_hadamard_quant_args *a,
                                 td_stream *stream); /* in the plug-in */
#endif
