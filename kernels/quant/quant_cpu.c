/* quant_cpu.c - a group of 128 stays in the first-level cache between its maximum and its codes.
 * Bound: divisions. */
#include "kernels/quant/quant.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/quant/quant_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_quant_args *a;
    void (*groups)(const td_quant_args *a, int64_t begin, int64_t end);
} job;

static void part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    j->groups(j->a, begin, end);
}

td_status td_quant_cpu(const td_quant_args *a, td_stream *stream)
{
    if (!td_quant_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), quant_groups)};
    td_cpu_for(stream, (int64_t)a->T * td_ceil_div(a->K, TD_QUANT_GROUP), 64, part, &j);
    return TD_OK;
}
