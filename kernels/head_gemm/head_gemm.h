/* head_gemm.h - one small product per head: y[t,h] = w[h] * x[t,h] (the absorbed forms of
 * model-spec A.5: q~ = W_UK^T q, o = W_UV u). Same accumulation rule as gemm. */
#ifndef TD_KERNELS_HEAD_GEMM_H
#define TD_KERNELS_HEAD_GEMM_H
#include "kernels/shapes.h"

typedef struct {
    const void *x; /* [T, H, K] act; element (t,h,k) at t*x_row + h*x_head + k */
    const void *w; /* [H, N, K] act, contiguous */
    void *y;       /* [T, H, N] act; element (t,h,n) at t*y_row + h*y_head + n */
    int T, H, N, K;
    int64_t x_row, x_head, y_row, y_head;
    td_dtype act;
} td_head_gemm_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_head_gemm_valid(const td_head_gemm_args *a)
{
    if (a->T < 0 || a->H < 0 || a->N < 0 || a->K < 0)
        return 0;
    if (a->act != TD_F32 && a->act != TD_BF16)
        return 0;
    if (a->T == 0 || a->H == 0 || a->N == 0)
        return 1;
    if (a->y == NULL || (a->T > 1 && a->y_row < a->N) || (a->H > 1 && a->y_head < a->N))
        return 0;
    return a->K == 0 || (a->x != NULL && a->w != NULL && a->x_row >= 0 && a->x_head >= 0);
}

td_status td_head_gemm_ref(const td_head_gemm_args *a,
                           td_stream *stream); /* plain judge: tests only */
td_status td_head_gemm_cpu(const td_head_gemm_args *a, td_stream *stream);
td_status td_head_gemm_cuda(const td_head_gemm_args *a, td_stream *stream); /* in the plug-in */
#endif
