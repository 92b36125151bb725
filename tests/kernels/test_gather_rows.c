/* Copies: bits equal the reference's. */
#include "kernels/gather_rows/gather_rows.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

TEST(rows_are_copied_or_zero)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 40; i++) {
        const int T = KT_PICK(&rng, 0, 1, 5, 700), n_x = kt_int(&rng, 1, 50);
        const size_t row = (size_t)KT_PICK(&rng, 0, 1, 4, 13, 128, 5000);
        const size_t x_stride = (size_t)kt_int(&rng, 0, 1) * (row + (size_t)kt_int(&rng, 0, 9));
        const size_t y_stride = row + (size_t)KT_PICK(&rng, 0, 1, 64) + (row == 0);
        const size_t x_bytes = (size_t)(n_x - 1) * x_stride + row;
        unsigned char *x = kt_alloc(x_bytes);
        int32_t *rows = kt_alloc((size_t)T * 4);
        for (size_t b = 0; b < x_bytes; b++)
            x[b] = (unsigned char)kt_u64(&rng);
        for (int t = 0; t < T; t++)
            rows[t] = KT_PICK(&rng, -1, INT32_MIN, kt_int(&rng, 0, n_x - 1), n_x - 1);
        kt_out want = kt_out_new((size_t)T, row, y_stride);
        kt_out y = kt_out_new((size_t)T, row, y_stride);
        td_gather_rows_args a = {
            x, rows, want.p, T, (int64_t)row, (int64_t)x_stride, (int64_t)y_stride};
        TD_EQ(TD_OK, td_gather_rows_ref(&a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&y);
            a.y = y.p;
            TD_EQ(TD_OK, td_gather_rows_cpu(&a, w.stream));
            kt_out_check(&y);
            kt_out_same(&want, &y);
        }
        kt_out_free(&want);
        kt_out_free(&y);
        free(x);
        free(rows);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    unsigned char x[8] = {0}, y[8];
    int32_t rows[2] = {0};
    const td_gather_rows_args good = {x, rows, y, 2, 4, 4, 4};
    td_gather_rows_args bad[7];
    for (int i = 0; i < 7; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].row_bytes = -1;
    bad[2].x_stride_bytes = -4;
    bad[3].y_stride_bytes = 3;
    bad[4].x = NULL;
    bad[5].rows = NULL;
    bad[6].y = NULL;
    for (int i = 0; i < 7; i++)
        TD_EQ(TD_BAD_SHAPE, td_gather_rows_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_gather_rows_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
