#include "kernels/numbers.h"
#include "kernels/rmsnorm/rmsnorm.h"

static float get(const void *row, int64_t i, td_dtype act)
{
    return act == TD_F32 ? ((const float *)row)[i] : td_bf16_to_f32(((const td_bf16 *)row)[i]);
}

/* The value as it stands in memory afterwards. */
static float put(void *row, int64_t i, td_dtype act, float v)
{
    if (act == TD_F32)
        return ((float *)row)[i] = v;
    return td_bf16_to_f32(((td_bf16 *)row)[i] = td_f32_to_bf16(v));
}

static void quantise(const td_rmsnorm_args *a, int t)
{
    const td_bf16 *y = (const td_bf16 *)a->y + t * a->y_stride;
    for (int g = 0; g < td_ceil_div(a->D, TD_QUANT_GROUP); g++) {
        int begin = g * TD_QUANT_GROUP;
        int end = begin + TD_QUANT_GROUP < a->D ? begin + TD_QUANT_GROUP : a->D;
        float amax = 0.0f;
        for (int i = begin; i < end; i++)
            amax = fmaxf(amax, fabsf(td_bf16_to_f32(y[i])));
        float scale = td_quant_scale(amax, a->ue8m0);
        a->qs[(int64_t)t * td_ceil_div(a->D, TD_QUANT_GROUP) + g] = scale;
        for (int i = begin; i < end; i++)
            a->q[(int64_t)t * a->D + i] = td_quant_code(td_bf16_to_f32(y[i]), scale);
    }
}

td_status td_rmsnorm_ref(const td_rmsnorm_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_rmsnorm_valid(a))
        return TD_BAD_SHAPE;
    const size_t es = td_dtype_bytes(a->act);
    for (int t = 0; t < a->T; t++) {
        const unsigned char *x = (const unsigned char *)a->x + (size_t)t * a->x_stride * es;
        const unsigned char *res =
            a->res == NULL ? NULL : (const unsigned char *)a->res + (size_t)t * a->D * es;
        unsigned char *y = (unsigned char *)a->y + (size_t)t * a->y_stride * es;
        double sum = 0.0;
        for (int i = 0; i < a->D; i++) {
            float z = get(x, i, a->act) + (res == NULL ? 0.0f : get(res, i, a->act));
            sum += (double)z * z;
        }
        float r = 1.0f / sqrtf((float)(sum / a->D) + a->eps);
        for (int i = 0; i < a->D; i++) {
            float z = get(x, i, a->act) + (res == NULL ? 0.0f : get(res, i, a->act));
            put(y, i, a->act, a->w[i] * (z * r));
            if (a->res_out != NULL)
                put((unsigned char *)a->res_out + (size_t)t * a->D * es, i, a->act, z);
        }
        if (a->q != NULL)
            quantise(a, t);
    }
    return TD_OK;
}
