#include "kernels/numbers.h"
#include "kernels/quant/quant.h"

td_status td_quant_ref(const td_quant_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_quant_valid(a))
        return TD_BAD_SHAPE;
    const int n_groups = td_ceil_div(a->K, TD_QUANT_GROUP);
    for (int64_t t = 0; t < a->T; t++)
        for (int g = 0; g < n_groups; g++) {
            const td_bf16 *x = (const td_bf16 *)a->x + t * a->x_stride;
            const int begin = g * TD_QUANT_GROUP;
            const int end = a->K - begin < TD_QUANT_GROUP ? a->K : begin + TD_QUANT_GROUP;
            float amax = 0; /* NaN does not count; fmaxf() would forget what came before one */
            for (int k = begin; k < end; k++)
                if (fabsf(td_bf16_to_f32(x[k])) > amax)
                    amax = fabsf(td_bf16_to_f32(x[k]));
            const float scale = td_quant_scale(amax, a->ue8m0);
            a->qs[t * n_groups + g] = scale;
            for (int k = begin; k < end; k++)
                a->q[t * a->K + k] = td_quant_code(td_bf16_to_f32(x[k]), scale);
        }
    return TD_OK;
}
