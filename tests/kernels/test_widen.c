/* Exact: bits equal the reference's. */
#include "kernels/widen/widen.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

TEST(every_bf16_becomes_the_same_number)
{
    kt_ways w = kt_ways_open();
    td_bf16 *x = kt_alloc(65536 * 2);
    for (int i = 0; i < 65536; i++)
        x[i] = (td_bf16)i;
    kt_out want = kt_out_new(1, 65536 * 4, 65536 * 4), y = kt_out_new(1, 65536 * 4, 65536 * 4);
    td_widen_args a = {x, (float *)(void *)want.p, 256, 256};
    TD_EQ(TD_OK, td_widen_ref(&a, NULL));
    a.y = (float *)(void *)y.p;
    while (kt_ways_next(&w)) {
        kt_out_poison(&y);
        TD_EQ(TD_OK, td_widen_cpu(&a, w.stream));
        kt_out_check(&y);
        kt_out_same(&want, &y);
    }
    kt_out_free(&want);
    kt_out_free(&y);
    free(x);
    kt_ways_close(&w);
}

TEST(any_number_of_elements_and_nothing_behind_them)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 30; i++) {
        td_widen_args a = {.T = KT_PICK(&rng, 0, 1, 3, 70), .D = KT_PICK(&rng, 0, 1, 15, 17, 300)};
        const size_t n = (size_t)a.T * (size_t)a.D;
        td_bf16 *x = kt_alloc(n * 2);
        kt_fill_bf16(&rng, x, n, 1.0f);
        kt_out y = kt_out_new(1, n * 4, n * 4 + 8);
        a.x = x;
        a.y = (float *)(void *)y.p;
        while (kt_ways_next(&w)) {
            kt_out_poison(&y);
            TD_EQ(TD_OK, td_widen_cpu(&a, w.stream));
            kt_out_check(&y);
            for (size_t k = 0; k < n; k++)
                TD_TRUE(a.y[k] == td_bf16_to_f32(x[k]));
        }
        kt_out_free(&y);
        free(x);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    td_bf16 x[4] = {0};
    float y[4];
    const td_widen_args good = {x, y, 2, 2};
    td_widen_args bad[4] = {good, good, good, good};
    bad[0].T = -1;
    bad[1].D = -1;
    bad[2].x = NULL;
    bad[3].y = NULL;
    for (int i = 0; i < 4; i++)
        TD_EQ(TD_BAD_SHAPE, td_widen_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_widen_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
