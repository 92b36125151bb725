/* rope_cpu.c - a row per piece of work, all its heads with the same 16 cosines and sines at once.
 * Bound: memory. */
#include "kernels/rope/rope.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/rope/rope_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_rope_args *a;
    void (*row)(const td_rope_args *a, int64_t t);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        if (j->a->positions[t] >= 0 && j->a->positions[t] < j->a->max_pos)
            j->row(j->a, t);
}

td_status td_rope_cpu(const td_rope_args *a, td_stream *stream)
{
    if (!td_rope_valid(a))
        return TD_BAD_SHAPE;
    if (a->heads == 0 || a->R == 0)
        return TD_OK;
    job j = {a, LANES_PICK(td_cpu_isa(stream), rope_row)};
    td_cpu_for(stream, a->T, 1 + 16384 / (a->heads * (int64_t)a->R), do_rows, &j);
    return TD_OK;
}
