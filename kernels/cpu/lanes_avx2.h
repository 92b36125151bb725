/* lanes_avx2.h - lanes.h as two AVX2 registers: lanes 0..7 and 8..15. */
#ifndef TD_KERNELS_CPU_LANES_AVX2_H
#define TD_KERNELS_CPU_LANES_AVX2_H
#include "kernels/cpu/isa.h"
#include "kernels/numbers.h"

#include <immintrin.h>

#define LANES_Y TD_BODY TD_AVX2

typedef struct {
    __m256 lo, hi;
} v16_avx2;

typedef struct {
    __m256i lo, hi;
} k16_avx2;

#define Y16(a, b) ((v16_avx2){(a), (b)})

LANES_Y v16_avx2 vset_avx2(float x)
{
    return Y16(_mm256_set1_ps(x), _mm256_set1_ps(x));
}

LANES_Y v16_avx2 vzero_avx2(void)
{
    return Y16(_mm256_setzero_ps(), _mm256_setzero_ps());
}

LANES_Y v16_avx2 vload_avx2(const float *p)
{
    return Y16(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}

LANES_Y v16_avx2 vloadn_avx2(const float *p, int n)
{
    float all[16] = {0};
    memcpy(all, p, (size_t)n * 4);
    return vload_avx2(all);
}

LANES_Y void vstore_avx2(float *p, v16_avx2 a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}

LANES_Y void vstoren_avx2(float *p, v16_avx2 a, int n)
{
    float all[16];
    vstore_avx2(all, a);
    memcpy(p, all, (size_t)n * 4);
}

LANES_Y __m256 bf16_half_avx2(const td_bf16 *p)
{
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

LANES_Y v16_avx2 vload_bf16_avx2(const td_bf16 *p)
{
    return Y16(bf16_half_avx2(p), bf16_half_avx2(p + 8));
}

/* The upper halves after rounding to nearest even; NaN keeps its upper bits and becomes quiet. */
LANES_Y __m256i bf16_bits_avx2(__m256 a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, quiet, nan);
}

LANES_Y void vstore_bf16_avx2(td_bf16 *p, v16_avx2 a)
{
    __m256i lo = _mm256_srli_epi32(bf16_bits_avx2(a.lo), 16);
    __m256i hi = _mm256_srli_epi32(bf16_bits_avx2(a.hi), 16);
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    _mm256_storeu_si256((__m256i *)p, both);
}

LANES_Y v16_avx2 vround_bf16_avx2(v16_avx2 a)
{
    __m256i keep = _mm256_set1_epi32((int)0xffff0000);
    return Y16(_mm256_castsi256_ps(_mm256_and_si256(bf16_bits_avx2(a.lo), keep)),
               _mm256_castsi256_ps(_mm256_and_si256(bf16_bits_avx2(a.hi), keep)));
}

/* By way of f16, whose exponent is wide enough: the bits of a code, moved up, are 2^-8 of it. */
LANES_Y __m256i e4m3_f16_avx2(const uint8_t *p)
{
    __m256i c = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    return _mm256_and_si256(_mm256_slli_epi16(c, 7), _mm256_set1_epi16((short)0xbf80));
}

LANES_Y v16_avx2 vload_e4m3_256th_avx2(const uint8_t *p)
{
    __m256i h = e4m3_f16_avx2(p);
    return Y16(_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
               _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)));
}

LANES_Y v16_avx2 vload_e4m3_avx2(const uint8_t *p)
{
    __m256i h = e4m3_f16_avx2(p);
    __m256i mag = _mm256_and_si256(h, _mm256_set1_epi16(0x3f80));
    __m256i nan = _mm256_cmpeq_epi16(mag, _mm256_set1_epi16(0x3f80));
    h = _mm256_or_si256(h, _mm256_and_si256(nan, _mm256_set1_epi16(0x7c00)));
    __m256 up = _mm256_set1_ps(256.0f);
    return Y16(_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(h)), up),
               _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)), up));
}

LANES_Y int nan_e4m3_avx2(const uint8_t *p)
{
    __m256i sign = _mm256_set1_epi8((char)0x80), all = _mm256_set1_epi8((char)0xff);
    __m256i a = _mm256_or_si256(_mm256_loadu_si256((const __m256i *)p), sign);
    __m256i b = _mm256_or_si256(_mm256_loadu_si256((const __m256i *)(p + 32)), sign);
    a = _mm256_or_si256(_mm256_cmpeq_epi8(a, all), _mm256_cmpeq_epi8(b, all));
    return _mm256_movemask_epi8(a) != 0;
}

