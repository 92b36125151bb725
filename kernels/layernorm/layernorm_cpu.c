/* layernorm_cpu.c - a row per piece of work; rows are short (the indexer's keys, 128) and stay in
 * the first cache between the three passes. */
#include "kernels/layernorm/layernorm.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/layernorm/layernorm_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_layernorm_args *a;
    void (*row)(const td_layernorm_args *a, int64_t t);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        j->row(j->a, t);
}

td_status td_layernorm_cpu(const td_layernorm_args *a, td_stream *stream)
{
    if (!td_layernorm_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), layernorm_row)};
    td_cpu_for(stream, a->T, 1 + 16384 / a->D, do_rows, &j);
    return TD_OK;
}
