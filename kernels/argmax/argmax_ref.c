#include "kernels/argmax/argmax.h"

#include <math.h>

td_status td_argmax_ref(const td_argmax_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_argmax_valid(a))
        return TD_BAD_SHAPE;
    for (int t = 0; t < a->T; t++) {
        const float *x = a->logits + t * a->stride;
        float best = -INFINITY;
        a->ids[t] = 0;
        for (int i = 0; i < a->V; i++)
            if (x[i] > best) { /* false for NaN */
                best = x[i];
                a->ids[t] = i;
            }
    }
    return TD_OK;
}
