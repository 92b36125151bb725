/* numbers.h - the number formats, scalar (model-spec 0.3). Both the reference and the portable CPU
 * paths use these. */
#ifndef TD_KERNELS_NUMBERS_H
#define TD_KERNELS_NUMBERS_H
#include "kernels/shapes.h"

#include <math.h>
#include <string.h>

TD_FN float td_bf16_to_f32(td_bf16 b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even; NaN stays a (quiet) NaN. */
TD_FN td_bf16 td_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (td_bf16)((u >> 16) | 0x40);
    return (td_bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

TD_FN float td_e4m3_to_f32(uint8_t b)
{
    uint32_t e = (b >> 3) & 15, m = b & 7, u = (e + 120) << 23 | m << 20;
    float v;
    memcpy(&v, &u, 4);
    if (e == 0)
        v = (float)m * 0x1p-9f;
    if ((b & 0x7f) == 0x7f)
        v = NAN;
    return (b & 0x80) ? -v : v;
}

/* Round to nearest even, saturating at 448 (callers clamp first anyway); NaN gives 0x7f whatever
 * its sign, which differs between machines. */
TD_FN uint8_t td_f32_to_e4m3(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint8_t sign = (uint8_t)((u >> 24) & 0x80);
    float a = fabsf(f);
    if (isnan(f))
        return 0x7f;
    if (a >= 448.0f)
        return (uint8_t)(sign | 0x7e);
    if (a < 0x1p-6f) /* subnormals: multiples of 2^-9 */
        return (uint8_t)(sign | (uint8_t)rintf(a * 512.0f));
    memcpy(&u, &a, 4);
    u += 0x7ffffu + ((u >> 20) & 1); /* keep 3 mantissa bits */
    int e = (int)(u >> 23) - 127 + 7;
    uint8_t code = (uint8_t)((e << 3) | ((u >> 20) & 7));
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}

/* e^x within 1 ulp, in plain multiplications and additions: every vector form of it gives the same
 * bits. Results below 2^-126 are 0. */
TD_FN float td_expf(float x)
{
    if (!(x >= -87.33654f))
        return isnan(x) ? x : 0.0f;
    if (x > 88.72283f)
        return INFINITY;
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) - n * -2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float y = ((r * r) * p + r) + 1.0f;
    uint32_t u;
    memcpy(&u, &y, 4);
    u += (uint32_t)(int32_t)n << 23;
    memcpy(&y, &u, 4);
    return y;
}

/* P2(s): the smallest power of two >= s, for s > 0. */
TD_FN float td_pow2_ceil(float s)
{
    uint32_t u;
    memcpy(&u, &s, 4);
    uint32_t e = ((u >> 23) & 255) + ((u & 0x7fffffu) != 0);
    u = e << 23;
    memcpy(&s, &u, 4);
    return s;
}

/* The scale of AQ_g for a group whose largest magnitude is amax. */
TD_FN float td_quant_scale(float amax, int ue8m0)
{
    float s = fmaxf(amax, 1e-4f) * (1.0f / 448.0f);
    return ue8m0 ? td_pow2_ceil(s) : s;
}

TD_FN uint8_t td_quant_code(float x, float scale)
{
    float v = x / scale;
    return td_f32_to_e4m3(v > 448.0f ? 448.0f : v < -448.0f ? -448.0f : v);
}

/* Walsh-Hadamard transform of 128 numbers in natural order: strides 1, 2, .., 64. */
TD_FN void td_hadamard128(float *x)
{
    for (int stride = 1; stride < 128; stride *= 2)
        for (int i = 0; i < 128; i++)
            if ((i & stride) == 0) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
}
#endif
