/* widen_cpu.c - Bound: memory. */
#include "kernels/cpu/convert.h"
#include "kernels/widen/widen.h"

#define PIECE 8192 /* elements */

typedef struct {
    const td_widen_args *a;
    td_isa isa;
} job;

static void part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    (void)thread;
    td_cpu_widen(j->isa, TD_BF16, (const td_bf16 *)j->a->x + begin, end - begin, j->a->y + begin);
}

td_status td_widen_cpu(const td_widen_args *a, td_stream *stream)
{
    if (!td_widen_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, td_cpu_isa(stream)};
    td_cpu_for(stream, (int64_t)a->T * a->D, PIECE, part, &j);
    return TD_OK;
}
