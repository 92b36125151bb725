#include "kernels/argmax/argmax.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static void check(kt_ways *w, const float *x, int T, int V, int64_t stride)
{
    kt_out want = kt_out_new((size_t)T, 4, 4), got = kt_out_new((size_t)T, 4, 4);
    td_argmax_args a = {x, (int32_t *)(void *)want.p, T, V, stride};
    TD_EQ(TD_OK, td_argmax_ref(&a, NULL));
    a.ids = (int32_t *)(void *)got.p;
    while (kt_ways_next(w)) {
        kt_out_poison(&got);
        TD_EQ(TD_OK, td_argmax_cpu(&a, w->stream));
        kt_out_check(&got);
        kt_out_same(&want, &got);
    }
    kt_out_free(&want);
    kt_out_free(&got);
}

TEST(finds_what_the_reference_finds)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 300; i++) {
        int T = KT_PICK(&rng, 0, 1, 2, 5), V = KT_PICK(&rng, 1, 2, 15, 16, 17, 64, 100, 1000, 8191);
        int64_t stride = V + kt_int(&rng, 0, 5);
        float *x = kt_alloc((size_t)(T * stride) * 4);
        for (int j = 0; j < T * (int)stride; j++) {
            x[j] = i % 3 == 0 ? (float)kt_int(&rng, -4, 4) : kt_normal(&rng);
            if (i % 2 == 0 && kt_int(&rng, 0, 3) == 0)
                x[j] = kt_odd(&rng);
        }
        check(&w, x, T, V, stride);
        free(x);
    }
    kt_ways_close(&w);
}

TEST(ties_and_nan_follow_the_contract)
{
    kt_ways w = kt_ways_open();
    const float rows[4][5] = {{NAN, NAN, NAN, NAN, NAN},
                              {-INFINITY, NAN, -INFINITY, NAN, -INFINITY},
                              {NAN, -INFINITY, -3.0f, NAN, -3.0f},
                              {-1.0f, -0.0f, 0.0f, -0.0f, NAN}};
    const int32_t want[4] = {0, 0, 2, 1};
    int32_t got[4];
    while (kt_ways_next(&w)) {
        td_argmax_args a = {rows[0], got, 4, 5, 5};
        TD_EQ(TD_OK, td_argmax_cpu(&a, w.stream));
        TD_MEM(want, got, sizeof(got));
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    float x[8] = {0};
    int32_t ids[2];
    td_argmax_args good = {x, ids, 2, 4, 4}, bad[] = {good, good, good, good, good};
    bad[0].T = -1;
    bad[1].V = 0;
    bad[2].logits = NULL;
    bad[3].ids = NULL;
    bad[4].stride = 3;
    for (int i = 0; i < 5; i++)
        TD_EQ(TD_BAD_SHAPE, td_argmax_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
