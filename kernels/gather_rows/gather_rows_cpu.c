/* gather_rows_cpu.c - copies rows. Bound: memory. */
#include "kernels/gather_rows/gather_rows.h"

#include <string.h>

#include "common/device/cpu.h"

static void rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const td_gather_rows_args *a = arg;
    const size_t n = (size_t)a->row_bytes;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        unsigned char *y = (unsigned char *)a->y + t * a->y_stride_bytes;
        if (a->rows[t] >= 0)
            memcpy(y, (const unsigned char *)a->x + a->rows[t] * a->x_stride_bytes, n);
        else
            memset(y, 0, n);
    }
}

td_status td_gather_rows_cpu(const td_gather_rows_args *a, td_stream *stream)
{
    if (!td_gather_rows_valid(a))
        return TD_BAD_SHAPE;
    if (a->row_bytes > 0)
        td_cpu_for(stream, a->T, 1 + 65536 / (a->row_bytes + 64), rows, (void *)a);
    return TD_OK;
}
