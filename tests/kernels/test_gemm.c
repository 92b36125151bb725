/* Sums: an element of the CPU form adds, per chunk of 1024, at most 64 products in each of 16
 * lanes, then 4 levels of lanes, then the chunks; x * (xs * ws) is rounded twice. The reference
 * adds 128 products, scales twice, then adds K / 128 blocks. Each addition and rounding is off by
 * at most 2^-24 of what it adds up, so with S = sum of |x w scales| the two differ by less than (64
 * + 4 + K/1024 + 2 + 128 + K/128 + 4) * 2^-24 * S. bf16 results: one bf16 step more. */
#include "kernels/gemm/gemm.h"
#include "tests/common/base/td_hard.h"
#include "tests/kernels/kernel_test.h"

TD_TEST_MAIN

typedef struct {
    td_gemm_args a;
    kt_out y, want;
    void *x, *w;
    float *xs, *ws;
    float *old; /* [M, N] what y holds before, where it is added to */
} problem;

typedef enum { INTEGERS, NORMAL } values;

static int n_groups(int K)
{
    return td_ceil_div(K, TD_QUANT_GROUP);
}

static void fill_scales(kt_rng *rng, float *s, size_t n, values v)
{
    for (size_t i = 0; i < n; i++)
        s[i] = v == INTEGERS ? (float)(1 << kt_int(rng, 0, 2)) : 0.001f + kt_unit(rng);
}

/* Inputs end exactly where their last element does. */
static problem make(kt_rng *rng, int M, int N, int K, td_dtype dtype, values v)
{
    problem p = {.a = {.M = M, .N = N, .K = K, .dtype = dtype}};
    const size_t size = td_dtype_bytes(dtype);
    p.a.x_stride = K + kt_int(rng, 0, 9);
    p.a.y_stride = N + kt_int(rng, 0, 9);
    p.a.y_dtype = kt_int(rng, 0, 1) ? TD_F32 : TD_BF16;
    p.a.accumulate = p.a.y_dtype == TD_F32 && kt_int(rng, 0, 1);
    const size_t nx = M > 0 ? (size_t)(M - 1) * (size_t)p.a.x_stride + (size_t)K : 0;
    const size_t nw = (size_t)N * (size_t)K;
    p.x = kt_alloc(nx * size);
    p.w = kt_alloc(nw * size);
    if (v == INTEGERS) {
        kt_fill_integers(rng, p.x, nx, 4, dtype);
        kt_fill_integers(rng, p.w, nw, 4, dtype);
    } else {
        kt_fill_act(rng, p.x, nx, 1.0f, dtype);
        kt_fill_act(rng, p.w, nw, 1.0f, dtype);
    }
    p.a.x = p.x;
    p.a.w = p.w;
    if (dtype == TD_E4M3) {
        size_t n_xs = (size_t)M * (size_t)n_groups(K), n_ws = (size_t)(n_groups(N) * n_groups(K));
        p.xs = kt_alloc(n_xs * 4);
        p.ws = kt_alloc(n_ws * 4);
        fill_scales(rng, p.xs, n_xs, v);
        fill_scales(rng, p.ws, n_ws, v);
        p.a.xs = p.xs;
        p.a.ws = p.ws;
    }
    const size_t y_size = td_dtype_bytes(p.a.y_dtype);
    p.y = kt_out_new((size_t)M, (size_t)N * y_size, (size_t)p.a.y_stride * y_size);
    p.want = kt_out_new((size_t)M, (size_t)N * y_size, (size_t)p.a.y_stride * y_size);
    p.old = kt_alloc((size_t)M * (size_t)N * 4);
    for (size_t i = 0; i < (size_t)M * (size_t)N; i++)
        p.old[i] = (float)kt_int(rng, -9, 9);
    return p;
}

static void set_old(const problem *p, kt_out *y)
{
    kt_out_poison(y);
    for (int m = 0; p->a.accumulate && m < p->a.M; m++)
        memcpy(y->p + (size_t)m * y->stride, p->old + (size_t)m * (size_t)p->a.N, y->row_bytes);
}

