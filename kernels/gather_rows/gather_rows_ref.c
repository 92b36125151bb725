#include "kernels/gather_rows/gather_rows.h"

td_status td_gather_rows_ref(const td_gather_rows_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_gather_rows_valid(a))
        return TD_BAD_SHAPE;
    for (int t = 0; t < a->T; t++)
        for (int64_t i = 0; i < a->row_bytes; i++)
            ((unsigned char *)a->y)[t * a->y_stride_bytes + i] =
                a->rows[t] < 0 ? 0
                               : ((const unsigned char *)a->x)[a->rows[t] * a->x_stride_bytes + i];
    return TD_OK;
}
