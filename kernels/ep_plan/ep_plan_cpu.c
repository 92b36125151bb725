/* ep_plan_cpu.c - a rank per item: it reads all ids, four bytes each. Bound: latency of small
 * steps. */
#include "kernels/ep_plan/ep_plan.h"

#include <string.h>

#include "common/device/cpu.h"

static void ranks(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const td_ep_plan_args *a = arg;
    (void)thread;
    for (int64_t p = begin; p < end; p++) {
        const int32_t lo = (int32_t)(p * a->E / a->P), hi = (int32_t)((p + 1) * a->E / a->P);
        int32_t *rows = a->T > 0 ? a->rows + p * a->T : NULL, n = 0;
        for (int32_t t = 0; t < a->T; t++) {
            const int32_t *ids = a->ids + (int64_t)t * a->K;
            int wanted = 0;
            for (int k = 0; k < a->K; k++)
                wanted |= (ids[k] >= lo) & (ids[k] < hi);
            a->slot[(int64_t)t * a->P + p] = wanted ? n : -1;
            if (wanted)
                rows[n++] = t;
        }
        a->counts[p] = n;
        if (n < a->T)
            memset(rows + n, 0xff, (size_t)(a->T - n) * sizeof(*rows));
    }
}

td_status td_ep_plan_cpu(const td_ep_plan_args *a, td_stream *stream)
{
    if (!td_ep_plan_valid(a))
        return TD_BAD_SHAPE;
    int64_t row = (int64_t)a->T * (a->K + 1) + 1;
    td_cpu_for(stream, a->P, 1 + 16384 / row, ranks, (void *)a);
    return TD_OK;
}