static void run_ref(problem *p)
{
    td_gemm_args a = p->a;
    set_old(p, &p->want);
    a.y = p->want.p;
    TD_EQ(TD_OK, td_gemm_ref(&a, NULL));
}

static void run_cpu(problem *p, td_stream *stream)
{
    td_gemm_args a = p->a;
    set_old(p, &p->y);
    a.y = p->y.p;
    TD_EQ(TD_OK, td_gemm_cpu(&a, stream));
    kt_out_check(&p->y);
}

static void drop(problem *p)
{
    kt_out_free(&p->y);
    kt_out_free(&p->want);
    free(p->x);
    free(p->w);
    free(p->xs);
    free(p->ws);
    free(p->old);
}

/* Sizes around every edge of the blocking, at most `most` multiplications. */
static void draw_shape(kt_rng *rng, int most, int *M, int *N, int *K)
{
    static const int ms[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 95, 96, 97, 193};
    static const int ns[] = {1, 2, 3, 4, 5, 7, 8, 9, 127, 128, 129, 200, 300};
    static const int ks[] = {1,   7,   15,  16,  17,   31,   33,   127,  128,
                             129, 160, 576, 999, 1023, 1024, 1025, 1300, 2100};
    do {
        *M = kt_int(rng, 0, 3) ? ms[kt_int(rng, 0, 12)] : kt_int(rng, 1, 210);
        *N = kt_int(rng, 0, 3) ? ns[kt_int(rng, 0, 12)] : kt_int(rng, 1, 400);
        *K = kt_int(rng, 0, 3) ? ks[kt_int(rng, 0, 17)] : kt_int(rng, 1, 2500);
    } while ((int64_t)*M * *N * *K > most);
}

TEST(sums_of_small_integers_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    for (int i = 0; i < 60; i++) {
        int M, N, K;
        draw_shape(&rng, 2000000, &M, &N, &K);
        td_device *device = kt_open(1 + (uint32_t)i % 3);
        td_stream *stream = td_device_stream(device);
        problem p = make(&rng, M, N, K, (td_dtype)(i % 3), INTEGERS);
        for (int isa = 0; kt_next_isa(stream, isa); isa++) {
            run_cpu(&p, stream);
            if (isa == 0)
                run_ref(&p);
            kt_out_same(&p.want, &p.y);
        }
        drop(&p);
        td_device_close(device);
    }
}

/* Sum of |x w| with scales, for the bound. */
static double magnitude(const problem *p, int m, int n)
{
    double s = 0;
    for (int k = 0; k < p->a.K; k++) {
        double v = fabs((double)kt_get(p->x, (size_t)(m * p->a.x_stride + k), p->a.dtype) *
                        (double)kt_get(p->w, (size_t)n * (size_t)p->a.K + (size_t)k, p->a.dtype));
        if (p->a.dtype == TD_E4M3)
            v *= (double)p->xs[m * n_groups(p->a.K) + k / 128] *
                 (double)p->ws[n / 128 * n_groups(p->a.K) + k / 128];
        s += v;
    }
    return s;
}

static void compare(const problem *p)
{
    const int steps = 64 + 4 + p->a.K / 1024 + 2 + 128 + p->a.K / 128 + 4;
    for (int m = 0; m < p->a.M; m++)
        for (int n = 0; n < p->a.N; n++) {
            size_t at = (size_t)(m * p->a.y_stride + n);
            double got = (double)kt_get(p->y.p, at, p->a.y_dtype);
            double want = (double)kt_get(p->want.p, at, p->a.y_dtype);
            double old = p->a.accumulate ? fabs((double)p->old[m * p->a.N + n]) : 0;
            double bound = steps * 0x1p-24 * (magnitude(p, m, n) + old);
            if (p->a.y_dtype == TD_BF16)
                bound += 0x1p-7 * fabs(want);
            if (!(fabs(got - want) <= bound)) {
                printf("M %d N %d K %d dtype %d: [%d, %d] is %.9g, reference %.9g, bound %g\n",
                       p->a.M, p->a.N, p->a.K, p->a.dtype, m, n, got, want, bound);
                TD_TRUE(0);
            }
        }
}

