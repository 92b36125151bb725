/* ep_combine_cpu.c - a row per item: its parts are added one after the other. Bound: memory. */
#include "kernels/ep_combine/ep_combine.h"

#include <string.h>

#include "kernels/cpu/convert.h"

typedef struct {
    const td_ep_combine_args *a;
    td_isa isa;
} job;

static void rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_ep_combine_args *a = j->a;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *y = a->y + t * a->D;
        memset(y, 0, (size_t)a->D * sizeof(*y));
        for (int64_t p = 0; p < a->P; p++) {
            int32_t slot = a->slot[t * a->P + p];
            if (slot >= 0)
                td_cpu_add(j->isa, a->parts + (p * a->cap + slot) * a->D, a->D, y);
        }
    }
}

td_status td_ep_combine_cpu(const td_ep_combine_args *a, td_stream *stream)
{
    if (!td_ep_combine_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, td_cpu_isa(stream)};
    if (a->D > 0)
        td_cpu_for(stream, a->T, 1 + 16384 / a->D, rows, &j);
    return TD_OK;
}
