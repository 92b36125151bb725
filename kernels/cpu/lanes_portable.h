/* lanes_portable.h - lanes.h in plain C: loops of sixteen that a compiler may vectorise. */
#ifndef TD_KERNELS_CPU_LANES_PORTABLE_H
#define TD_KERNELS_CPU_LANES_PORTABLE_H
#include "kernels/cpu/isa.h"
#include "kernels/numbers.h"

#define LANES_C TD_BODY
#define EACH_LANE for (int l = 0; l < 16; l++)

typedef struct {
    float f[16];
} v16_portable;

typedef struct {
    int32_t i[16];
} k16_portable;

LANES_C v16_portable vset_portable(float x)
{
    v16_portable r;
    EACH_LANE r.f[l] = x;
    return r;
}

LANES_C v16_portable vzero_portable(void)
{
    return vset_portable(0.0f);
}

LANES_C v16_portable vload_portable(const float *p)
{
    v16_portable r;
    memcpy(r.f, p, sizeof(r.f));
    return r;
}

LANES_C v16_portable vloadn_portable(const float *p, int n)
{
    v16_portable r = vzero_portable();
    memcpy(r.f, p, (size_t)n * 4);
    return r;
}

LANES_C void vstore_portable(float *p, v16_portable a)
{
    memcpy(p, a.f, sizeof(a.f));
}

LANES_C void vstoren_portable(float *p, v16_portable a, int n)
{
    memcpy(p, a.f, (size_t)n * 4);
}

LANES_C v16_portable vload_bf16_portable(const td_bf16 *p)
{
    v16_portable r;
    EACH_LANE r.f[l] = td_bf16_to_f32(p[l]);
    return r;
}

LANES_C void vstore_bf16_portable(td_bf16 *p, v16_portable a)
{
    EACH_LANE p[l] = td_f32_to_bf16(a.f[l]);
}

LANES_C v16_portable vload_e4m3_portable(const uint8_t *p)
{
    v16_portable r;
    EACH_LANE r.f[l] = td_e4m3_to_f32(p[l]);
    return r;
}

LANES_C void vstore_e4m3_portable(uint8_t *p, v16_portable a)
{
    EACH_LANE p[l] = td_quant_code(a.f[l], 1.0f);
}

LANES_C v16_portable vadd_portable(v16_portable a, v16_portable b)
{
    EACH_LANE a.f[l] += b.f[l];
    return a;
}

LANES_C v16_portable vsub_portable(v16_portable a, v16_portable b)
{
    EACH_LANE a.f[l] -= b.f[l];
    return a;
}

LANES_C v16_portable vmul_portable(v16_portable a, v16_portable b)
{
    EACH_LANE a.f[l] *= b.f[l];
    return a;
}

LANES_C v16_portable vdiv_portable(v16_portable a, v16_portable b)
{
    EACH_LANE a.f[l] /= b.f[l];
    return a;
}

LANES_C v16_portable vfma_portable(v16_portable a, v16_portable b, v16_portable c)
{
#ifdef __FP_FAST_FMAF
    EACH_LANE c.f[l] = fmaf(a.f[l], b.f[l], c.f[l]);
#else
    EACH_LANE c.f[l] += a.f[l] * b.f[l];
#endif
    return c;
}

LANES_C v16_portable vmax_portable(v16_portable a, v16_portable b)
{
    EACH_LANE a.f[l] = a.f[l] > b.f[l] ? a.f[l] : b.f[l];
    return a;
}

LANES_C v16_portable vmin_portable(v16_portable a, v16_portable b)
{
    EACH_LANE a.f[l] = a.f[l] < b.f[l] ? a.f[l] : b.f[l];
    return a;
}

LANES_C v16_portable vabs_portable(v16_portable a)
{
    EACH_LANE a.f[l] = fabsf(a.f[l]);
    return a;
}

LANES_C v16_portable vselect_lt_portable(v16_portable a, v16_portable b, v16_portable x,
                                         v16_portable y)
{
    EACH_LANE y.f[l] = a.f[l] < b.f[l] ? x.f[l] : y.f[l];
    return y;
}

LANES_C v16_portable vround_portable(v16_portable a)
{
    EACH_LANE a.f[l] = rintf(a.f[l]);
    return a;
}

