/* lanes.h - sixteen f32 side by side, the same sixteen on every instruction set: one AVX-512
 * register, two AVX2 registers, or an array. All forms give the same bits for the same calls (the
 * portable vfma only where the machine has a fused multiply-add), so a kernel written over them is
 * reduced in one order everywhere. Inside a body (each_isa.h) L(name) is this set's form of name.
 */
#ifndef TD_KERNELS_CPU_LANES_H
#define TD_KERNELS_CPU_LANES_H
#include "kernels/cpu/isa.h"
#include "kernels/numbers.h"

#define LANES 16

#define LANES_JOIN2(name, isa) name##_##isa
#define LANES_JOIN(name, isa) LANES_JOIN2(name, isa)
#define L(name) LANES_JOIN(name, LANES_ISA)

/* The one entry of a kernel's three forms that the stream's instruction set asks for. */
#if TD_X86
#define LANES_PICK(isa, name)                                                                      \
    ((isa) == TD_ISA_AVX512 ? name##_avx512 : (isa) == TD_ISA_AVX2 ? name##_avx2 : name##_portable)
#else
#define LANES_PICK(isa, name) name##_portable
#endif

/* Every form has the types and functions below. A predicate gives one bit per lane.
 *   v16  16 f32      k16  16 int32 sort keys
 *   vzero vset vload vstore vloadn vstoren (n < 16 lanes, others 0 / untouched)
 *   vload_bf16 vstore_bf16 vload_e4m3 vstore_e4m3 (clamps to +-448; NaN gives 0x7f)
 *   nan_e4m3: is there a NaN among 64 codes; vload_e4m3_256th: value * 2^-8, no code a NaN
 *   vadd vsub vmul vdiv vfma(a,b,c)=a*b+c  vmax (the second operand where one is NaN) vabs
 *   vselect_lt(a,b,x,y) = a < b ? x : y    vround (to integers, nearest even)
 *   vscale2(x, n) = x * 2^n by exponent arithmetic   vround_bf16
 *   vsum (l + l+8, + l+4, + l+2, + l+1)   vhmax
 *   vdup_even vdup_odd vswap1 vswap2 vswap4 vswap8 (lane l gets l^n)   vsplit(a, b, &even, &odd)
 *   vtranspose(v[16])   btranspose(src, stride, n, dst[256]): 16 x 16 bytes, rows from n on are 0
 *   d8: 8 f64: dset, dwiden (8 f32), dload, dstore, dfma (equal bits where a and b were f32)
 *   vkey: ascending int32 order of f32, -0 as 0, NaN as -inf   kload kstore kset kgt keq */
#include "kernels/cpu/lanes_portable.h"
#if TD_X86
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/lanes_avx512.h"
#endif
#endif
