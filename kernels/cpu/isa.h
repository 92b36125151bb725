/* isa.h - functions compiled for an instruction set that is chosen at run time (td_cpu_isa). */
#ifndef TD_KERNELS_CPU_ISA_H
#define TD_KERNELS_CPU_ISA_H

#if defined(__x86_64__)
#define TD_X86 1
#define TD_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TD_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#else
#define TD_X86 0
#endif

/* A body that is compiled into each of its callers, with the caller's instruction set. */
#define TD_BODY static inline __attribute__((always_inline))
#endif
