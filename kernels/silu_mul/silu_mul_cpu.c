/* silu_mul_cpu.c - 16 numbers at a time; a group of 128 is quantised while it is in the first-level
 * cache. Bound: arithmetic. */
#include "kernels/silu_mul/silu_mul.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/silu_mul/silu_mul_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_silu_mul_args *a;
    void (*groups)(const td_silu_mul_args *a, int64_t begin, int64_t end);
} job;

static void part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    j->groups(j->a, begin, end);
}

td_status td_silu_mul_cpu(const td_silu_mul_args *a, td_stream *stream)
{
    if (!td_silu_mul_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), silu_mul_groups)};
    td_cpu_for(stream, (int64_t)a->T * td_ceil_div(a->I, TD_QUANT_GROUP), 32, part, &j);
    return TD_OK;
}
