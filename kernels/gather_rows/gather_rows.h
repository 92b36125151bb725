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

td_status td_gather_rows_ref(const td_gather_rows_args *a,
                             td_stream *stream); /* plain judge: tests only */
td_status td_gather_rows_cpu(const td_gather_rows_args *a, td_stream *stream);
#endif
