#include "kernels/ep_plan/ep_plan.h"

static int owns(const td_ep_plan_args *a, int p, int32_t e)
{
    int64_t lo = (int64_t)p * a->E / a->P, hi = (int64_t)(p + 1) * a->E / a->P;
    return e >= lo && e < hi;
}

td_status td_ep_plan_ref(const td_ep_plan_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_ep_plan_valid(a))
        return TD_BAD_SHAPE;
    for (int p = 0; p < a->P; p++) {
        a->counts[p] = 0;
        for (int t = 0; t < a->T; t++) {
            int wanted = 0;
            for (int k = 0; k < a->K; k++)
                wanted |= owns(a, p, a->ids[(int64_t)t * a->K + k]);
            a->slot[(int64_t)t * a->P + p] = wanted ? a->counts[p] : -1;
            if (wanted)
                a->rows[(int64_t)p * a->T + a->counts[p]++] = t;
        }
        for (int t = a->counts[p]; t < a->T; t++)
            a->rows[(int64_t)p * a->T + t] = -1;
    }
    return TD_OK;
}
