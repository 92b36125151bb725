#include "kernels/index_weights/index_weights.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

TEST(has_the_references_bits_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        int T = KT_PICK(&rng, 0, 1, 3, 700), Hi = KT_PICK(&rng, 1, 3, 4, 16, 64);
        size_t n = (size_t)T * (size_t)Hi, row = (size_t)Hi * 4;
        float *xw = kt_alloc(n * 4), *qs = kt_alloc(n * 4);
        kt_fill_f32(&rng, xw, n, 1.0f);
        kt_fill_f32(&rng, qs, n, 0.01f);
        kt_out want = kt_out_new((size_t)T, row, row), got = kt_out_new((size_t)T, row, row);
        td_index_weights_args a = {xw, i % 3 == 0 ? NULL : qs, (float *)(void *)want.p, T,
                                   Hi, KT_PICK(&rng, 32, 128)};
        TD_EQ(TD_OK, td_index_weights_ref(&a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&got);
            a.w = (float *)(void *)got.p;
            TD_EQ(TD_OK, td_index_weights_cpu(&a, w.stream));
            kt_out_check(&got);
            kt_out_same(&want, &got);
            memcpy(got.p, xw, n * 4); /* in place */
            td_index_weights_args in_place = a;
            in_place.xw = a.w;
            TD_EQ(TD_OK, td_index_weights_cpu(&in_place, w.stream));
            kt_out_same(&want, &got);
        }
        kt_out_free(&want);
        kt_out_free(&got);
        free(xw);
        free(qs);
    }
    kt_ways_close(&w);
}

TEST(is_the_formula_of_the_specification)
{
    td_device *device = kt_open(1);
    float xw = 0.75f, qs = 0x1p-5f, w;
    td_index_weights_args a = {&xw, &qs, &w, 1, 1, 128};
    TD_EQ(TD_OK, td_index_weights_cpu(&a, td_device_stream(device)));
    TD_TRUE(w == 0.75f * 0x1p-5f * 0.08838834764831845f);
    td_device_close(device);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    float xw = 1.0f, w;
    td_index_weights_args good = {&xw, NULL, &w, 1, 1, 128}, bad[] = {good, good, good, good, good};
    bad[0].T = -1;
    bad[1].Hi = 0;
    bad[2].dim = 0;
    bad[3].xw = NULL;
    bad[4].w = NULL;
    for (int i = 0; i < 5; i++)
        TD_EQ(TD_BAD_SHAPE, td_index_weights_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
