#include "kernels/gemm/gemm.h"

#include "kernels/numbers.h"

static float get(const void *x, int64_t i, td_dtype dtype)
{
    return dtype == TD_F32    ? ((const float *)x)[i]
           : dtype == TD_BF16 ? td_bf16_to_f32(((const td_bf16 *)x)[i])
                              : td_e4m3_to_f32(((const uint8_t *)x)[i]);
}

static float element(const td_gemm_args *a, int m, int n)
{
    const int n_blocks = td_ceil_div(a->K, TD_QUANT_GROUP);
    float sum = 0;
    for (int kb = 0; kb < n_blocks; kb++) {
        float block = 0;
        for (int k = kb * TD_QUANT_GROUP; k < a->K && k < (kb + 1) * TD_QUANT_GROUP; k++)
            block += get(a->x, m * a->x_stride + k, a->dtype) *
                     get(a->w, (int64_t)n * a->K + k, a->dtype);
        if (a->dtype == TD_E4M3)
            block = block * a->xs[(int64_t)m * n_blocks + kb] *
                    a->ws[(int64_t)(n / TD_QUANT_GROUP) * n_blocks + kb];
        sum += block;
    }
    return sum;
}

td_status td_gemm_ref(const td_gemm_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_gemm_valid(a))
        return TD_BAD_SHAPE;
    for (int m = 0; m < a->M; m++)
        for (int n = 0; n < a->N; n++) {
            float v = element(a, m, n);
            int64_t at = m * a->y_stride + n;
            if (a->y_dtype == TD_BF16)
                ((td_bf16 *)a->y)[at] = td_f32_to_bf16(v);
            else if (a->accumulate)
                ((float *)a->y)[at] += v;
            else
                ((float *)a->y)[at] = v;
        }
    return TD_OK;
}
