/* gemm.h - y = x * w^T (model-spec 0.3). Types: e4m3 x e4m3 with block scales, bf16 x bf16, f32 x
 * f32; f32 accumulation. e4m3: y[m,n] = sum_kb ( sum_{k in kb} x[m,k] w[n,k] ) * xs[m,kb] *
 * ws[n/128,kb] K blocks of 128 in ascending order for every M: a row's bits do not depend on the
 * other rows. K = 0 gives zeros. */
#ifndef TD_KERNELS_GEMM_H
#define TD_KERNELS_GEMM_H
#include "kernels/shapes.h"

typedef struct {
    const void *x;   /* [M, K] dtype, row stride x_stride */
    const float *xs; /* [M, ceil(K/128)] e4m3 only */
    const void *w;   /* [N, K] dtype, contiguous */
    const float *ws; /* [ceil(N/128), ceil(K/128)] e4m3 only */
    void *y;         /* [M, N] y_dtype, row stride y_stride */
    int M, N, K;
    int64_t x_stride, y_stride;
    td_dtype dtype;   /* of x and w */
    td_dtype y_dtype; /* bf16 or f32 */
    int accumulate;   /* y += x * w^T (f32 y only): old y plus the finished product, one addition */
} td_gemm_args;

td_status td_gemm_ref(const td_gemm_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_gemm_cpu(const td_gemm_args *a, td_stream *stream);
#endif