LANES_C v16_portable vscale2_portable(v16_portable a, v16_portable n)
{
    EACH_LANE
    {
        uint32_t u;
        memcpy(&u, &a.f[l], 4);
        u += n.f[l] >= -256.0f && n.f[l] <= 256.0f ? (uint32_t)(int32_t)n.f[l] << 23 : 0;
        memcpy(&a.f[l], &u, 4);
    }
    return a;
}

LANES_C v16_portable vround_bf16_portable(v16_portable a)
{
    EACH_LANE a.f[l] = td_bf16_to_f32(td_f32_to_bf16(a.f[l]));
    return a;
}

LANES_C float vsum_portable(v16_portable a)
{
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            a.f[l] += a.f[l + half];
    return a.f[0];
}

LANES_C float vhmax_portable(v16_portable a)
{
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            a.f[l] = a.f[l] > a.f[l + half] ? a.f[l] : a.f[l + half];
    return a.f[0];
}

LANES_C void vsum4_portable(const v16_portable *a, float *out)
{
    for (int i = 0; i < 4; i++)
        out[i] = vsum_portable(a[i]);
}

LANES_C v16_portable vdup_even_portable(v16_portable a)
{
    for (int l = 0; l < 16; l += 2)
        a.f[l + 1] = a.f[l];
    return a;
}

LANES_C v16_portable vdup_odd_portable(v16_portable a)
{
    for (int l = 0; l < 16; l += 2)
        a.f[l] = a.f[l + 1];
    return a;
}

LANES_C v16_portable vswap1_portable(v16_portable a)
{
    v16_portable r;
    EACH_LANE r.f[l] = a.f[l ^ 1];
    return r;
}

LANES_C v16_portable vswap2_portable(v16_portable a)
{
    v16_portable r;
    EACH_LANE r.f[l] = a.f[l ^ 2];
    return r;
}

LANES_C v16_portable vswap4_portable(v16_portable a)
{
    v16_portable r;
    EACH_LANE r.f[l] = a.f[l ^ 4];
    return r;
}

LANES_C v16_portable vswap8_portable(v16_portable a)
{
    v16_portable r;
    EACH_LANE r.f[l] = a.f[l ^ 8];
    return r;
}

LANES_C void vsplit_portable(v16_portable a, v16_portable b, v16_portable *even, v16_portable *odd)
{
    for (int l = 0; l < 8; l++) {
        even->f[l] = a.f[2 * l];
        odd->f[l] = a.f[2 * l + 1];
        even->f[8 + l] = b.f[2 * l];
        odd->f[8 + l] = b.f[2 * l + 1];
    }
}

LANES_C void vtranspose_portable(v16_portable *a)
{
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            float x = a[i].f[j];
            a[i].f[j] = a[j].f[i];
            a[j].f[i] = x;
        }
}

LANES_C k16_portable vkey_portable(v16_portable a)
{
    k16_portable r;
    EACH_LANE
    {
        float x = (a.f[l] > -INFINITY ? a.f[l] : -INFINITY) + 0.0f;
        int32_t i;
        memcpy(&i, &x, 4);
        r.i[l] = i < 0 ? i ^ INT32_MAX : i;
    }
    return r;
}

LANES_C k16_portable kset_portable(int32_t x)
{
    k16_portable r;
    EACH_LANE r.i[l] = x;
    return r;
}

LANES_C k16_portable kload_portable(const int32_t *p)
{
    k16_portable r;
    memcpy(r.i, p, sizeof(r.i));
    return r;
}

LANES_C void kstore_portable(int32_t *p, k16_portable a)
{
    memcpy(p, a.i, sizeof(a.i));
}

LANES_C uint32_t kgt_portable(k16_portable a, k16_portable b)
{
    uint32_t bits = 0;
    EACH_LANE bits |= (uint32_t)(a.i[l] > b.i[l]) << l;
    return bits;
}

LANES_C uint32_t keq_portable(k16_portable a, k16_portable b)
{
    uint32_t bits = 0;
    EACH_LANE bits |= (uint32_t)(a.i[l] == b.i[l]) << l;
    return bits;
}
#endif
