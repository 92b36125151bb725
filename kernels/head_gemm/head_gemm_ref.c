#include "kernels/head_gemm/head_gemm.h"

#include "kernels/numbers.h"

static float get(const void *x, int64_t i, td_dtype act)
{
    return act == TD_F32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

td_status td_head_gemm_ref(const td_head_gemm_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_head_gemm_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t n = 0; n < a->N; n++) {
                float sum = 0;
                for (int64_t k = 0; k < a->K; k++)
                    sum += get(a->x, t * a->x_row + h * a->x_head + k, a->act) *
                           get(a->w, (h * a->N + n) * a->K + k, a->act);
                const int64_t at = t * a->y_row + h * a->y_head + n;
                if (a->act == TD_F32)
                    ((float *)a->y)[at] = sum;
                else
                    ((td_bf16 *)a->y)[at] = td_f32_to_bf16(sum);
            }
    return TD_OK;
}
