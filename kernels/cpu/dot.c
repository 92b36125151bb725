#include "kernels/cpu/dot.h"

#include <string.h>

#include "kernels/cpu/dot_kernel.h"
#include "kernels/numbers.h"

#define LANES TD_DOT_LANES
#define PAD 16      /* elements; keeps rows off one another's cache sets */
#define DIRECT_M 12 /* the largest direct_m */
#define STEP 8      /* rows of w that are read, or widened, at a time */
#define PORTABLE_MR 2

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* ---- portable kernel ---- */

static float e4m3_values[256]; /* 2^-8 times the value of a code; filled once, before main */

__attribute__((constructor)) static void fill_values(void)
{
    for (int code = 0; code < 256; code++)
        e4m3_values[code] = td_e4m3_to_f32((uint8_t)code) / TD_DOT_E4M3_UNIT;
}

static void portable_widen(td_dtype dtype, const void *src, int n, float scale, float *dst)
{
    int k = 0;
    for (; dtype == TD_F32 && k < n; k++)
        dst[k] = ((const float *)src)[k] * scale;
    for (; dtype == TD_BF16 && k < n; k++)
        dst[k] = td_bf16_to_f32(((const td_bf16 *)src)[k]) * scale;
    for (; k < n; k++)
        dst[k] = e4m3_values[((const uint8_t *)src)[k]] * scale;
    memset(dst + n, 0, (size_t)(round_up(n, LANES) - n) * sizeof(*dst));
}

