/* lanes_avx512.h - lanes.h as one AVX-512 register. */
#ifndef TD_KERNELS_CPU_LANES_AVX512_H
#define TD_KERNELS_CPU_LANES_AVX512_H
#include "kernels/cpu/isa.h"
#include "kernels/numbers.h"

#include <immintrin.h>

#define LANES_Z TD_BODY TD_AVX512

typedef __m512 v16_avx512;
typedef __m512i k16_avx512;

LANES_Z __m512 vset_avx512(float x)
{
    return _mm512_set1_ps(x);
}

LANES_Z __m512 vzero_avx512(void)
{
    return _mm512_setzero_ps();
}

LANES_Z __m512 vload_avx512(const float *p)
{
    return _mm512_loadu_ps(p);
}

LANES_Z __m512 vloadn_avx512(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}

LANES_Z void vstore_avx512(float *p, __m512 a)
{
    _mm512_storeu_ps(p, a);
}

LANES_Z void vstoren_avx512(float *p, __m512 a, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
}

LANES_Z __m512 vload_bf16_avx512(const td_bf16 *p)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}

/* The upper halves after rounding to nearest even; NaN keeps its upper bits and becomes quiet. */
LANES_Z __m512i bf16_bits_avx512(__m512 a)
{
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
}

LANES_Z void vstore_bf16_avx512(td_bf16 *p, __m512 a)
{
    __m512i u = _mm512_srli_epi32(bf16_bits_avx512(a), 16);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(u));
}

LANES_Z __m512 vround_bf16_avx512(__m512 a)
{
    __m512i u = _mm512_and_si512(bf16_bits_avx512(a), _mm512_set1_epi32((int)0xffff0000));
    return _mm512_castsi512_ps(u);
}

/* By way of f16, whose exponent is wide enough: the bits of a code, moved up, are 2^-8 of it. */
LANES_Z __m256i e4m3_f16_avx512(const uint8_t *p)
{
    __m256i c = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    return _mm256_and_si256(_mm256_slli_epi16(c, 7), _mm256_set1_epi16((short)0xbf80));
}

LANES_Z __m512 vload_e4m3_256th_avx512(const uint8_t *p)
{
    return _mm512_cvtph_ps(e4m3_f16_avx512(p));
}

LANES_Z __m512 vload_e4m3_avx512(const uint8_t *p)
{
    __m256i h = e4m3_f16_avx512(p);
    __m256i mag = _mm256_and_si256(h, _mm256_set1_epi16(0x3f80));
    __m256i nan = _mm256_cmpeq_epi16(mag, _mm256_set1_epi16(0x3f80));
    h = _mm256_or_si256(h, _mm256_and_si256(nan, _mm256_set1_epi16(0x7c00)));
    return _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(256.0f));
}

LANES_Z int nan_e4m3_avx512(const uint8_t *p)
{
    __m512i c = _mm512_or_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
    return _mm512_cmpeq_epi8_mask(c, _mm512_set1_epi8((char)0xff)) != 0;
}

LANES_Z void vstore_e4m3_avx512(uint8_t *p, __m512 a)
{
    a = _mm512_max_ps(_mm512_set1_ps(-448.0f), _mm512_min_ps(_mm512_set1_ps(448.0f), a));
    __m512i u = _mm512_castps_si512(a);
    __m512i mag = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 20), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(mag, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
    r = _mm512_sub_epi32(_mm512_srli_epi32(r, 20), _mm512_set1_epi32(120 << 3));
    /* below 2^-6: the unit in the last place of 2^14 is the code's 2^-9 */
    __m512 low = _mm512_add_ps(_mm512_castsi512_ps(mag), _mm512_set1_ps(0x1p14f));
    __m512i small = _mm512_sub_epi32(_mm512_castps_si512(low), _mm512_set1_epi32(0x46800000));
    __mmask16 is_small = _mm512_cmplt_epi32_mask(mag, _mm512_set1_epi32(0x3c800000));
    r = _mm512_mask_mov_epi32(r, is_small, small);
    r = _mm512_or_si512(r, _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7f));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(r));
}

LANES_Z __m512 vadd_avx512(__m512 a, __m512 b)
{
    return _mm512_add_ps(a, b);
}

LANES_Z __m512 vsub_avx512(__m512 a, __m512 b)
{
    return _mm512_sub_ps(a, b);
}

LANES_Z __m512 vmul_avx512(__m512 a, __m512 b)
{
    return _mm512_mul_ps(a, b);
}

LANES_Z __m512 vdiv_avx512(__m512 a, __m512 b)
{
    return _mm512_div_ps(a, b);
}

