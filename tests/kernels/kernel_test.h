/* kernel_test.h - what the tests of the operations share: random inputs from a printed seed,
 * outputs full of NaN between guards, distances in units of the last place, a loop over the
 * instruction sets. */
#ifndef TD_TESTS_KERNELS_KERNEL_TEST_H
#define TD_TESTS_KERNELS_KERNEL_TEST_H
#include "common/device/cpu.h"
#include "kernels/numbers.h"
#include "tests/td_test.h"

#include <math.h>
#include <time.h>
#include <unistd.h>

/* ---- random numbers: splitmix64, seeded from the clock or by the program's second argument ----
 */

typedef struct {
    uint64_t state;
} kt_rng;

static inline uint64_t kt_u64(kt_rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Prints the seed: `test_gemm CLAIM 0x123..` repeats a failure. */
static inline kt_rng kt_seeded(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    kt_rng rng = {(uint64_t)ts.tv_sec * 1000000007u ^ (uint64_t)ts.tv_nsec ^
                  (uint64_t)getpid() << 40};
    if (td_test_seed != NULL)
        rng.state = strtoull(td_test_seed, NULL, 0);
    printf("seed 0x%016llx\n", (unsigned long long)rng.state);
    fflush(stdout);
    return rng;
}

static inline int kt_int(kt_rng *rng, int lo, int hi) /* lo..hi, both included */
{
    return lo + (int)(kt_u64(rng) % (uint64_t)(hi - lo + 1));
}

static inline float kt_unit(kt_rng *rng) /* [0, 1) */
{
    return (float)(kt_u64(rng) >> 40) * 0x1p-24f;
}

static inline float kt_normal(kt_rng *rng) /* mean 0, variance 1 */
{
    float u = 1.0f - kt_unit(rng), v = kt_unit(rng);
    return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
}

static inline void kt_fill_f32(kt_rng *rng, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = kt_normal(rng) * scale;
}

static inline void kt_fill_bf16(kt_rng *rng, td_bf16 *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = td_f32_to_bf16(kt_normal(rng) * scale);
}

/* Any finite code, each as likely as the others. */
static inline void kt_fill_e4m3(kt_rng *rng, uint8_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = (uint8_t)kt_u64(rng);
        if ((x[i] & 0x7f) == 0x7f)
            x[i] ^= 0x40;
    }
}

static inline void kt_fill_act(kt_rng *rng, void *x, size_t n, float scale, td_dtype dtype)
{
    if (dtype == TD_F32)
        kt_fill_f32(rng, x, n, scale);
    else if (dtype == TD_BF16)
        kt_fill_bf16(rng, x, n, scale);
    else
        kt_fill_e4m3(rng, x, n);
}

/* -most .. most, small enough for each type to hold exactly. */
static inline void kt_fill_integers(kt_rng *rng, void *x, size_t n, int most, td_dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        const float v = (float)kt_int(rng, -most, most);
        if (dtype == TD_F32)
            ((float *)x)[i] = v;
        else if (dtype == TD_BF16)
            ((td_bf16 *)x)[i] = td_f32_to_bf16(v);
        else
            ((uint8_t *)x)[i] = td_f32_to_e4m3(v);
    }
}

static inline float kt_get(const void *x, size_t i, td_dtype dtype)
{
    return dtype == TD_F32    ? ((const float *)x)[i]
           : dtype == TD_BF16 ? td_bf16_to_f32(((const td_bf16 *)x)[i])
                              : td_e4m3_to_f32(((const uint8_t *)x)[i]);
}

/* ---- memory ---- */

/* Zeroed, 64-byte aligned, exactly n_bytes (ASan sees a read past the end); free(). */
static inline void *kt_alloc(size_t n_bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, n_bytes > 0 ? n_bytes : 1) != 0)
        abort();
    memset(p, 0, n_bytes);
    return p;
}

#define KT_GUARD 256

/* An output: rows of row_bytes at a stride, everything (rows, gaps, guards before and behind) full
 * of a pattern that is NaN as f32 and bf16, and no small number as int32. */
typedef struct {
    unsigned char *base; /* allocation */
    unsigned char *p;    /* first row */
    size_t rows, row_bytes, stride;
} kt_out;

static inline unsigned char kt_poison(size_t i)
{
    return i & 1 ? 0x7f : 0xfd;
}

static inline size_t kt_out_bytes(const kt_out *o)
{
    return 2 * KT_GUARD + o->rows * o->stride;
}

static inline void kt_out_poison(kt_out *o)
{
    for (size_t i = 0; i < kt_out_bytes(o); i++)
        o->base[i] = kt_poison(i);
}

static inline kt_out kt_out_new(size_t rows, size_t row_bytes, size_t stride_bytes)
{
    kt_out o = {NULL, NULL, rows, row_bytes, stride_bytes};
    o.base = kt_alloc(kt_out_bytes(&o));
    o.p = o.base + KT_GUARD;
    kt_out_poison(&o);
    return o;
}

/* Guards and the gaps between rows are as they were. */
static inline void kt_out_check(const kt_out *o)
{
    for (size_t i = 0; i < kt_out_bytes(o); i++) {
        if (i >= KT_GUARD && i < KT_GUARD + o->rows * o->stride &&
            (i - KT_GUARD) % o->stride < o->row_bytes)
            continue;
        if (o->base[i] != kt_poison(i)) {
            printf("byte %zd outside of the output was written\n",
                   (ptrdiff_t)i - (ptrdiff_t)KT_GUARD);
            TD_TRUE(0);
        }
    }
}

/* Two outputs of the same form hold the same bytes. */
static inline void kt_out_same(const kt_out *a, const kt_out *b)
{
    TD_EQ(a->rows, b->rows);
    TD_EQ(a->row_bytes, b->row_bytes);
    for (size_t r = 0; r < a->rows; r++)
        TD_MEM(a->p + r * a->stride, b->p + r * b->stride, a->row_bytes);
}

static inline void kt_out_free(kt_out *o)
{
    free(o->base);
    o->base = NULL;
}

/* ---- distances ---- */

/* Units in the last place between two numbers; two NaN are equal, NaN and a number are not. */
static inline int64_t kt_ulp_f32(float a, float b)
{
    int32_t u, v;
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b) ? 0 : INT64_MAX;
    memcpy(&u, &a, 4);
    memcpy(&v, &b, 4);
    int64_t x = u < 0 ? (int64_t)INT32_MIN - u : u;
    int64_t y = v < 0 ? (int64_t)INT32_MIN - v : v;
    return x < y ? y - x : x - y;
}

static inline int64_t kt_ulp_bf16(td_bf16 a, td_bf16 b)
{
    int64_t d = kt_ulp_f32(td_bf16_to_f32(a), td_bf16_to_f32(b));
    return d == INT64_MAX ? d : d >> 16;
}

/* ---- devices ---- */

static inline td_device *kt_open(uint32_t n_threads)
{
    td_device *device;
    TD_EQ(TD_OK, td_device_open_cpu(n_threads, 20, &device, NULL));
    return device;
}

static inline const char *kt_isa_name(td_isa isa)
{
    return isa == TD_ISA_AVX512 ? "avx512" : isa == TD_ISA_AVX2 ? "avx2" : "portable";
}

/* for (int isa = 0; kt_next_isa(stream, isa); isa++): every set this CPU has, slowest first. */
static inline int kt_next_isa(td_stream *stream, int isa)
{
    if (isa > TD_ISA_AVX512)
        return 0;
    td_cpu_set_isa(stream, (td_isa)isa);
    return td_cpu_isa(stream) == (td_isa)isa;
}
#endif
