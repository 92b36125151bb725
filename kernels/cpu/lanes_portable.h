/* lanes_portable.h - lanes.h in vectors of four that any machine's compiler can do without. */
#ifndef TD_KERNELS_CPU_LANES_PORTABLE_H
#define TD_KERNELS_CPU_LANES_PORTABLE_H
#include "kernels/cpu/isa.h"
#include "kernels/numbers.h"

#define LANES_C TD_BODY
#define EACH_LANE for (int l = 0; l < 16; l++)
#define EACH_FOUR for (int j = 0; j < 4; j++)

/* Vectors of four, which GCC and Clang know on every machine; what they cannot do goes by way of
 * an array. */
typedef float lanes_f4 __attribute__((vector_size(16)));
typedef int32_t lanes_i4 __attribute__((vector_size(16)));
typedef uint32_t lanes_u4 __attribute__((vector_size(16)));

typedef struct {
    lanes_f4 q[4];
} v16_portable;

typedef struct {
    lanes_i4 q[4];
} k16_portable;

typedef struct {
    float f[16];
} lanes_array;

LANES_C lanes_array lanes_get(v16_portable a)
{
    lanes_array r;
    memcpy(&r, &a, sizeof(r));
    return r;
}

LANES_C v16_portable lanes_put(lanes_array a)
{
    v16_portable r;
    memcpy(&r, &a, sizeof(r));
    return r;
}

/* Lanes of x where the mask is all ones, of y where it is zero. */
LANES_C lanes_f4 lanes_choose(lanes_i4 mask, lanes_f4 x, lanes_f4 y)
{
    return (lanes_f4)((mask & (lanes_i4)x) | (~mask & (lanes_i4)y));
}

LANES_C v16_portable vset_portable(float x)
{
    v16_portable r;
    EACH_FOUR r.q[j] = (lanes_f4){x, x, x, x};
    return r;
}

LANES_C v16_portable vzero_portable(void)
{
    return vset_portable(0.0f);
}

LANES_C v16_portable vload_portable(const float *p)
{
    v16_portable r;
    EACH_FOUR memcpy(&r.q[j], p + 4 * j, 16);
    return r;
}

LANES_C v16_portable vloadn_portable(const float *p, int n)
{
    v16_portable r = vzero_portable();
    memcpy(&r, p, (size_t)n * 4);
    return r;
}

LANES_C void vstore_portable(float *p, v16_portable a)
{
    EACH_FOUR memcpy(p + 4 * j, &a.q[j], 16);
}

LANES_C void vstoren_portable(float *p, v16_portable a, int n)
{
    memcpy(p, &a, (size_t)n * 4);
}

LANES_C v16_portable vload_bf16_portable(const td_bf16 *p)
{
    lanes_array r;
    EACH_LANE r.f[l] = td_bf16_to_f32(p[l]);
    return lanes_put(r);
}

LANES_C void vstore_bf16_portable(td_bf16 *p, v16_portable a)
{
    lanes_array x = lanes_get(a);
    EACH_LANE p[l] = td_f32_to_bf16(x.f[l]);
}

LANES_C v16_portable vload_e4m3_portable(const uint8_t *p)
{
    lanes_array r;
    EACH_LANE r.f[l] = td_e4m3_to_f32(p[l]);
    return lanes_put(r);
}

LANES_C v16_portable vload_e4m3_256th_portable(const uint8_t *p)
{
    v16_portable r = vload_e4m3_portable(p);
    EACH_FOUR r.q[j] *= 0x1p-8f;
    return r;
}

LANES_C int nan_e4m3_portable(const uint8_t *p)
{
    int found = 0;
    for (int i = 0; i < 64; i++)
        found |= (p[i] & 0x7f) == 0x7f;
    return found;
}

LANES_C void vstore_e4m3_portable(uint8_t *p, v16_portable a)
{
    lanes_array x = lanes_get(a);
    EACH_LANE p[l] = td_quant_code(x.f[l], 1.0f);
}

LANES_C v16_portable vadd_portable(v16_portable a, v16_portable b)
{
    EACH_FOUR a.q[j] = a.q[j] + b.q[j];
    return a;
}