static float sum_lanes(const float *v)
{
    float q[4];
    for (int i = 0; i < 4; i++)
        q[i] = (v[2 * i] + v[2 * i + 8]) + (v[2 * i + 1] + v[2 * i + 9]);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

static void portable_run(td_dtype dtype, int m, const td_dot_chunk *c)
{
    (void)dtype; /* always f32 */
    for (int j = 0; j < c->n; j++) {
        const float *b = (const float *)c->b + j * c->ldb;
        for (int i = 0; i < m; i++) {
            const float *a = c->a + i * c->lda;
            float acc[LANES] = {0};
            for (int k = 0; k < c->K; k += LANES)
                for (int l = 0; l < LANES; l++)
                    acc[l] += a[k + l] * b[k + l];
            c->out[i * c->out_stride + j] += sum_lanes(acc);
        }
    }
}

const td_dot_kernel td_dot_portable = {PORTABLE_MR, {0}, portable_run, portable_widen};

/* ---- blocks ---- */

static const td_dot_kernel *kernel_for(td_isa isa)
{
#if TD_X86
    if (isa == TD_ISA_AVX512)
        return &td_dot_avx512;
    if (isa == TD_ISA_AVX2)
        return &td_dot_avx2;
#endif
    (void)isa;
    return &td_dot_portable;
}

/* Columns k0 .. k0 + n - 1 of row i of the block, with both scales. k0 is a multiple of 128. */
static void load_x(const td_dot_kernel *kernel, const td_dot_args *d, int i, int k0, int n,
                   float *dst)
{
    const int64_t row = d->rows != NULL ? d->rows[i] : i;
    const unsigned char *src =
        (const unsigned char *)d->x + (row * d->x_stride + k0) * (int64_t)td_dtype_bytes(d->dtype);
    if (d->dtype != TD_E4M3) {
        kernel->widen(d->dtype, src, n, 1.0f, dst);
        return;
    }
    const int n_groups = td_ceil_div(d->K, TD_QUANT_GROUP);
    for (int k = 0; k < n; k += TD_QUANT_GROUP) {
        int group = (k0 + k) / TD_QUANT_GROUP;
        float scale = d->xs[row * n_groups + group] * d->ws[group];
        scale *= TD_DOT_E4M3_UNIT * TD_DOT_E4M3_UNIT; /* x's and w's */
        kernel->widen(TD_E4M3, src + k, least(n - k, TD_QUANT_GROUP), scale, dst + k);
    }
}

static const void *w_at(const td_dot_args *d, int j, int k)
{
    return (const unsigned char *)d->w +
           ((size_t)j * (size_t)d->K + (size_t)k) * td_dtype_bytes(d->dtype);
}

/* All m rows of a against c's rows of b, in groups of nearly equal size. */
static void run_groups(const td_dot_kernel *kernel, td_dtype dtype, int m, const td_dot_chunk *c)
{
    const int n_groups = td_ceil_div(m, kernel->mr);
    for (int g = 0; g < n_groups; g++) {
        int i = (int)((int64_t)m * g / n_groups), end = (int)((int64_t)m * (g + 1) / n_groups);
        td_dot_chunk part = *c;
        part.a += i * c->lda;
        part.out += i * c->out_stride;
        kernel->run(dtype, end - i, &part);
    }
}

/* Few rows: all of x in scratch, w streams by once and is widened in registers. */
static void dot_direct(const td_dot_kernel *kernel, const td_dot_args *d, float *a, float *out,
                       int64_t out_stride)
{
    const int lda = round_up(d->K, LANES) + PAD;
    for (int i = 0; i < d->m; i++)
        load_x(kernel, d, i, 0, d->K, a + (int64_t)i * lda);
    for (int j = 0; j < d->n; j += STEP)
        for (int k = 0; k < d->K; k += TD_DOT_CHUNK) {
            td_dot_chunk c = {.a = a + k, .b = w_at(d, j, k), .out = out + j};
            c.lda = lda;
            c.ldb = d->K;
            c.out_stride = out_stride;
            c.n = least(d->n - j, STEP);
            c.K = least(d->K - k, TD_DOT_CHUNK);
            run_groups(kernel, d->dtype, d->m, &c);
        }
}

/* Many rows: a chunk of x in the second-level cache; STEP rows of w at a time are widened into
 * scratch and meet all rows of x there. */
static void dot_packed(const td_dot_kernel *kernel, const td_dot_args *d, float *a, float *out,
                       int64_t out_stride)
{
    const int ld = least(round_up(d->K, LANES), TD_DOT_CHUNK) + PAD;
    float *b = a + (int64_t)d->m * ld;
    for (int k = 0; k < d->K; k += TD_DOT_CHUNK) {
        const int n_k = least(d->K - k, TD_DOT_CHUNK);
        for (int i = 0; i < d->m; i++)
            load_x(kernel, d, i, k, n_k, a + (int64_t)i * ld);
        for (int j = 0; j < d->n; j += STEP) {
            td_dot_chunk c = {.a = a, .b = b, .out = out + j, .lda = ld, .ldb = ld};
            c.out_stride = out_stride;
            c.n = least(d->n - j, STEP);
            c.K = round_up(n_k, LANES);
            for (int r = 0; r < c.n; r++)
                kernel->widen(d->dtype, w_at(d, j + r, k), n_k, 1.0f, b + (int64_t)r * ld);
            run_groups(kernel, TD_F32, d->m, &c);
        }
    }
}

size_t td_dot_scratch_bytes(int m, int K)
{
    size_t direct = (size_t)least(m, DIRECT_M) * ((size_t)round_up(K, LANES) + PAD);
    size_t packed = ((size_t)m + STEP) * (TD_DOT_CHUNK + PAD);
    return (direct > packed ? direct : packed) * sizeof(float);
}

void td_dot(td_isa isa, const td_dot_args *d, void *scratch, float *out, int64_t out_stride)
{
    const td_dot_kernel *kernel = kernel_for(isa);
    for (int i = 0; i < d->m; i++)
        memset(out + i * out_stride, 0, (size_t)d->n * sizeof(*out));
    if (d->K <= 0)
        return;
    if (d->m <= kernel->direct_m[d->dtype])
        dot_direct(kernel, d, scratch, out, out_stride);
    else
        dot_packed(kernel, d, scratch, out, out_stride);
}
