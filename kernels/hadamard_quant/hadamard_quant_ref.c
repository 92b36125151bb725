#include "kernels/hadamard_quant/hadamard_quant.h"
#include "kernels/numbers.h"

td_status td_hadamard_quant_ref(const td_hadamard_quant_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_hadamard_quant_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++) {
        float h[128], amax = 0.0f;
        for (int i = 0; i < 128; i++)
            h[i] = td_bf16_to_f32(a->x[t * 128 + i]);
        td_hadamard128(h);
        for (int i = 0; i < 128; i++) {
            h[i] = td_bf16_to_f32(td_f32_to_bf16(h[i] * 0.08838834764831845f));
            amax = fmaxf(amax, fabsf(h[i]));
        }
        a->qs[t] = td_quant_scale(amax, a->ue8m0);
        for (int i = 0; i < 128; i++)
            a->q[t * 128 + i] = td_quant_code(h[i], a->qs[t]);
    }
    return TD_OK;
}
