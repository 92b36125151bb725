/* f32 additions in the order of the parts and one rounding: bits equal the reference's. NaN equals
 * NaN: which of two payloads survives an addition is the machine's choice. */
#include "kernels/sum_partials/sum_partials.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static void check(const kt_out *want, const kt_out *y, size_t n, td_dtype act)
{
    for (size_t i = 0; i < n; i++) {
        float a = kt_get(want->p, i, act), b = kt_get(y->p, i, act);
        TD_EQ(0, kt_ulp_f32(a, b));
        TD_TRUE(isnan(a) || signbit(a) == signbit(b));
    }
}

TEST(sums_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 40; i++) {
        td_sum_partials_args a = {.P = KT_PICK(&rng, 1, 1, 2, 4, 9),
                                  .act = i % 2 ? TD_BF16 : TD_F32};
        a.T = KT_PICK(&rng, 0, 1, 3, 70);
        a.D = KT_PICK(&rng, 0, 1, 15, 17, 256, 1000);
        const size_t n = (size_t)a.T * (size_t)a.D;
        a.part_stride = (int64_t)n + KT_PICK(&rng, 0, 0, 5);
        const size_t all = (size_t)(a.P - 1) * (size_t)a.part_stride + n;
        float *parts = kt_alloc(all * 4);
        kt_fill_f32(&rng, parts, all, 1.0f);
        for (size_t k = 0; k < all && i % 4 > 1; k += 5)
            parts[k] = kt_odd(&rng);
        const size_t bytes = n * td_dtype_bytes(a.act);
        kt_out want = kt_out_new(1, bytes, bytes + 8), y = kt_out_new(1, bytes, bytes + 8);
        a.parts = parts;
        a.y = want.p;
        TD_EQ(TD_OK, td_sum_partials_ref(&a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&y);
            a.y = y.p;
            TD_EQ(TD_OK, td_sum_partials_cpu(&a, w.stream));
            kt_out_check(&y);
            check(&want, &y, n, a.act);
        }
        kt_out_free(&want);
        kt_out_free(&y);
        free(parts);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    float parts[8] = {0}, y[4];
    const td_sum_partials_args good = {parts, y, 2, 2, 2, 4, TD_F32};
    td_sum_partials_args bad[7];
    for (int i = 0; i < 7; i++)
        bad[i] = good;
    bad[0].P = 0;
    bad[1].T = -1;
    bad[2].D = -1;
    bad[3].part_stride = 3;
    bad[4].act = TD_E4M3;
    bad[5].parts = NULL;
    bad[6].y = NULL;
    for (int i = 0; i < 7; i++)
        TD_EQ(TD_BAD_SHAPE, td_sum_partials_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_sum_partials_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
