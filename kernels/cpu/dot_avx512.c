/* dot_avx512.c - 6 x 4 sums of 16 lanes in 24 registers; a row of b is widened once for all rows
 * of a. */
#include "kernels/cpu/dot_kernel.h"

#if TD_X86
#include <immintrin.h>

#define MR 6
#define NR 4

/* What rows of b hold. FORM_E4M3 stands for rows without a NaN, which are cheaper to widen. */
typedef enum { FORM_F32, FORM_BF16, FORM_E4M3, FORM_E4M3_NAN } form;

TD_BODY size_t form_bytes(form f)
{
    return f == FORM_F32 ? 4 : f == FORM_BF16 ? 2 : 1;
}

typedef struct {
    __m512 lo, hi; /* 16 numbers, and the 16 behind them */
} pair;

/* The bits of e4m3 (sign, 4 of exponent, 3 of mantissa) in an f16's places are 2^-8 times the
 * value, subnormals included. 0x7f, the only NaN, would become a number: `nans` looks for it. */
TD_AVX512 TD_BODY pair widen_e4m3(__m256i codes, int nans)
{
    const __m512i top = _mm512_set1_epi16(0x3f80);
    __m512i h = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7);
    __mmask32 nan = nans ? _mm512_cmpeq_epi16_mask(_mm512_and_si512(h, top), top) : 0;
    h = _mm512_and_si512(h, _mm512_set1_epi16((short)0xbf80));
    if (nans)
        h = _mm512_mask_mov_epi16(h, nan, _mm512_set1_epi16(0x7fff));
    return (pair){_mm512_cvtph_ps(_mm512_castsi512_si256(h)),
                  _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1))};
}

/* Whether a NaN stands in n rows of K codes. */
TD_AVX512 static int has_nan(const uint8_t *rows, int64_t ld, int n, int K)
{
    const __m512i magnitude = _mm512_set1_epi8(0x7f);
    __m512i most = _mm512_setzero_si512();
    for (int j = 0; j < n; j++) {
        const uint8_t *row = rows + j * ld;
        int k = 0;
        for (; k + 64 <= K; k += 64)
            most = _mm512_max_epu8(
                most, _mm512_and_si512(_mm512_loadu_si512((const void *)(row + k)), magnitude));
        __mmask64 rest = ((__mmask64)1 << (K - k)) - 1;
        most = _mm512_max_epu8(most,
                               _mm512_and_si512(_mm512_maskz_loadu_epi8(rest, row + k), magnitude));
    }
    return _mm512_cmpeq_epi8_mask(most, magnitude) != 0;
}

TD_AVX512 TD_BODY __m512 widen_bf16(__m256i v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* 32 numbers from row[k] on, or the first `left` of them and zeros. */
TD_AVX512 TD_BODY pair load_pair(form f, const void *row, int64_t k, int left)
{
    const __mmask32 mask = left >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
    const __mmask16 lo = (__mmask16)mask, hi = (__mmask16)(mask >> 16);
    if (f == FORM_F32) {
        const float *p = (const float *)row + k;
        return (pair){_mm512_maskz_loadu_ps(lo, p), _mm512_maskz_loadu_ps(hi, p + 16)};
    }
    if (f == FORM_BF16) {
        const td_bf16 *p = (const td_bf16 *)row + k;
        return (pair){widen_bf16(_mm256_maskz_loadu_epi16(lo, p)),
                      widen_bf16(_mm256_maskz_loadu_epi16(hi, p + 16))};
    }
    return widen_e4m3(_mm256_maskz_loadu_epi8(mask, (const uint8_t *)row + k), f == FORM_E4M3_NAN);
}

/* Lanes l and l + 8, then neighbours, neighbours of these, then the two halves. */
TD_AVX512 TD_BODY __m256 fold(__m512 v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

TD_AVX512 TD_BODY __m128 sum4(const __m512 *v)
{
    __m256 lo = _mm256_hadd_ps(fold(v[0]), fold(v[1]));
    __m256 hi = _mm256_hadd_ps(fold(v[2]), fold(v[3]));
    __m256 s = _mm256_hadd_ps(lo, hi);
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

/* Adds 32 products to each of m x nr sums; of a, where fewer than 17 are left, only 16 exist. */
TD_AVX512 TD_BODY void step(form f, int m, int nr, const td_dot_chunk *c,
                            const unsigned char *const *b, __m512 acc[MR][2 * NR], int64_t k,
                            int left)
{
#pragma GCC unroll 8
    for (int j = 0; j < nr; j++) {
        pair w = load_pair(f, b[j], k, left);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const float *x = c->a + i * c->lda + k;
            acc[i][j] = _mm512_fmadd_ps(_mm512_loadu_ps(x), w.lo, acc[i][j]);
            if (left > 16)
                acc[i][j] = _mm512_fmadd_ps(_mm512_loadu_ps(x + 16), w.hi, acc[i][j]);
        }
    }
}

/* The same for f32 rows of b that are padded to a multiple of 16: each row of a is read once. */
TD_AVX512 TD_BODY void step_f32(int m, int nr, const td_dot_chunk *c, const unsigned char *const *b,
                                __m512 acc[MR][2 * NR], int64_t k)
{
    __m512 w[2 * NR];
#pragma GCC unroll 8
    for (int j = 0; j < nr; j++)
        w[j] = _mm512_loadu_ps((const float *)(const void *)b[j] + k);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        __m512 x = _mm512_loadu_ps(c->a + i * c->lda + k);
#pragma GCC unroll 8
        for (int j = 0; j < nr; j++)
            acc[i][j] = _mm512_fmadd_ps(x, w[j], acc[i][j]);
    }
}

/* m x nr sums, nr a multiple of 4; columns from n on repeat column n - 1 and are not stored. */
TD_AVX512 TD_BODY void tile(form f, int m, int nr, const td_dot_chunk *c, int j0)
{
    const size_t row_bytes = (size_t)c->ldb * form_bytes(f);
    const unsigned char *b[2 * NR];
    __m512 acc[MR][2 * NR];
    int n = c->n - j0 < nr ? c->n - j0 : nr;
#pragma GCC unroll 8
    for (int j = 0; j < nr; j++)
        b[j] = (const unsigned char *)c->b + (size_t)(j0 + (j < n ? j : n - 1)) * row_bytes;
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < nr; j++)
            acc[i][j] = _mm512_setzero_ps();
    int64_t k = 0;
    if (f == FORM_F32)
        for (; k + 16 <= c->K; k += 16)
            step_f32(m, nr, c, b, acc, k);
    else
        for (; k + 32 <= c->K; k += 32)
            step(f, m, nr, c, b, acc, k, 32);
    if (k < c->K)
        step(f, m, nr, c, b, acc, k, (int)(c->K - k));
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nr; j += 4) {
            float *out = c->out + i * c->out_stride + j0 + j;
            int left = n - j < 4 ? n - j : 4;
            __mmask8 mask = (__mmask8)(left > 0 ? (1u << left) - 1 : 0);
            __m128 sum = _mm_add_ps(_mm_maskz_loadu_ps(mask, out), sum4(acc[i] + j));
            _mm_mask_storeu_ps(out, mask, sum);
        }
}

