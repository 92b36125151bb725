/* dot_avx2.c - 3 x 2 sums of 16 lanes in 12 registers: the same lanes as dot_avx512.c, in two
 * halves, so that both give the same bits. */
#include "kernels/cpu/dot_kernel.h"

#if TD_X86
#include <immintrin.h>
#include <string.h>

#define MR 3
#define NR 2

typedef struct {
    __m256 lo, hi; /* lanes 0..7 and 8..15 */
} lanes;

/* As in dot_avx512.c: e4m3 bits in an f16's places are the value times 2^-8; 0x7f is NaN. */
TD_AVX2 TD_BODY lanes widen_e4m3(__m128i codes)
{
    const __m256i top = _mm256_set1_epi16(0x3f80);
    __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(h, top), top);
    h = _mm256_and_si256(h, _mm256_set1_epi16((short)0xbf80));
    h = _mm256_or_si256(h, _mm256_and_si256(nan, _mm256_set1_epi16(0x7fff)));
    return (lanes){_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
                   _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

TD_AVX2 TD_BODY __m256 widen_bf16(const void *p)
{
    __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

TD_AVX2 TD_BODY lanes load16(td_dtype dtype, const void *row, int64_t k)
{
    if (dtype == TD_F32) {
        const float *p = (const float *)row + k;
        return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
    }
    if (dtype == TD_BF16) {
        const td_bf16 *p = (const td_bf16 *)row + k;
        return (lanes){widen_bf16(p), widen_bf16(p + 8)};
    }
    return widen_e4m3(_mm_loadu_si128((const void *)((const uint8_t *)row + k)));
}

TD_AVX2 TD_BODY lanes load_part(td_dtype dtype, const void *row, int64_t k, int n)
{
    unsigned char part[TD_DOT_LANES * sizeof(float)] = {0};
    const size_t size = td_dtype_bytes(dtype);
    memcpy(part, (const unsigned char *)row + (size_t)k * size, (size_t)n * size);
    return load16(dtype, part, 0);
}

/* The tree of dot_avx512.c: lanes l and l + 8, neighbours, neighbours of these, the two halves. */
TD_AVX2 TD_BODY __m128 sum4(const lanes *a, const lanes *b, const lanes *c, const lanes *d)
{
    __m256 ab = _mm256_hadd_ps(_mm256_add_ps(a->lo, a->hi), _mm256_add_ps(b->lo, b->hi));
    __m256 cd = _mm256_hadd_ps(_mm256_add_ps(c->lo, c->hi), _mm256_add_ps(d->lo, d->hi));
    __m256 s = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

TD_AVX2 TD_BODY void add_sums(float *out, __m128 sum, int n)
{
    float s[4];
    _mm_storeu_ps(s, sum);
    for (int j = 0; j < n; j++)
        out[j] += s[j];
}

/* m x nr sums; columns from n on repeat column n - 1 and are not stored. */
TD_AVX2 TD_BODY void tile(td_dtype dtype, int m, int nr, const td_dot_chunk *c, int j0)
{
    const size_t row_bytes = (size_t)c->ldb * td_dtype_bytes(dtype);
    const unsigned char *b[2 * NR];
    lanes acc[MR][2 * NR];
    int n = c->n - j0 < nr ? c->n - j0 : nr;
#pragma GCC unroll 4
    for (int j = 0; j < nr; j++)
        b[j] = (const unsigned char *)c->b + (size_t)(j0 + (j < n ? j : n - 1)) * row_bytes;
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++)
            acc[i][j] = (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t k = 0;
    for (; k < c->K; k += TD_DOT_LANES) {
        lanes w[2 * NR];
        int left = (int)(c->K - k);
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++)
            w[j] = left >= TD_DOT_LANES ? load16(dtype, b[j], k) : load_part(dtype, b[j], k, left);
#pragma GCC unroll 4
        for (int i = 0; i < m; i++) {
            lanes x = load16(TD_F32, c->a + i * c->lda, k);
#pragma GCC unroll 4
            for (int j = 0; j < nr; j++) {
                acc[i][j].lo = _mm256_fmadd_ps(x.lo, w[j].lo, acc[i][j].lo);
                acc[i][j].hi = _mm256_fmadd_ps(x.hi, w[j].hi, acc[i][j].hi);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) {
        const lanes *v = acc[i];
        float *out = c->out + i * c->out_stride + j0;
        add_sums(out, sum4(&v[0], &v[1], &v[nr - 2], &v[nr - 1]), n);
    }
}

#define RUN(name, dtype, m, nr)                                                                    \
    TD_AVX2 static void name(const td_dot_chunk *c)                                                \
    {                                                                                              \
        for (int j = 0; j < c->n; j += (nr))                                                       \
            tile(dtype, m, nr, c, j);                                                              \
    }
#define RUN_DTYPE(name, dtype)                                                                     \
    RUN(name##_1, dtype, 1, 2 * NR)                                                                \
    RUN(name##_2, dtype, 2, NR)                                                                    \
    RUN(name##_3, dtype, 3, NR)

RUN_DTYPE(f32, TD_F32)
RUN_DTYPE(bf16, TD_BF16)
RUN_DTYPE(e4m3, TD_E4M3)

static void run(td_dtype dtype, int m, const td_dot_chunk *c)
{
    static void (*const table[3][MR])(const td_dot_chunk *) = {
        [TD_F32] = {f32_1, f32_2, f32_3},
        [TD_BF16] = {bf16_1, bf16_2, bf16_3},
        [TD_E4M3] = {e4m3_1, e4m3_2, e4m3_3},
    };
    table[dtype][m - 1](c);
}

TD_AVX2 TD_BODY void widen_row(td_dtype dtype, const void *src, int n, float scale, float *dst)
{
    const __m256 s = _mm256_set1_ps(scale);
    int k = 0;
    for (; k + TD_DOT_LANES <= n; k += TD_DOT_LANES) {
        lanes v = load16(dtype, src, k);
        _mm256_storeu_ps(dst + k, _mm256_mul_ps(v.lo, s));
        _mm256_storeu_ps(dst + k + 8, _mm256_mul_ps(v.hi, s));
    }
    if (k < n) {
        lanes v = load_part(dtype, src, k, n - k);
        _mm256_storeu_ps(dst + k, _mm256_mul_ps(v.lo, s));
        _mm256_storeu_ps(dst + k + 8, _mm256_mul_ps(v.hi, s));
        memset(dst + n, 0, (size_t)(k + TD_DOT_LANES - n) * sizeof(*dst)); /* 0 * inf is no zero */
    }
}

TD_AVX2 static void widen(td_dtype dtype, const void *src, int n, float scale, float *dst)
{
    if (dtype == TD_F32)
        widen_row(TD_F32, src, n, scale, dst);
    else if (dtype == TD_BF16)
        widen_row(TD_BF16, src, n, scale, dst);
    else
        widen_row(TD_E4M3, src, n, scale, dst);
}

const td_dot_kernel td_dot_avx2 = {MR, {[TD_F32] = 6, [TD_BF16] = 6, [TD_E4M3] = 6}, run, widen};
#endif