LANES_Y __m256i e4m3_half_avx2(__m256 a)
{
    a = _mm256_max_ps(_mm256_set1_ps(-448.0f), _mm256_min_ps(_mm256_set1_ps(448.0f), a));
    __m256i u = _mm256_castps_si256(a);
    __m256i mag = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 20), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(mag, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    r = _mm256_sub_epi32(_mm256_srli_epi32(r, 20), _mm256_set1_epi32(120 << 3));
    /* below 2^-6: the unit in the last place of 2^14 is the code's 2^-9 */
    __m256 low = _mm256_add_ps(_mm256_castsi256_ps(mag), _mm256_set1_ps(0x1p14f));
    __m256i small = _mm256_sub_epi32(_mm256_castps_si256(low), _mm256_set1_epi32(0x46800000));
    __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), mag);
    r = _mm256_blendv_epi8(r, small, is_small);
    r = _mm256_or_si256(r, _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7f), nan);
}

LANES_Y void vstore_e4m3_avx2(uint8_t *p, v16_avx2 a)
{
    __m256i w = _mm256_packus_epi32(e4m3_half_avx2(a.lo), e4m3_half_avx2(a.hi));
    w = _mm256_permute4x64_epi64(w, 0xd8);
    __m128i b = _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, b);
}

LANES_Y v16_avx2 vadd_avx2(v16_avx2 a, v16_avx2 b)
{
    return Y16(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi));
}

LANES_Y v16_avx2 vsub_avx2(v16_avx2 a, v16_avx2 b)
{
    return Y16(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi));
}

LANES_Y v16_avx2 vmul_avx2(v16_avx2 a, v16_avx2 b)
{
    return Y16(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi));
}

LANES_Y v16_avx2 vdiv_avx2(v16_avx2 a, v16_avx2 b)
{
    return Y16(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi));
}

LANES_Y v16_avx2 vfma_avx2(v16_avx2 a, v16_avx2 b, v16_avx2 c)
{
    return Y16(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}

LANES_Y v16_avx2 vmax_avx2(v16_avx2 a, v16_avx2 b)
{
    return Y16(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi));
}

LANES_Y v16_avx2 vabs_avx2(v16_avx2 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return Y16(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}

LANES_Y v16_avx2 vselect_lt_avx2(v16_avx2 a, v16_avx2 b, v16_avx2 x, v16_avx2 y)
{
    return Y16(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
               _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)));
}

LANES_Y v16_avx2 vround_avx2(v16_avx2 a)
{
    return Y16(_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
               _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

LANES_Y __m256 scale2_half_avx2(__m256 a, __m256 n)
{
    __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), e));
}

LANES_Y v16_avx2 vscale2_avx2(v16_avx2 a, v16_avx2 n)
{
    return Y16(scale2_half_avx2(a.lo, n.lo), scale2_half_avx2(a.hi, n.hi));
}

LANES_Y __m128 halves_avx2(v16_avx2 a)
{
    __m256 b = _mm256_add_ps(a.lo, a.hi);
    return _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
}

LANES_Y float vsum_avx2(v16_avx2 a)
{
    __m128 c = halves_avx2(a);
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

LANES_Y float vhmax_avx2(v16_avx2 a)
{
    __m256 b = _mm256_max_ps(a.lo, a.hi);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

LANES_Y v16_avx2 vdup_even_avx2(v16_avx2 a)
{
    return Y16(_mm256_moveldup_ps(a.lo), _mm256_moveldup_ps(a.hi));
}

LANES_Y v16_avx2 vdup_odd_avx2(v16_avx2 a)
{
    return Y16(_mm256_movehdup_ps(a.lo), _mm256_movehdup_ps(a.hi));
}

LANES_Y v16_avx2 vswap1_avx2(v16_avx2 a)
{
    return Y16(_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1));
}

LANES_Y v16_avx2 vswap2_avx2(v16_avx2 a)
{
    return Y16(_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e));
}

LANES_Y v16_avx2 vswap4_avx2(v16_avx2 a)
{
    return Y16(_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1));
}

LANES_Y v16_avx2 vswap8_avx2(v16_avx2 a)
{
    return Y16(a.hi, a.lo);
}

