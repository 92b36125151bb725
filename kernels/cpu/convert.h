/* convert.h - rows of f32 results on their way out, and rows of activations on their way in. Bits
 * are those of numbers.h on every instruction set. */
#ifndef TD_KERNELS_CPU_CONVERT_H
#define TD_KERNELS_CPU_CONVERT_H
#include "common/device/cpu.h"
#include "kernels/shapes.h"

/* y[i] = x[i] as dtype (f32 or bf16). */
void td_cpu_narrow(td_isa isa, td_dtype dtype, const float *x, int64_t n, void *y);
/* y[i] = x[i] as f32; dtype f32 or bf16. */
void td_cpu_widen(td_isa isa, td_dtype dtype, const void *x, int64_t n, float *y);
/* y[i] += x[i]; y[i] += w * x[i] (rounded twice: not fused). */
void td_cpu_add(td_isa isa, const float *x, int64_t n, float *y);
void td_cpu_add_scaled(td_isa isa, float w, const float *x, int64_t n, float *y);
#endif
