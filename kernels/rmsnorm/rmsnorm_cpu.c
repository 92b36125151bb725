/* rmsnorm_cpu.c - a row per piece of work; the unrounded sum z waits in scratch between the two
 * passes. Bound: memory. */
#include "kernels/rmsnorm/rmsnorm.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/rmsnorm/rmsnorm_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_rmsnorm_args *a;
    td_stream *stream;
    size_t scratch_bytes;
    void (*row)(const td_rmsnorm_args *a, int64_t t, float *z);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    float *z = td_cpu_scratch(j->stream, thread, j->scratch_bytes);
    for (int64_t t = begin; t < end; t++)
        j->row(j->a, t, z);
}

td_status td_rmsnorm_cpu(const td_rmsnorm_args *a, td_stream *stream)
{
    if (!td_rmsnorm_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, stream, ((size_t)a->D + LANES) * sizeof(float),
             LANES_PICK(td_cpu_isa(stream), rmsnorm_row)};
    if (td_cpu_reserve(stream, j.scratch_bytes) != TD_OK)
        return TD_NOMEM;
    td_cpu_for(stream, a->T, 1 + 16384 / a->D, do_rows, &j);
    return TD_OK;
}
