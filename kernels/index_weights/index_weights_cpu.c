/* index_weights_cpu.c - three products per number, left to the compiler's vectoriser. */
#include "kernels/index_weights/index_weights.h"

#include <math.h>

#include "common/device/cpu.h"

typedef struct {
    const td_index_weights_args *a;
    float heads, dims;
} job;

static void do_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const float *xw = j->a->xw, *qs = j->a->qs;
    (void)thread;
    if (qs == NULL) {
        for (int64_t i = begin; i < end; i++)
            j->a->w[i] = (xw[i] * j->heads) * j->dims;
        return;
    }
    for (int64_t i = begin; i < end; i++)
        j->a->w[i] = ((xw[i] * j->heads) * qs[i]) * j->dims;
}

td_status td_index_weights_cpu(const td_index_weights_args *a, td_stream *stream)
{
    if (!td_index_weights_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, (float)(1.0 / sqrt(a->Hi)), (float)(1.0 / sqrt(a->dim))};
    td_cpu_for(stream, (int64_t)a->T * a->Hi, 16384, do_part, &j);
    return TD_OK;
}
