#include "kernels/numbers.h"
#include "kernels/silu_mul/silu_mul.h"

static float get(const void *x, int64_t i, td_dtype act)
{
    return act == TD_F32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

static void quantise(const td_silu_mul_args *a, int64_t t, int g)
{
    const td_bf16 *y = (const td_bf16 *)a->y + t * a->I;
    const int begin = g * TD_QUANT_GROUP;
    const int end = a->I - begin < TD_QUANT_GROUP ? a->I : begin + TD_QUANT_GROUP;
    float amax = 0;
    for (int i = begin; i < end; i++)
        amax = fmaxf(amax, fabsf(td_bf16_to_f32(y[i])));
    const float scale = td_quant_scale(amax, a->ue8m0);
    a->qs[t * td_ceil_div(a->I, TD_QUANT_GROUP) + g] = scale;
    for (int i = begin; i < end; i++)
        a->q[t * a->I + i] = td_quant_code(td_bf16_to_f32(y[i]), scale);
}

td_status td_silu_mul_ref(const td_silu_mul_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_silu_mul_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++) {
        for (int64_t i = t * a->I; i < (t + 1) * a->I; i++) {
            float g = get(a->gate, i, a->act);
            float y = g / (1.0f + td_expf(-g)) * get(a->up, i, a->act);
            if (a->act == TD_F32)
                ((float *)a->y)[i] = y;
            else
                ((td_bf16 *)a->y)[i] = td_f32_to_bf16(y);
        }
        for (int g = 0; a->q != NULL && g < td_ceil_div(a->I, TD_QUANT_GROUP); g++)
            quantise(a, t, g);
    }
    return TD_OK;
}
