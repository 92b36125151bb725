/* argmax_cpu.c - a row per piece of work. Bound: memory, 4*T*V bytes. */
#include "kernels/argmax/argmax.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/argmax/argmax_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_argmax_args *a;
    int32_t (*row)(const float *x, int n);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        j->a->ids[t] = j->row(j->a->logits + t * j->a->stride, j->a->V);
}

td_status td_argmax_cpu(const td_argmax_args *a, td_stream *stream)
{
    if (!td_argmax_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), argmax_row)};
    td_cpu_for(stream, a->T, 1, do_rows, &j);
    return TD_OK;
}