LANES_C v16_portable vsub_portable(v16_portable a, v16_portable b)
{
    EACH_FOUR a.q[j] = a.q[j] - b.q[j];
    return a;
}

LANES_C v16_portable vmul_portable(v16_portable a, v16_portable b)
{
    EACH_FOUR a.q[j] = a.q[j] * b.q[j];
    return a;
}

LANES_C v16_portable vdiv_portable(v16_portable a, v16_portable b)
{
    EACH_FOUR a.q[j] = a.q[j] / b.q[j];
    return a;
}

LANES_C v16_portable vfma_portable(v16_portable a, v16_portable b, v16_portable c)
{
#ifdef __FP_FAST_FMAF
    lanes_array x = lanes_get(a), y = lanes_get(b), z = lanes_get(c);
    EACH_LANE z.f[l] = fmaf(x.f[l], y.f[l], z.f[l]);
    return lanes_put(z);
#else
    EACH_FOUR c.q[j] = c.q[j] + a.q[j] * b.q[j];
    return c;
#endif
}

LANES_C v16_portable vmax_portable(v16_portable a, v16_portable b)
{
    EACH_FOUR a.q[j] = lanes_choose(a.q[j] > b.q[j], a.q[j], b.q[j]);
    return a;
}

LANES_C v16_portable vabs_portable(v16_portable a)
{
    const lanes_i4 mask = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};
    EACH_FOUR a.q[j] = (lanes_f4)((lanes_i4)a.q[j] & mask);
    return a;
}

LANES_C v16_portable vselect_lt_portable(v16_portable a, v16_portable b, v16_portable x,
                                         v16_portable y)
{
    EACH_FOUR y.q[j] = lanes_choose(a.q[j] < b.q[j], x.q[j], y.q[j]);
    return y;
}

LANES_C v16_portable vround_portable(v16_portable a)
{
    const lanes_f4 big = {0x1p23f, 0x1p23f, 0x1p23f, 0x1p23f};
    const v16_portable magnitude = vabs_portable(a);
    EACH_FOUR
    {
        lanes_i4 sign = (lanes_i4)a.q[j] & INT32_MIN;
        lanes_f4 r = (magnitude.q[j] + big) - big;
        r = (lanes_f4)((lanes_i4)r | sign);
        a.q[j] = lanes_choose(magnitude.q[j] < big, r, a.q[j]);
    }
    return a;
}

LANES_C v16_portable vscale2_portable(v16_portable a, v16_portable n)
{
    const lanes_f4 most = {256.0f, 256.0f, 256.0f, 256.0f};
    const v16_portable magnitude = vabs_portable(n);
    EACH_FOUR
    {
        lanes_f4 e = lanes_choose(magnitude.q[j] < most, n.q[j], (lanes_f4){0});
        lanes_i4 up = __builtin_convertvector(e * 8388608.0f, lanes_i4);
        a.q[j] = (lanes_f4)((lanes_u4)a.q[j] + (lanes_u4)up);
    }
    return a;
}

LANES_C v16_portable vround_bf16_portable(v16_portable a)
{
    lanes_array x = lanes_get(a);
    EACH_LANE x.f[l] = td_bf16_to_f32(td_f32_to_bf16(x.f[l]));
    return lanes_put(x);
}

