#include "kernels/numbers.h"
#include "kernels/widen/widen.h"

td_status td_widen_ref(const td_widen_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_widen_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t i = 0; i < (int64_t)a->T * a->D; i++)
        a->y[i] = td_bf16_to_f32(((const td_bf16 *)a->x)[i]);
    return TD_OK;
}
