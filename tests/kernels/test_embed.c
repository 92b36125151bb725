/* Copies: bits equal the reference's. */
#include "kernels/embed/embed.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

TEST(rows_are_the_table_s_and_others_are_zero)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 30; i++) {
        const int T = KT_PICK(&rng, 0, 1, 2, 33, 300), D = KT_PICK(&rng, 1, 3, 64, 577),
                  V = KT_PICK(&rng, 0, 1, 100);
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        const size_t row = (size_t)D * td_dtype_bytes(act);
        void *table = kt_alloc((size_t)V * row);
        int32_t *ids = kt_alloc((size_t)T * 4);
        kt_fill_act(&rng, table, (size_t)V * (size_t)D, 1.0f, act);
        for (int t = 0; t < T; t++)
            ids[t] = KT_PICK(&rng, -1, INT32_MIN, INT32_MAX, V, kt_int(&rng, 0, V));
        kt_out want = kt_out_new((size_t)T, row, row), y = kt_out_new((size_t)T, row, row);
        td_embed_args a = {ids, table, want.p, T, D, V, act};
        TD_EQ(TD_OK, td_embed_ref(&a, NULL));
        for (int t = 0; t < T; t++)
            for (int d = 0; d < D && (ids[t] < 0 || ids[t] >= V); d++)
                TD_TRUE(kt_get(want.p, (size_t)(t * D + d), act) == 0.0f);
        while (kt_ways_next(&w)) {
            kt_out_poison(&y);
            a.y = y.p;
            TD_EQ(TD_OK, td_embed_cpu(&a, w.stream));
            kt_out_check(&y);
            kt_out_same(&want, &y);
        }
        kt_out_free(&want);
        kt_out_free(&y);
        free(table);
        free(ids);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    float table[4] = {0}, y[4];
    int32_t ids[2] = {0};
    const td_embed_args good = {ids, table, y, 2, 2, 2, TD_F32};
    td_embed_args bad[7];
    for (int i = 0; i < 7; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].D = -1;
    bad[2].V = -1;
    bad[3].act = TD_E4M3;
    bad[4].ids = NULL;
    bad[5].table = NULL;
    bad[6].y = NULL;
    for (int i = 0; i < 7; i++)
        TD_EQ(TD_BAD_SHAPE, td_embed_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_embed_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
