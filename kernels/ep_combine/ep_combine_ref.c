#include "kernels/ep_combine/ep_combine.h"

td_status td_ep_combine_ref(const td_ep_combine_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_ep_combine_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t d = 0; d < a->D; d++) {
            float sum = 0;
            for (int64_t p = 0; p < a->P; p++) {
                int32_t slot = a->slot[t * a->P + p];
                if (slot >= 0)
                    sum += a->parts[(p * a->cap + slot) * a->D + d];
            }
            a->y[t * a->D + d] = sum;
        }
    return TD_OK;
}
