/* The same product as gemm, so the same bound (test_gemm.c): the two forms differ by less than
 * (64 + 4 + K/1024 + K + 2) * 2^-24 * sum |x w| (the reference adds K products one after the
 * other); in bf16 one step more. Small integers: equal bits. */
#include "kernels/head_gemm/head_gemm.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_head_gemm_args a;
    void *x, *w;
    kt_out y, want; /* rows of H heads */
} problem;

static void fill(kt_rng *rng, void *x, size_t n, td_dtype act, int integers)
{
    if (integers)
        kt_fill_integers(rng, x, n, 4, act);
    else
        kt_fill_act(rng, x, n, 1.0f, act);
}

/* Heads of y stand side by side with a gap, as parts of wider rows. */
static problem make(kt_rng *rng, int T, int H, int N, int K, td_dtype act, int integers)
{
    problem p = {.a = {.T = T, .H = H, .N = N, .K = K, .act = act}};
    const size_t size = td_dtype_bytes(act);
    p.a.x_head = K + kt_int(rng, 0, 5);
    p.a.x_row = H * p.a.x_head + kt_int(rng, 0, 5);
    p.a.y_head = N + kt_int(rng, 0, 5);
    p.a.y_row = H * p.a.y_head;
    const size_t nx = T * H > 0 ? (size_t)((T - 1) * p.a.x_row + (H - 1) * p.a.x_head + K) : 0;
    const size_t nw = (size_t)H * (size_t)N * (size_t)K;
    p.x = kt_alloc(nx * size);
    p.w = kt_alloc(nw * size);
    fill(rng, p.x, nx, act, integers);
    fill(rng, p.w, nw, act, integers);
    p.y = kt_out_new((size_t)(T * H), (size_t)N * size, (size_t)p.a.y_head * size);
    p.want = kt_out_new((size_t)(T * H), (size_t)N * size, (size_t)p.a.y_head * size);
    p.a.x = p.x;
    p.a.w = p.w;
    p.a.y = p.want.p;
    TD_EQ(TD_OK, td_head_gemm_ref(&p.a, NULL));
    p.a.y = p.y.p;
    return p;
}

static void drop(problem *p)
{
    kt_out_free(&p->y);
    kt_out_free(&p->want);
    free(p->x);
    free(p->w);
}

static problem draw(kt_rng *rng, int i, int integers)
{
    int T, H, N, K;
    do {
        T = KT_PICK(rng, 1, 2, 5, 7, 40, 100);
        H = KT_PICK(rng, 1, 2, 5, 16);
        N = KT_PICK(rng, 1, 3, 64, 128, 130, 512);
        K = KT_PICK(rng, 1, 15, 16, 64, 128, 200, 512, 1100);
    } while ((int64_t)T * H * N * K > 3000000);
    return make(rng, T, H, N, K, i % 2 ? TD_BF16 : TD_F32, integers);
}

TEST(sums_of_small_integers_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 20; i++) {
        problem p = draw(&rng, i, 1);
        while (kt_ways_next(&w)) {
            kt_out_poison(&p.y);
            TD_EQ(TD_OK, td_head_gemm_cpu(&p.a, w.stream));
            kt_out_check(&p.y);
            kt_out_same(&p.want, &p.y);
        }
        drop(&p);
    }
    kt_ways_close(&w);
}

static void compare(const problem *p)
{
    const td_head_gemm_args *a = &p->a;
    const int steps = 64 + 4 + a->K / 1024 + a->K + 2;
    for (int64_t row = 0; row < (int64_t)a->T * a->H; row++)
        for (int64_t n = 0; n < a->N; n++) {
            int64_t t = row / a->H, h = row % a->H;
            double s = 0;
            for (int64_t k = 0; k < a->K; k++)
                s += fabs((double)kt_get(p->x, (size_t)(t * a->x_row + h * a->x_head + k), a->act) *
                          (double)kt_get(p->w, (size_t)((h * a->N + n) * a->K + k), a->act));
            size_t at = (size_t)(row * a->y_head + n);
            double got = (double)kt_get(p->y.p, at, a->act);
            double want = (double)kt_get(p->want.p, at, a->act);
            TD_TRUE(fabs(got - want) <=
                    steps * 0x1p-24 * s + (a->act == TD_BF16 ? 0x1p-7 * fabs(want) : 0.0));
        }
}

TEST(sums_are_within_rounding_of_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 8; i++) {
        problem p = draw(&rng, i, 0);
        kt_first first = {{NULL, NULL}};
        while (kt_ways_next(&w)) {
            kt_out_poison(&p.y);
            TD_EQ(TD_OK, td_head_gemm_cpu(&p.a, w.stream));
            kt_out_check(&p.y);
            kt_first_same(&first, &w, &p.y, p.a.act); /* thread counts; AVX2 and AVX-512 */
            if (w.threads == 1)
                compare(&p);
        }
        kt_first_free(&first);
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(a_row_does_not_depend_on_the_others)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 10; i++) {
        problem p = draw(&rng, i, 0);
        const size_t size = td_dtype_bytes(p.a.act);
        while (kt_ways_next(&w)) {
            kt_out_poison(&p.want);
            kt_out_poison(&p.y);
            td_head_gemm_args a = p.a;
            a.y = p.want.p;
            TD_EQ(TD_OK, td_head_gemm_cpu(&a, w.stream));
            for (int64_t t = 0; t < p.a.T; t++) {
                a.T = 1;
                a.x = (char *)p.x + (size_t)(t * a.x_row) * size;
                a.y = p.y.p + (size_t)(t * a.y_row) * size;
                TD_EQ(TD_OK, td_head_gemm_cpu(&a, w.stream));
            }
            kt_out_same(&p.want, &p.y);
        }
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(empty_sizes_and_refusals)
{
    td_device *device = kt_open(2);
    td_stream *stream = td_device_stream(device);
    float x[8] = {0}, w[8] = {0}, y[8];
    const td_head_gemm_args good = {x, w, y, 2, 2, 2, 2, 4, 2, 4, 2, TD_F32};
    td_head_gemm_args bad[12];
    for (int i = 0; i < 12; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].H = -1;
    bad[2].N = -1;
    bad[3].K = -1;
    bad[4].x = NULL;
    bad[5].w = NULL;
    bad[6].y = NULL;
    bad[7].y_row = 1;
    bad[8].y_head = 1;
    bad[9].act = TD_E4M3;
    bad[10].x_row = -1;
    bad[11].x_head = -1;
    for (int i = 0; i < 12; i++)
        TD_EQ(TD_BAD_SHAPE, td_head_gemm_cpu(&bad[i], stream));
    TD_EQ(TD_OK, td_head_gemm_cpu(&good, stream));
    td_head_gemm_args none = {.T = 2, .H = 0, .N = 2, .K = 2, .act = TD_BF16};
    TD_EQ(TD_OK, td_head_gemm_cpu(&none, stream));
    td_head_gemm_args zero = {.y = y, .T = 2, .H = 2, .N = 2, .y_row = 4, .y_head = 2};
    memset(y, 0xff, sizeof(y));
    TD_EQ(TD_OK, td_head_gemm_cpu(&zero, stream));
    for (int i = 0; i < 8; i++)
        TD_TRUE(y[i] == 0.0f);
    td_device_close(device);
}
