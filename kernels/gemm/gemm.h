/* gemm.h - y = x * w^T (model-spec 0.3). Types: e4m3 x e4m3 with block scales, bf16 x bf16, f32 x
 * f32; f32 accumulation. e4m3: y[m,n] = sum_kb ( sum_{k in kb} x[m,k] w[n,k] ) * xs[m,kb] *
 * ws[n/128,kb]. A backend sums in one order that K alone fixes, so that a row's bits depend neither
 * on M nor on the other rows; which order is its own choice, and results of two backends agree
 * within roundings only. The CPU's is that of kernels/cpu/dot.h, with xs * ws multiplied into x
 * before: exact where scales are powers of two, two roundings where they are not.
 * K = 0 gives zeros. */
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

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_gemm_valid(const td_gemm_args *a)
{
    if (a->M < 0 || a->N < 0 || a->K < 0)
        return 0;
    if (a->dtype != TD_F32 && a->dtype != TD_BF16 && a->dtype != TD_E4M3)
        return 0;
    if (a->y_dtype != TD_F32 && (a->y_dtype != TD_BF16 || a->accumulate))
        return 0;
    if (a->M > 1 && (a->x_stride < a->K || a->y_stride < a->N))
        return 0;
    if (a->M == 0 || a->N == 0)
        return 1;
    if (a->y == NULL)
        return 0;
    if (a->K == 0)
        return 1;
    return a->x != NULL && a->w != NULL &&
           (a->dtype != TD_E4M3 || (a->xs != NULL && a->ws != NULL));
}

td_status td_gemm_ref(const td_gemm_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_gemm_cpu(const td_gemm_args *a, td_stream *stream);
td_status td_gemm_cuda(const td_gemm_args *a, td_stream *stream); /* in the plug-in */
#endif
