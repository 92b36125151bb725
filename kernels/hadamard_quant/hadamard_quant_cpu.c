/* hadamard_quant_cpu.c - a row is eight registers of 16: strides 1 to 8 shuffle within them, 16 to
 * 64 add and subtract whole ones. Bound: arithmetic. */
#include "kernels/hadamard_quant/hadamard_quant.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/hadamard_quant/hadamard_quant_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_hadamard_quant_args *a;
    void (*rows)(const td_hadamard_quant_args *a, int64_t begin, int64_t end);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    j->rows(j->a, begin, end);
}

td_status td_hadamard_quant_cpu(const td_hadamard_quant_args *a, td_stream *stream)
{
    if (!td_hadamard_quant_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), hadamard_quant_rows)};
    td_cpu_for(stream, a->T, 128, do_rows, &j);
    return TD_OK;
}
