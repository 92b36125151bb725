/* Plain loops that the compiler vectorises for each instruction set. */
#include "kernels/cpu/convert.h"

#include <string.h>

#include "kernels/cpu/isa.h"
#include "kernels/numbers.h"

/* name(..) picks the function compiled for isa. */
#if TD_X86
#define VARIANTS(name, params, args)                                                               \
    TD_AVX512 static void name##_avx512 params                                                     \
    {                                                                                              \
        name##_body args;                                                                          \
    }                                                                                              \
    TD_AVX2 static void name##_avx2 params                                                         \
    {                                                                                              \
        name##_body args;                                                                          \
    }
#define PICK(isa, name, args)                                                                      \
    ((isa) == TD_ISA_AVX512 ? name##_avx512 args                                                   \
     : (isa) == TD_ISA_AVX2 ? name##_avx2 args                                                     \
                            : name##_body args)
#else
#define VARIANTS(name, params, args)
#define PICK(isa, name, args) ((void)(isa), name##_body args)
#endif

TD_BODY void narrow_body(const float *restrict x, int64_t n, td_bf16 *restrict y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = td_f32_to_bf16(x[i]);
}
VARIANTS(narrow, (const float *x, int64_t n, td_bf16 *y), (x, n, y))

TD_BODY void widen_body(const td_bf16 *restrict x, int64_t n, float *restrict y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = td_bf16_to_f32(x[i]);
}
VARIANTS(widen, (const td_bf16 *x, int64_t n, float *y), (x, n, y))

TD_BODY void add_body(const float *restrict x, int64_t n, float *restrict y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}
VARIANTS(add, (const float *x, int64_t n, float *y), (x, n, y))

TD_BODY void add_scaled_body(float w, const float *restrict x, int64_t n, float *restrict y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += w * x[i];
}
VARIANTS(add_scaled, (float w, const float *x, int64_t n, float *y), (w, x, n, y))

void td_cpu_narrow(td_isa isa, td_dtype dtype, const float *x, int64_t n, void *y)
{
    if (dtype == TD_F32)
        memcpy(y, x, (size_t)n * sizeof(*x));
    else
        PICK(isa, narrow, (x, n, y));
}

void td_cpu_widen(td_isa isa, td_dtype dtype, const void *x, int64_t n, float *y)
{
    if (dtype == TD_F32)
        memcpy(y, x, (size_t)n * sizeof(*y));
    else
        PICK(isa, widen, (x, n, y));
}

void td_cpu_add(td_isa isa, const float *x, int64_t n, float *y)
{
    PICK(isa, add, (x, n, y));
}

void td_cpu_add_scaled(td_isa isa, float w, const float *x, int64_t n, float *y)
{
    PICK(isa, add_scaled, (w, x, n, y));
}