LANES_Y __m256 split_half_avx2(__m256 a, __m256 b, int odd)
{
    __m256 x = odd ? _mm256_shuffle_ps(a, b, 0xdd) : _mm256_shuffle_ps(a, b, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8));
}

LANES_Y void vsplit_avx2(v16_avx2 a, v16_avx2 b, v16_avx2 *even, v16_avx2 *odd)
{
    *even = Y16(split_half_avx2(a.lo, a.hi, 0), split_half_avx2(b.lo, b.hi, 0));
    *odd = Y16(split_half_avx2(a.lo, a.hi, 1), split_half_avx2(b.lo, b.hi, 1));
}

LANES_Y void transpose8_avx2(__m256 *a)
{
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            __m256d x = _mm256_castps_pd(t[i + j]), y = _mm256_castps_pd(t[i + j + 2]);
            a[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
            a[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
        }
    for (int c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(a[c], a[4 + c], 0x20);
        t[4 + c] = _mm256_permute2f128_ps(a[c], a[4 + c], 0x31);
    }
    for (int i = 0; i < 8; i++)
        a[i] = t[i];
}

LANES_Y void vtranspose_avx2(v16_avx2 *a)
{
    for (int half = 0; half < 2; half++) { /* rows 0..7, rows 8..15 */
        __m256 lo[8], hi[8];
        for (int i = 0; i < 8; i++) {
            lo[i] = a[8 * half + i].lo;
            hi[i] = a[8 * half + i].hi;
        }
        transpose8_avx2(lo);
        transpose8_avx2(hi);
        for (int i = 0; i < 8; i++) {
            a[8 * half + i].lo = lo[i];
            a[8 * half + i].hi = hi[i];
        }
    }
    for (int i = 0; i < 8; i++) {
        __m256 x = a[i].hi;
        a[i].hi = a[8 + i].lo;
        a[8 + i].lo = x;
    }
}

LANES_Y __m256i key_half_avx2(__m256 a)
{
    a = _mm256_add_ps(_mm256_max_ps(a, _mm256_set1_ps(-INFINITY)), _mm256_setzero_ps());
    __m256i i = _mm256_castps_si256(a);
    return _mm256_xor_si256(i, _mm256_srli_epi32(_mm256_srai_epi32(i, 31), 1));
}

LANES_Y k16_avx2 vkey_avx2(v16_avx2 a)
{
    return (k16_avx2){key_half_avx2(a.lo), key_half_avx2(a.hi)};
}

LANES_Y k16_avx2 kset_avx2(int32_t x)
{
    return (k16_avx2){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

LANES_Y k16_avx2 kload_avx2(const int32_t *p)
{
    return (k16_avx2){_mm256_loadu_si256((const __m256i *)p),
                      _mm256_loadu_si256((const __m256i *)(p + 8))};
}

LANES_Y void kstore_avx2(int32_t *p, k16_avx2 a)
{
    _mm256_storeu_si256((__m256i *)p, a.lo);
    _mm256_storeu_si256((__m256i *)(p + 8), a.hi);
}

LANES_Y uint32_t bits_avx2(__m256i lo, __m256i hi)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(lo)) |
           (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(hi)) << 8;
}

LANES_Y uint32_t kgt_avx2(k16_avx2 a, k16_avx2 b)
{
    return bits_avx2(_mm256_cmpgt_epi32(a.lo, b.lo), _mm256_cmpgt_epi32(a.hi, b.hi));
}

LANES_Y uint32_t keq_avx2(k16_avx2 a, k16_avx2 b)
{
    return bits_avx2(_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi));
}

LANES_Y void btranspose_avx2(const uint8_t *src, int64_t stride, int n, uint8_t *dst)
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

typedef struct {
    __m256d lo, hi;
} d8_avx2;

LANES_Y d8_avx2 dset_avx2(double x)
{
    return (d8_avx2){_mm256_set1_pd(x), _mm256_set1_pd(x)};
}

LANES_Y d8_avx2 dwiden_avx2(const float *p)
{
    return (d8_avx2){_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}

LANES_Y d8_avx2 dload_avx2(const double *p)
{
    return (d8_avx2){_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)};
}

LANES_Y void dstore_avx2(double *p, d8_avx2 a)
{
    _mm256_storeu_pd(p, a.lo);
    _mm256_storeu_pd(p + 4, a.hi);
}

LANES_Y d8_avx2 dfma_avx2(d8_avx2 a, d8_avx2 b, d8_avx2 c)
{
    return (d8_avx2){_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)};
}
#endif
