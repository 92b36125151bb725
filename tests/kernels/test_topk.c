#include "kernels/topk/topk.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef enum { SPREAD, FEW_VALUES, ODD, FALLING, RISING, ZEROS, KINDS } kind;

static void fill(kt_rng *rng, float *x, int n, kind how)
{
    for (int i = 0; i < n; i++) {
        x[i] = kt_normal(rng);
        if (how == FEW_VALUES)
            x[i] = (float)kt_int(rng, -3, 3) * 0.5f;
        if (how == ODD && kt_int(rng, 0, 3) == 0)
            x[i] = kt_odd(rng);
        if (how == FALLING)
            x[i] = -(float)i;
        if (how == RISING)
            x[i] = (float)i;
        if (how == ZEROS) /* as when all relus are zero, of either sign */
            x[i] = kt_int(rng, 0, 50) == 0 ? x[i] : kt_int(rng, 0, 1) ? 0.0f : -0.0f;
    }
}

static void check(kt_rng *rng, kt_ways *w, int T, int k, int most)
{
    int64_t stride = most + kt_int(rng, 0, 9);
    float *logits = kt_alloc((size_t)(T * stride) * 4);
    int32_t *len = kt_alloc((size_t)T * 4);
    for (int t = 0; t < T; t++) {
        len[t] = kt_int(rng, 0, 3) == 0 ? kt_int(rng, 0, most) : most - kt_int(rng, 0, most / 9);
        fill(rng, logits + t * stride, len[t], (kind)kt_int(rng, 0, KINDS - 1));
    }
    size_t row = (size_t)k * 4;
    kt_out want = kt_out_new((size_t)T, row, row), got = kt_out_new((size_t)T, row, row);
    td_topk_args a = {logits, len, (int32_t *)(void *)want.p, T, k, stride};
    TD_EQ(TD_OK, td_topk_ref(&a, NULL));
    a.selected = (int32_t *)(void *)got.p;
    while (kt_ways_next(w)) {
        kt_out_poison(&got);
        TD_EQ(TD_OK, td_topk_cpu(&a, w->stream));
        kt_out_check(&got);
        kt_out_same(&want, &got);
    }
    kt_out_free(&want);
    kt_out_free(&got);
    free(logits);
    free(len);
}

TEST(selects_what_the_reference_selects)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 150; i++)
        check(&rng, &w, KT_PICK(&rng, 0, 1, 3, 7), KT_PICK(&rng, 1, 2, 15, 16, 17, 64, 256),
              KT_PICK(&rng, 1, 2, 15, 16, 17, 63, 64, 65, 100, 300, 1000, 3000));
    kt_ways_close(&w);
}

TEST(long_rows_match_whatever_stands_in_them)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 12; i++)
        check(&rng, &w, 3, KT_PICK(&rng, 1, 64, 2048), KT_PICK(&rng, 8192, 20000, 65535));
    check(&rng, &w, 2, 2048, 160000);
    kt_ways_close(&w);
}

/* A row in which the floor guessed from every 32nd entry is far too high, or reached by all. */
TEST(rows_that_deceive_the_guess_are_still_exact)
{
    kt_ways w = kt_ways_open();
    const int n = 30000, k = 100;
    float *x = kt_alloc((size_t)n * 4);
    int32_t got[100];
    for (int form = 0; form < 2; form++) {
        for (int i = 0; i < n; i++)
            x[i] = i % 32 == 0 ? (form == 0 ? 1.0f : -1.0f) : (float)(i % 1000) * 1e-4f;
        td_topk_args a = {x, &(int32_t){n}, got, 1, k, n};
        int32_t want[100];
        a.selected = want;
        TD_EQ(TD_OK, td_topk_ref(&a, NULL));
        a.selected = got;
        while (kt_ways_next(&w)) {
            TD_EQ(TD_OK, td_topk_cpu(&a, w.stream));
            TD_MEM(want, got, sizeof(got));
        }
    }
    free(x);
    kt_ways_close(&w);
}

TEST(short_rows_take_all_without_reading_scores)
{
    td_device *device = kt_open(1);
    float none = NAN;
    int32_t len[3] = {3, 0, 4}, got[12];
    td_topk_args a = {&none, len, got, 3, 4, 0};
    TD_EQ(TD_OK, td_topk_cpu(&a, td_device_stream(device)));
    const int32_t want[12] = {0, 1, 2, -1, -1, -1, -1, -1, 0, 1, 2, 3};
    TD_MEM(want, got, sizeof(got));
    td_device_close(device);
}

TEST(equal_scores_go_to_the_lowest_position)
{
    kt_ways w = kt_ways_open();
    const float x[8] = {1.0f, 0.0f, 5.0f, -0.0f, NAN, 0.0f, -INFINITY, -1.0f};
    int32_t len = 8, got[7];
    while (kt_ways_next(&w)) {
        td_topk_args a = {x, &len, got, 1, 4, 8};
        TD_EQ(TD_OK, td_topk_cpu(&a, w.stream));
        const int32_t four[4] = {0, 1, 2, 3}; /* 5, 1, then 0 at 1 and -0 at 3 before 0 at 5 */
        TD_MEM(four, got, sizeof(four));
        a.k = 7;
        TD_EQ(TD_OK, td_topk_cpu(&a, w.stream));
        const int32_t seven[7] = {0, 1, 2, 3, 4, 5, 7}; /* NaN at 4 is -inf, before -inf at 6 */
        TD_MEM(seven, got, sizeof(seven));
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    float x[4] = {0};
    int32_t len = 4, out[2];
    td_topk_args good = {x, &len, out, 1, 2, 4}, bad[] = {good, good, good, good, good, good, good};
    bad[0].T = -1;
    bad[1].k = -1;
    bad[2].stride = -1;
    bad[3].logits = NULL;
    bad[4].row_len = NULL;
    bad[5].selected = NULL;
    bad[6].stride = 3;
    for (int i = 0; i < 7; i++)
        TD_EQ(TD_BAD_SHAPE, td_topk_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
