#include "kernels/index_weights/index_weights.h"

#include <math.h>

td_status td_index_weights_ref(const td_index_weights_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_index_weights_valid(a))
        return TD_BAD_SHAPE;
    const float heads = (float)(1.0 / sqrt(a->Hi)), dims = (float)(1.0 / sqrt(a->dim));
    for (int64_t i = 0; i < (int64_t)a->T * a->Hi; i++)
        a->w[i] = ((a->xw[i] * heads) * (a->qs == NULL ? 1.0f : a->qs[i])) * dims;
    return TD_OK;
}