TEST(sums_are_within_rounding_of_the_reference)
{
    kt_rng rng = kt_seeded();
    for (int i = 0; i < 30; i++) {
        int M, N, K;
        draw_shape(&rng, 1000000, &M, &N, &K);
        td_device *device = kt_open(1 + (uint32_t)i % 3);
        td_stream *stream = td_device_stream(device);
        problem p = make(&rng, M, N, K, (td_dtype)(i % 3), NORMAL);
        for (int isa = 0; kt_next_isa(stream, isa); isa++) {
            run_cpu(&p, stream);
            if (isa == 0)
                run_ref(&p);
            compare(&p);
        }
        drop(&p);
        td_device_close(device);
    }
}

static void keep(problem *p)
{
    memcpy(p->want.base, p->y.base, kt_out_bytes(&p->y));
}

TEST(a_row_does_not_depend_on_the_others_or_the_threads)
{
    kt_rng rng = kt_seeded();
    for (int i = 0; i < 18; i++) {
        int M, N, K;
        draw_shape(&rng, 8000000, &M, &N, &K);
        problem p = make(&rng, M, N, K, (td_dtype)(i % 3), NORMAL);
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
            td_device *device = kt_open(n_threads);
            td_stream *stream = td_device_stream(device);
            for (int isa = 0; kt_next_isa(stream, isa); isa++) {
                td_cpu_set_isa(stream, (td_isa)isa);
                run_cpu(&p, stream);
                keep(&p);
                run_cpu(&p, stream); /* twice: the same bits */
                kt_out_same(&p.want, &p.y);
                set_old(&p, &p.y);
                for (int m = 0; m < M;) { /* alone, then in small groups */
                    td_gemm_args a = p.a;
                    a.M = m < 8 ? 1 : kt_int(&rng, 1, 20);
                    a.M = a.M < M - m ? a.M : M - m;
                    a.x = (char *)p.x + (size_t)(m * a.x_stride) * td_dtype_bytes(a.dtype);
                    a.xs = a.xs == NULL ? NULL : a.xs + m * n_groups(K);
                    a.y = p.y.p + (size_t)m * p.y.stride;
                    TD_EQ(TD_OK, td_gemm_cpu(&a, stream));
                    m += a.M;
                }
                kt_out_same(&p.want, &p.y);
            }
            td_device_close(device);
        }
        drop(&p);
    }
}

TEST(avx2_and_avx512_give_the_same_bits)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(2);
    td_stream *stream = td_device_stream(device);
    td_cpu_set_isa(stream, TD_ISA_AVX512);
    if (td_cpu_isa(stream) != TD_ISA_AVX512)
        td_skip("no AVX-512");
    for (int i = 0; i < 30; i++) {
        int M, N, K;
        draw_shape(&rng, 4000000, &M, &N, &K);
        problem p = make(&rng, M, N, K, (td_dtype)(i % 3), NORMAL);
        td_cpu_set_isa(stream, TD_ISA_AVX512);
        run_cpu(&p, stream);
        keep(&p);
        td_cpu_set_isa(stream, TD_ISA_AVX2);
        run_cpu(&p, stream);
        kt_out_same(&p.want, &p.y);
        drop(&p);
    }
    td_device_close(device);
}

