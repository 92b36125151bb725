/* sum_partials_cpu.c - all parts of 16 elements, then the next 16. Bound: memory. */
#include "kernels/sum_partials/sum_partials.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/sum_partials/sum_partials_lanes.h"
#include "kernels/cpu/each_isa.h"

#define PIECE 8192 /* elements; a multiple of LANES */

typedef struct {
    const td_sum_partials_args *a;
    void (*sum)(const td_sum_partials_args *a, int64_t begin, int64_t end);
} job;

static void part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    j->sum(j->a, begin, end);
}

td_status td_sum_partials_cpu(const td_sum_partials_args *a, td_stream *stream)
{
    if (!td_sum_partials_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), sum_partials)};
    td_cpu_for(stream, (int64_t)a->T * a->D, PIECE, part, &j);
    return TD_OK;
}
