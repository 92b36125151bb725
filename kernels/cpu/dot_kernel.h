/* dot_kernel.h - what dot.c needs of each instruction set; between kernels/cpu/dot*.c only. */
#ifndef TD_KERNELS_CPU_DOT_KERNEL_H
#define TD_KERNELS_CPU_DOT_KERNEL_H
#include "kernels/cpu/isa.h"
#include "kernels/shapes.h"

#define TD_DOT_LANES 16
/* e4m3 codes are widened to their value times 2^-8 (their bits as an f16, shifted into place). */
#define TD_DOT_E4M3_UNIT 0x1p8f

/* One chunk for m rows of a and n rows of b: out[i][j] += sum over k < K of a[i][k] * b[j][k].
 * Rows of a are zero from K up to the next multiple of 16. */
typedef struct {
    const float *a;
    const void *b; /* [n, ldb] of the kernel's dtype */
    float *out;
    int64_t lda, ldb, out_stride; /* elements */
    int n, K;
} td_dot_chunk;

typedef struct {
    int mr; /* rows of a that `run` takes at most */
    /* Up to so many rows of a, b (of this dtype) is read as it is stored; for more it is widened
     * once, in scratch. All 0: `run` takes f32 only. */
    int direct_m[3];
    void (*run)(td_dtype dtype, int m, const td_dot_chunk *c);
    /* dst[k] = src[k] as f32 * scale, k < n; zeros up to the next multiple of 16. */
    void (*widen)(td_dtype dtype, const void *src, int n, float scale, float *dst);
} td_dot_kernel;

extern const td_dot_kernel td_dot_portable;
#if TD_X86
extern const td_dot_kernel td_dot_avx2, td_dot_avx512;
#endif
#endif