/* NaN and infinity in x and w come out where the reference has them. */
TEST(nan_and_inf_go_where_they_belong)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(2);
    td_stream *stream = td_device_stream(device);
    for (int i = 0; i < 45; i++) {
        int M = i % 2 ? kt_int(&rng, 1, 6) : kt_int(&rng, 7, 30), N = kt_int(&rng, 1, 40);
        int K = kt_int(&rng, 1, 300);
        const td_dtype dtype = (td_dtype)(i % 3);
        problem p = make(&rng, M, N, K, dtype, INTEGERS);
        for (int bad = 0; bad < 3; bad++) {
            float v = dtype == TD_E4M3 || kt_int(&rng, 0, 1) ? NAN : -INFINITY;
            size_t m = (size_t)kt_int(&rng, 0, M - 1), n = (size_t)kt_int(&rng, 0, N - 1);
            size_t k = (size_t)kt_int(&rng, 0, K - 1);
            size_t at = bad < 2 ? m * (size_t)p.a.x_stride + k : n * (size_t)K + k;
            void *t = bad < 2 ? p.x : p.w;
            if (dtype == TD_F32)
                ((float *)t)[at] = v;
            else if (dtype == TD_BF16)
                ((td_bf16 *)t)[at] = td_f32_to_bf16(v);
            else
                ((uint8_t *)t)[at] = kt_int(&rng, 0, 1) ? 0x7f : 0xff;
        }
        run_ref(&p);
        for (int isa = 0; kt_next_isa(stream, isa); isa++) {
            run_cpu(&p, stream);
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++) {
                    size_t at = (size_t)(m * p.a.y_stride + n);
                    float got = kt_get(p.y.p, at, p.a.y_dtype);
                    TD_EQ(0, kt_ulp_f32(kt_get(p.want.p, at, p.a.y_dtype), got));
                }
        }
        drop(&p);
    }
    td_device_close(device);
}

TEST(empty_sizes)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(2);
    td_stream *stream = td_device_stream(device);
    for (int isa = 0; kt_next_isa(stream, isa); isa++) {
        for (int d = 0; d < 3; d++) {
            problem p = make(&rng, 3, 5, 0, (td_dtype)d, INTEGERS);
            p.a.x = p.a.w = NULL; /* K = 0: zeros, or nothing added */
            p.a.xs = p.a.ws = NULL;
            run_cpu(&p, stream);
            for (int m = 0; m < 3; m++)
                for (int n = 0; n < 5; n++)
                    TD_TRUE(kt_get(p.y.p, (size_t)(m * p.a.y_stride + n), p.a.y_dtype) ==
                            (p.a.accumulate ? p.old[m * 5 + n] : 0.0f));
            drop(&p);
        }
        td_gemm_args a = {.N = 4, .K = 4};
        TD_EQ(TD_OK, td_gemm_cpu(&a, stream));
        a = (td_gemm_args){.M = 4, .K = 4, .x_stride = 4};
        TD_EQ(TD_OK, td_gemm_cpu(&a, stream));
    }
    td_device_close(device);
}

TEST(says_when_memory_is_short)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(3);
    problem p = make(&rng, 20, 30, 40, TD_BF16, INTEGERS);
    p.a.y = p.y.p;
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_gemm_cpu(&p.a, td_device_stream(device)), (void)0);
    drop(&p);
    td_device_close(device);
}

TEST(refuses_what_it_cannot_do)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    problem p = make(&rng, 2, 3, 4, TD_E4M3, INTEGERS);
    p.a.y = p.y.p;
    td_gemm_args bad[12];
    for (int i = 0; i < 12; i++)
        bad[i] = p.a;
    bad[0].M = -1;
    bad[1].N = -1;
    bad[2].K = -1;
    bad[3].x = NULL;
    bad[4].w = NULL;
    bad[5].xs = NULL;
    bad[6].ws = NULL;
    bad[7].y = NULL;
    bad[8].x_stride = 3;
    bad[9].y_stride = 2;
    bad[10].y_dtype = TD_E4M3;
    bad[11].y_dtype = TD_BF16;
    bad[11].accumulate = 1;
    kt_out_poison(&p.y);
    for (int i = 0; i < 12; i++)
        TD_EQ(TD_BAD_SHAPE, td_gemm_cpu(&bad[i], stream));
    for (size_t i = 0; i < kt_out_bytes(&p.y); i++)
        TD_EQ(kt_poison(i), p.y.base[i]);
    drop(&p);
    td_device_close(device);
}