#define RUN(name, f, m, nr)                                                                        \
    TD_AVX512 static void name(const td_dot_chunk *c)                                              \
    {                                                                                              \
        for (int j = 0; j < c->n; j += (nr))                                                       \
            tile(f, m, nr, c, j);                                                                  \
    }
#define RUN_FORM(name, f)                                                                          \
    RUN(name##_1, f, 1, 2 * NR)                                                                    \
    RUN(name##_2, f, 2, 2 * NR)                                                                    \
    RUN(name##_3, f, 3, NR)                                                                        \
    RUN(name##_4, f, 4, NR)                                                                        \
    RUN(name##_5, f, 5, NR)                                                                        \
    RUN(name##_6, f, 6, NR)

RUN_FORM(f32, FORM_F32)
RUN_FORM(bf16, FORM_BF16)
RUN_FORM(e4m3, FORM_E4M3)
RUN_FORM(e4m3_nan, FORM_E4M3_NAN)

static void run(td_dtype dtype, int m, const td_dot_chunk *c)
{
    static void (*const table[][MR])(const td_dot_chunk *) = {
        [FORM_F32] = {f32_1, f32_2, f32_3, f32_4, f32_5, f32_6},
        [FORM_BF16] = {bf16_1, bf16_2, bf16_3, bf16_4, bf16_5, bf16_6},
        [FORM_E4M3] = {e4m3_1, e4m3_2, e4m3_3, e4m3_4, e4m3_5, e4m3_6},
        [FORM_E4M3_NAN] = {e4m3_nan_1, e4m3_nan_2, e4m3_nan_3, e4m3_nan_4, e4m3_nan_5, e4m3_nan_6},
    };
    form f = dtype == TD_F32                     ? FORM_F32
             : dtype == TD_BF16                  ? FORM_BF16
             : has_nan(c->b, c->ldb, c->n, c->K) ? FORM_E4M3_NAN
                                                 : FORM_E4M3;
    table[f][m - 1](c);
}

TD_AVX512 TD_BODY void widen_row(form f, const void *src, int n, float scale, float *dst)
{
    __m512 s = _mm512_set1_ps(scale);
    int k = 0;
    for (; k + 32 <= n; k += 32) {
        pair v = load_pair(f, src, k, 32);
        _mm512_storeu_ps(dst + k, _mm512_mul_ps(v.lo, s));
        _mm512_storeu_ps(dst + k + 16, _mm512_mul_ps(v.hi, s));
    }
    if (k == n)
        return;
    __mmask32 mask = ((__mmask32)1 << (n - k)) - 1; /* 0 * inf is no zero */
    pair v = load_pair(f, src, k, n - k);
    _mm512_storeu_ps(dst + k, _mm512_maskz_mul_ps((__mmask16)mask, v.lo, s));
    if (n - k > 16)
        _mm512_storeu_ps(dst + k + 16, _mm512_maskz_mul_ps((__mmask16)(mask >> 16), v.hi, s));
}

TD_AVX512 static void widen(td_dtype dtype, const void *src, int n, float scale, float *dst)
{
    if (dtype == TD_F32)
        widen_row(FORM_F32, src, n, scale, dst);
    else if (dtype == TD_BF16)
        widen_row(FORM_BF16, src, n, scale, dst);
    else
        widen_row(FORM_E4M3_NAN, src, n, scale, dst);
}

const td_dot_kernel td_dot_avx512 = {
    MR, {[TD_F32] = 12, [TD_BF16] = 12, [TD_E4M3] = 6}, run, widen};
#endif
