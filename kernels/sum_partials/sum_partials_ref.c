#include "kernels/numbers.h"
#include "kernels/sum_partials/sum_partials.h"

td_status td_sum_partials_ref(const td_sum_partials_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_sum_partials_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t i = 0; i < (int64_t)a->T * a->D; i++) {
        float sum = a->parts[i];
        for (int p = 1; p < a->P; p++)
            sum += a->parts[p * a->part_stride + i];
        if (a->act == TD_F32)
            ((float *)a->y)[i] = sum;
        else
            ((td_bf16 *)a->y)[i] = td_f32_to_bf16(sum);
    }
    return TD_OK;
}
