#include "kernels/moe_experts/moe_experts.h"

#include <stdlib.h>

#include "kernels/numbers.h"

static float get(const void *x, int64_t i, td_dtype dtype)
{
    return dtype == TD_F32    ? ((const float *)x)[i]
           : dtype == TD_BF16 ? td_bf16_to_f32(((const td_bf16 *)x)[i])
                              : td_e4m3_to_f32(((const uint8_t *)x)[i]);
}

static float act(const td_moe_experts_args *a, float v)
{
    return a->dtype == TD_F32 ? v : td_bf16_to_f32(td_f32_to_bf16(v));
}

/* A vector of x, or of one row of an expert's matrix, with its scales; e4m3 only. */
typedef struct {
    const void *v;
    int64_t first; /* element */
    const float *scales;
} vec;

/* gemm.h's sum: blocks of 128, each scaled, in ascending order. */
static float dot(vec x, vec w, int K, td_dtype dtype)
{
    float sum = 0;
    for (int kb = 0; kb * TD_QUANT_GROUP < K; kb++) {
        float block = 0;
        for (int k = kb * TD_QUANT_GROUP; k < K && k < (kb + 1) * TD_QUANT_GROUP; k++)
            block += get(x.v, x.first + k, dtype) * get(w.v, w.first + k, dtype);
        sum += dtype == TD_E4M3 ? block * x.scales[kb] * w.scales[kb] : block;
    }
    return sum;
}

/* Row n of expert e (counted from expert_lo) of a matrix [E_local, N, K]. */
static vec row_of(const void *matrix, const float *scales, int e, int n, int N, int K)
{
    const int64_t n_kb = td_ceil_div(K, TD_QUANT_GROUP), n_nb = td_ceil_div(N, TD_QUANT_GROUP);
    vec r = {matrix, ((int64_t)e * N + n) * K, NULL};
    if (scales != NULL)
        r.scales = scales + (e * n_nb + n / TD_QUANT_GROUP) * n_kb;
    return r;
}

static void quantise(const float *h, int n, int ue8m0, uint8_t *q, float *qs)
{
    for (int g = 0; g * TD_QUANT_GROUP < n; g++) {
        const int begin = g * TD_QUANT_GROUP;
        const int end = n - begin < TD_QUANT_GROUP ? n : begin + TD_QUANT_GROUP;
        float amax = 0;
        for (int i = begin; i < end; i++)
            amax = fmaxf(amax, fabsf(h[i]));
        qs[g] = td_quant_scale(amax, ue8m0);
        for (int i = begin; i < end; i++)
            q[i] = td_quant_code(h[i], qs[g]);
    }
}

/* y += weight * f_e(x[t]). h, q, qs: room for a row of the product. */
static void add_expert(const td_moe_experts_args *a, int64_t t, int e, float weight, float *h,
                       void *q, float *qs)
{
    const td_dtype dtype = a->dtype;
    const vec x = {a->x, t * a->D,
                   dtype == TD_E4M3 ? a->xs + t * td_ceil_div(a->D, TD_QUANT_GROUP) : NULL};
    for (int i = 0; i < a->I; i++) {
        float g = act(a, dot(x, row_of(a->gate, a->gate_s, e, i, a->I, a->D), a->D, dtype));
        float u = act(a, dot(x, row_of(a->up, a->up_s, e, i, a->I, a->D), a->D, dtype));
        h[i] = act(a, g / (1.0f + td_expf(-g)) * u);
    }
    if (dtype == TD_E4M3)
        quantise(h, a->I, a->ue8m0, q, qs);
    for (int i = 0; dtype == TD_BF16 && i < a->I; i++)
        ((td_bf16 *)q)[i] = td_f32_to_bf16(h[i]);
    const vec p = {dtype == TD_F32 ? h : q, 0, qs};
    for (int d = 0; d < a->D; d++)
        a->y[t * a->D + d] +=
            weight * dot(p, row_of(a->down, a->down_s, e, d, a->D, a->I), a->I, dtype);
}

td_status td_moe_experts_ref(const td_moe_experts_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_moe_experts_valid(a))
        return TD_BAD_SHAPE;
    float *h = calloc((size_t)a->I + 1, sizeof(*h)), *qs = calloc((size_t)a->I + 1, sizeof(*qs));
    void *q = calloc((size_t)a->I + 1, sizeof(td_bf16));
    for (int64_t t = 0; t < a->T; t++) {
        for (int d = 0; d < a->D; d++)
            a->y[t * a->D + d] = 0;
        for (int k = 0; k < a->K && a->I > 0; k++) {
            int32_t e = a->ids[t * a->K + k];
            if (e >= a->expert_lo && e < a->expert_hi)
                add_expert(a, t, e - a->expert_lo, a->weights[t * a->K + k], h, q, qs);
        }
    }
    free(h);
    free(qs);
    free(q);
    return TD_OK;
}