LANES_Z __m512 vfma_avx512(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

LANES_Z __m512 vmax_avx512(__m512 a, __m512 b)
{
    return _mm512_max_ps(a, b);
}

LANES_Z __m512 vabs_avx512(__m512 a)
{
    return _mm512_abs_ps(a);
}

LANES_Z __m512 vselect_lt_avx512(__m512 a, __m512 b, __m512 x, __m512 y)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}

LANES_Z __m512 vround_avx512(__m512 a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

LANES_Z __m512 vscale2_avx512(__m512 a, __m512 n)
{
    __m512i e = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), e));
}

LANES_Z __m128 halves_avx512(__m512 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
}

LANES_Z float vsum_avx512(__m512 a)
{
    __m128 c = halves_avx512(a);
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

LANES_Z float vhmax_avx512(__m512 a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

LANES_Z __m512 vdup_even_avx512(__m512 a)
{
    return _mm512_moveldup_ps(a);
}

LANES_Z __m512 vdup_odd_avx512(__m512 a)
{
    return _mm512_movehdup_ps(a);
}

LANES_Z __m512 vswap1_avx512(__m512 a)
{
    return _mm512_permute_ps(a, 0xb1);
}

LANES_Z __m512 vswap2_avx512(__m512 a)
{
    return _mm512_permute_ps(a, 0x4e);
}

LANES_Z __m512 vswap4_avx512(__m512 a)
{
    return _mm512_shuffle_f32x4(a, a, 0xb1);
}

LANES_Z __m512 vswap8_avx512(__m512 a)
{
    return _mm512_shuffle_f32x4(a, a, 0x4e);
}

LANES_Z void vsplit_avx512(__m512 a, __m512 b, __m512 *even, __m512 *odd)
{
    __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *even = _mm512_permutex2var_ps(a, at, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_or_si512(at, _mm512_set1_epi32(1)), b);
}

LANES_Z void vtranspose_avx512(__m512 *a)
{
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d x = _mm512_castps_pd(t[i + j]), y = _mm512_castps_pd(t[i + j + 2]);
            a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    /* a[4g + c]: columns c, c+4, c+8, c+12 of rows 4g..4g+3, four numbers each */
    for (int c = 0; c < 4; c++) {
        __m512 lo01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
        __m512 hi01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
        __m512 lo23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
        __m512 hi23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
        t[c] = _mm512_shuffle_f32x4(lo01, lo23, 0x88);
        t[8 + c] = _mm512_shuffle_f32x4(lo01, lo23, 0xdd);
        t[4 + c] = _mm512_shuffle_f32x4(hi01, hi23, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(hi01, hi23, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        a[i] = t[i];
}

LANES_Z __m512i vkey_avx512(__m512 a)
{
    a = _mm512_add_ps(_mm512_max_ps(a, _mm512_set1_ps(-INFINITY)), _mm512_setzero_ps());
    __m512i i = _mm512_castps_si512(a);
    return _mm512_xor_si512(i, _mm512_srli_epi32(_mm512_srai_epi32(i, 31), 1));
}

LANES_Z __m512i kset_avx512(int32_t x)
{
    return _mm512_set1_epi32(x);
}

LANES_Z __m512i kload_avx512(const int32_t *p)
{
    return _mm512_loadu_si512(p);
}

LANES_Z void kstore_avx512(int32_t *p, __m512i a)
{
    _mm512_storeu_si512(p, a);
}

LANES_Z uint32_t kgt_avx512(__m512i a, __m512i b)
{
    return _mm512_cmpgt_epi32_mask(a, b);
}

LANES_Z uint32_t keq_avx512(__m512i a, __m512i b)
{
    return _mm512_cmpeq_epi32_mask(a, b);
}

LANES_Z void btranspose_avx512(const uint8_t *src, int64_t stride, int n, uint8_t *dst)
{
    __m128i a[16], t[16];
    for (int i = 0; i < 16; i++)
        a[i] = i < n ? _mm_loadu_si128((const __m128i *)(src + i * stride)) : _mm_setzero_si128();
    /* four rounds of interleaving row i with row i + 8 turn rows into columns */
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            t[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            t[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; i++)
            a[i] = t[i];
    }
    for (int i = 0; i < 16; i++)
        _mm_storeu_si128((__m128i *)(dst + 16 * i), a[i]);
}

typedef __m512d d8_avx512;

LANES_Z __m512d dset_avx512(double x)
{
    return _mm512_set1_pd(x);
}

LANES_Z __m512d dwiden_avx512(const float *p)
{
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}

LANES_Z __m512d dload_avx512(const double *p)
{
    return _mm512_loadu_pd(p);
}

LANES_Z void dstore_avx512(double *p, __m512d a)
{
    _mm512_storeu_pd(p, a);
}

LANES_Z __m512d dfma_avx512(__m512d a, __m512d b, __m512d c)
{
    return _mm512_fmadd_pd(a, b, c);
}
#endif
