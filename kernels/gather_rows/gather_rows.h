/* gather_rows.h - y[i] = x[rows[i]], any row width; rows[i] < 0 gives zeros. */
#ifndef TD_KERNELS_GATHER_ROWS_H
#define TD_KERNELS_GATHER_ROWS_H
#include "kernels/shapes.h"

typedef struct {
    const void *x;       /* [.., row_bytes], stride x_stride_bytes */
    const int32_t *rows; /* [T] */
    void *y;             /* [T, row_bytes], stride y_stride_bytes */
    int T;
    int64_t row_bytes, x_stride_bytes, y_stride_bytes;
} td_gather_rows_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_gather_rows_valid(const td_gather_rows_args *a)
{
    if (a->T < 0 || a->row_bytes < 0 || a->x_stride_bytes < 0)
        return 0;
    if (a->T > 1 && a->y_stride_bytes < a->row_bytes)
        return 0;
    return a->T == 0 || a->row_bytes == 0 || (a->x != NULL && a->rows != NULL && a->y != NULL);
}

td_status td_gather_rows_ref(const td_gather_rows_args *a,
                             td_stream *stream); /* plain judge: tests only */
td_status td_gather_rows_cpu(const td_gather_rows_args *a, td_stream *stream);
td_status td_gather_rows_cuda(const td_gather_rows_args *a, td_stream *stream); /* in the plug-in */
#endif
