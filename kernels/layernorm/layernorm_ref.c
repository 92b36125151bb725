#include "kernels/layernorm/layernorm.h"
#include "kernels/numbers.h"

static float get(const void *x, int64_t i, td_dtype act)
{
    return act == TD_F32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

td_status td_layernorm_ref(const td_layernorm_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_layernorm_valid(a))
        return TD_BAD_SHAPE;
    for (int t = 0; t < a->T; t++) {
        const int64_t row = (int64_t)t * a->D;
        double sum = 0.0, squares = 0.0;
        for (int i = 0; i < a->D; i++)
            sum += get(a->x, row + i, a->act);
        float mean = (float)(sum / a->D);
        for (int i = 0; i < a->D; i++) {
            double d = get(a->x, row + i, a->act) - mean;
            squares += d * d;
        }
        float r = 1.0f / sqrtf((float)(squares / a->D) + a->eps);
        for (int i = 0; i < a->D; i++) {
            float y = (get(a->x, row + i, a->act) - mean) * r * a->w[i] + a->b[i];
            if (a->act == TD_F32)
                ((float *)a->y)[row + i] = y;
            else
                ((td_bf16 *)a->y)[row + i] = td_f32_to_bf16(y);
        }
    }
    return TD_OK;
}
