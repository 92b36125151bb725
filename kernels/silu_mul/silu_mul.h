/* silu_mul.h - y = act( silu(f32(gate)) * f32(up) ), silu(v) = v / (1 + exp(-v)) (model-spec A.8);
 * with q also AQ_128 of the rounded y. */
#ifndef TD_KERNELS_SILU_MUL_H
#define TD_KERNELS_SILU_MUL_H
#include "kernels/shapes.h"

typedef struct {
    const void *gate; /* [T, I] act */
    const void *up;   /* [T, I] act */
    void *y;          /* [T, I] act */
    uint8_t *q;       /* [T, I] e4m3 or NULL */
    float *qs;        /* [T, ceil(I/128)] */
    int T, I;
    int ue8m0;
    td_dtype act;
} td_silu_mul_args;

td_status td_silu_mul_ref(const td_silu_mul_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_silu_mul_cpu(const td_silu_mul_args *a, td_stream *stream);
#endif