LANES_C float vsum_portable(v16_portable a)
{
    lanes_f4 s = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

LANES_C float vhmax_portable(v16_portable a)
{
    lanes_array x = lanes_get(a);
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            x.f[l] = x.f[l] > x.f[l + half] ? x.f[l] : x.f[l + half];
    return x.f[0];
}

LANES_C v16_portable vdup_even_portable(v16_portable a)
{
    EACH_FOUR a.q[j] = (lanes_f4){a.q[j][0], a.q[j][0], a.q[j][2], a.q[j][2]};
    return a;
}

LANES_C v16_portable vdup_odd_portable(v16_portable a)
{
    EACH_FOUR a.q[j] = (lanes_f4){a.q[j][1], a.q[j][1], a.q[j][3], a.q[j][3]};
    return a;
}

LANES_C v16_portable vswap1_portable(v16_portable a)
{
    EACH_FOUR a.q[j] = (lanes_f4){a.q[j][1], a.q[j][0], a.q[j][3], a.q[j][2]};
    return a;
}

LANES_C v16_portable vswap2_portable(v16_portable a)
{
    EACH_FOUR a.q[j] = (lanes_f4){a.q[j][2], a.q[j][3], a.q[j][0], a.q[j][1]};
    return a;
}

LANES_C v16_portable vswap4_portable(v16_portable a)
{
    return (v16_portable){{a.q[1], a.q[0], a.q[3], a.q[2]}};
}

LANES_C v16_portable vswap8_portable(v16_portable a)
{
    return (v16_portable){{a.q[2], a.q[3], a.q[0], a.q[1]}};
}

LANES_C void vsplit_portable(v16_portable a, v16_portable b, v16_portable *even, v16_portable *odd)
{
    lanes_array x = lanes_get(a), y = lanes_get(b), e, o;
    for (int l = 0; l < 8; l++) {
        e.f[l] = x.f[2 * l];
        o.f[l] = x.f[2 * l + 1];
        e.f[8 + l] = y.f[2 * l];
        o.f[8 + l] = y.f[2 * l + 1];
    }
    *even = lanes_put(e);
    *odd = lanes_put(o);
}

LANES_C void vtranspose_portable(v16_portable *a)
{
    float x[16][16];
    for (int i = 0; i < 16; i++)
        vstore_portable(x[i], a[i]);
    for (int i = 0; i < 16; i++) {
        lanes_array r;
        EACH_LANE r.f[l] = x[l][i];
        a[i] = lanes_put(r);
    }
}

LANES_C k16_portable vkey_portable(v16_portable a)
{
    k16_portable r;
    EACH_FOUR
    {
        const lanes_f4 low = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, zero = {0};
        lanes_i4 i = (lanes_i4)(lanes_choose(a.q[j] > low, a.q[j], low) + zero);
        r.q[j] = i ^ ((i < 0) & INT32_MAX);
    }
    return r;
}

LANES_C k16_portable kset_portable(int32_t x)
{
    k16_portable r;
    EACH_FOUR r.q[j] = (lanes_i4){x, x, x, x};
    return r;
}

LANES_C k16_portable kload_portable(const int32_t *p)
{
    k16_portable r;
    memcpy(&r, p, sizeof(r));
    return r;
}

LANES_C void kstore_portable(int32_t *p, k16_portable a)
{
    memcpy(p, &a, sizeof(a));
}

LANES_C uint32_t kgt_portable(k16_portable a, k16_portable b)
{
    uint32_t bits = 0;
    EACH_LANE bits |= (uint32_t)(a.q[l / 4][l % 4] > b.q[l / 4][l % 4]) << l;
    return bits;
}

LANES_C uint32_t keq_portable(k16_portable a, k16_portable b)
{
    uint32_t bits = 0;
    EACH_LANE bits |= (uint32_t)(a.q[l / 4][l % 4] == b.q[l / 4][l % 4]) << l;
    return bits;
}

LANES_C void btranspose_portable(const uint8_t *src, int64_t stride, int n, uint8_t *dst)
{
    for (int i = 0; i < 16; i++)
        EACH_LANE dst[16 * l + i] = i < n ? src[i * stride + l] : 0;
}

typedef double lanes_d2 __attribute__((vector_size(16)));

typedef struct {
    lanes_d2 q[4];
} d8_portable;

LANES_C d8_portable dset_portable(double x)
{
    d8_portable r;
    EACH_FOUR r.q[j] = (lanes_d2){x, x};
    return r;
}

LANES_C d8_portable dwiden_portable(const float *p)
{
    d8_portable r;
    EACH_FOUR r.q[j] = (lanes_d2){(double)p[2 * j], (double)p[2 * j + 1]};
    return r;
}

LANES_C d8_portable dload_portable(const double *p)
{
    d8_portable r;
    memcpy(&r, p, sizeof(r));
    return r;
}

LANES_C void dstore_portable(double *p, d8_portable a)
{
    memcpy(p, &a, sizeof(a));
}

/* Of widened f32 the product is exact, so this rounds once, as the fused forms do. */
LANES_C d8_portable dfma_portable(d8_portable a, d8_portable b, d8_portable c)
{
    d8_portable r;
    EACH_FOUR r.q[j] = a.q[j] * b.q[j] + c.q[j];
    return r;
}
#endif
