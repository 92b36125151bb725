/* mma.cuh - tensor-core products of a warp: D[16][8] += A[16][16] B[16][8], f32 sums. With
 * g = lane / 4, q = lane % 4, a register holds two neighbours of k, the lower in the lower half:
 *   a[0]: row g, k 2q..     a[1]: row g + 8, k 2q..   a[2]: row g, k 8 + 2q..   a[3]: row g + 8,
 *   k 8 + 2q..              b[0]: column g, k 2q..    b[1]: column g, k 8 + 2q..
 *   d[0], d[1]: row g, columns 2q and 2q + 1          d[2], d[3]: row g + 8, the same columns
 * A sum over k may take k in any order that A and B share: lane q may load elements 4q..4q + 3 of
 * 16 as one piece and use them as its two pairs. */
#ifndef TD_KERNELS_CUDA_MMA_CUH
#define TD_KERNELS_CUDA_MMA_CUH
#include "kernels/cuda/cuda.cuh"

__device__ inline void td_mma_f16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void td_mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four e4m3 codes (lowest byte first) as two pairs of f16; exact, NaN stays NaN. */
__device__ inline void td_e4m3x4_to_f16(uint32_t codes, uint32_t *lo, uint32_t *hi)
{
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; "
        "cvt.rn.f16x2.e4m3x2 %1, h;}"
        : "=r"(*lo), "=r"(*hi)
        : "r"(codes));
}

/* Two f32 rounded to bf16, `lo` in the lower half; any NaN becomes the quiet one. */
__device__ inline uint32_t td_bf16_pair(float lo, float hi)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    uint32_t pair;
    memcpy(&pair, &v, 4);
    return pair;
}

/* Two f32 rounded to f16, `lo` in the lower half. */
__device__ inline uint32_t td_f16_round_pair(float lo, float hi)
{
    const __half2 v = __floats2half2_rn(lo, hi);
    uint32_t pair;
    memcpy(&pair, &v, 4);
    return pair;
}

/* Two f16 as f32. */
__device__ inline float2 td_f16_pair(uint32_t pair)
{
    __half2 h;
    memcpy(&h, &pair, 4);
    return __half22float2(h);
}

/* Codes AT (0..3) of a and of b as a pair of bf16, times 2^-120 (a scale of 2^120 undoes it): the
 * code's exponent and mantissa stand where bf16 has them, a code without exponent is a bf16 without
 * one. Exact; but NaN becomes 480. */
template <int AT> __device__ inline uint32_t td_e4m3_pair_bf16(uint32_t a, uint32_t b)
{
    uint32_t wide; /* 8: the byte's sign, eight times */
    asm("prmt.b32 %0, %1, %2, %3;"
        : "=r"(wide)
        : "r"(a), "r"(b), "n"(AT | (8 | AT) << 4 | (4 | AT) << 8 | (12 | AT) << 12));
    return wide << 4 & 0x87f087f0u;
}

/* Codes AT of a and of b, the other two bytes are 0. */
template <int AT> __device__ inline uint32_t td_e4m3_pair(uint32_t a, uint32_t b)
{
    return (a >> 8 * AT & 255) | (b >> 8 * AT & 255) << 8;
}

/* Products of two pairs of bf16. */
__device__ inline uint32_t td_bf16_pair_mul(uint32_t x, uint32_t y)
{
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
    return product;
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lane l names row l % 8 of matrix l / 8
 * (16 bytes, aligned). r[m]: of matrix m, row lane / 4, elements 2 (lane % 4) and the next. */
__device__ inline void td_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* The same with each matrix transposed: rows 2 (lane % 4) and the next, column lane / 4. */
__device__ inline void td_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* An 8 x 8 matrix of 16-bit elements that the warp holds (row lane / 4, elements 2 (lane % 4) and
 * the next), transposed. */
__device__ inline uint32_t td_transpose_8x8(uint32_t pair)
{
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}
#endif
