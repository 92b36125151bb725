/* The CUDA forms of copies, conversions and sums in a fixed order: bits equal the judges'; a NaN
 * that was computed is like any other. */
#include "common/base/clock.h"
#include "kernels/embed/embed.h"
#include "kernels/gather_rows/gather_rows.h"
#include "kernels/index_weights/index_weights.h"
#include "kernels/sum_partials/sum_partials.h"
#include "kernels/widen/widen.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

static float *floats(void *p)
{
    return p;
}

static void fill_bytes(kt_rng *rng, void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((unsigned char *)p)[i] = (unsigned char)kt_u64(rng);
}

TEST(embed_copies_rows_and_zeroes_others)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        const int T = KT_PICK(&rng, 0, 1, 2, 33, 300), V = KT_PICK(&rng, 0, 1, 100);
        const int D = KT_PICK(&rng, 1, 3, 64, 577, 2048, 7168);
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        const size_t row = (size_t)D * td_dtype_bytes(act);
        unsigned char *table = kt_alloc((size_t)V * row);
        int32_t *ids = kt_alloc((size_t)T * 4);
        fill_bytes(&rng, table, (size_t)V * row); /* NaN of every kind among them */
        for (int t = 0; t < T; t++)
            ids[t] = KT_PICK(&rng, -1, INT32_MIN, INT32_MAX, V, kt_int(&rng, 0, V));
        ct_result y = ct_result_new((size_t)T, row, row);
        td_embed_args a = {ids, table, y.want.p, T, D, V, act}, d = a;
        TD_EQ(TD_OK, td_embed_ref(&a, NULL));
        d.ids = ct_up(&g, ids, (size_t)T * 4);
        d.table = ct_up(&g, table, (size_t)V * row);
        ct_result_up(&g, &y);
        for (int k = 0; k < 2; k++) {
            d.y = y.device[k];
            TD_EQ(TD_OK, g.ops->embed(&d, g.stream));
        }
        ct_result_bits(&g, &y);
        ct_clear(&g);
        ct_result_free(&y);
        free(table);
        free(ids);
    }
    ct_close(&g);
}

TEST(gather_rows_copies_rows_of_any_width_at_any_address)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 60; i++) {
        const int T = KT_PICK(&rng, 0, 1, 5, 700), n_x = kt_int(&rng, 1, 50);
        const size_t row = (size_t)KT_PICK(&rng, 0, 1, 4, 13, 128, 132, 1152, 5000, 14336);
        const size_t x_stride = (size_t)kt_int(&rng, 0, 1) * (row + (size_t)kt_int(&rng, 0, 9));
        const size_t y_stride = row + (size_t)KT_PICK(&rng, 0, 1, 4, 64) + (row == 0);
        const size_t x_bytes = (size_t)(n_x - 1) * x_stride + row;
        unsigned char *x = kt_alloc(x_bytes);
        int32_t *rows = kt_alloc((size_t)T * 4);
        fill_bytes(&rng, x, x_bytes);
        for (int t = 0; t < T; t++)
            rows[t] = KT_PICK(&rng, -1, INT32_MIN, kt_int(&rng, 0, n_x - 1), n_x - 1);
        ct_result y = ct_result_new((size_t)T, row, y_stride);
        td_gather_rows_args
            a = {x, rows, y.want.p, T, (int64_t)row, (int64_t)x_stride, (int64_t)y_stride},
            d = a;
        TD_EQ(TD_OK, td_gather_rows_ref(&a, NULL));
        d.x = ct_up(&g, x, x_bytes);
        d.rows = ct_up(&g, rows, (size_t)T * 4);
        ct_result_up(&g, &y);
        for (int k = 0; k < 2; k++) {
            d.y = y.device[k];
            TD_EQ(TD_OK, g.ops->gather_rows(&d, g.stream));
        }
        ct_result_bits(&g, &y);
        ct_clear(&g);
        ct_result_free(&y);
        free(x);
        free(rows);
    }
    ct_close(&g);
}

static void check_widen(ct_gpu *g, const td_bf16 *x, int T, int D)
{
    const size_t n = (size_t)T * (size_t)D;
    ct_result y = ct_result_new(1, n * 4, n * 4 + 8);
    td_widen_args a = {x, floats(y.want.p), T, D}, d = a;
    TD_EQ(TD_OK, td_widen_ref(&a, NULL));
    d.x = ct_up(g, x, n * 2);
    ct_result_up(g, &y);
    for (int k = 0; k < 2; k++) {
        d.y = floats(y.device[k]);
        TD_EQ(TD_OK, g->ops->widen(&d, g->stream));
    }
    ct_result_bits(g, &y);
    ct_clear(g);
    ct_result_free(&y);
}

TEST(widen_is_exact_for_every_bf16)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    td_bf16 *x = kt_alloc(65536 * 2);
    for (int i = 0; i < 65536; i++)
        x[i] = (td_bf16)i;
    check_widen(&g, x, 256, 256);
    for (int i = 0; i < 20; i++)
        check_widen(&g, x, KT_PICK(&rng, 0, 1, 3, 70), KT_PICK(&rng, 0, 1, 15, 17, 300));
    free(x);
    ct_close(&g);
}

TEST(index_weights_has_the_judges_bits_in_place_too)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        const int T = KT_PICK(&rng, 0, 1, 3, 700), Hi = KT_PICK(&rng, 1, 3, 4, 16, 64);
        const size_t n = (size_t)T * (size_t)Hi, row = (size_t)Hi * 4;
        float *xw = kt_alloc(n * 4), *qs = kt_alloc(n * 4);
        kt_fill_f32(&rng, xw, n, 1.0f);
        kt_fill_f32(&rng, qs, n, 0.01f);
        for (size_t k = 0; k < n && i % 4 == 0; k += 7)
            xw[k] = kt_odd(&rng);
        ct_result w = ct_result_new((size_t)T, row, row);
        td_index_weights_args a = {xw, i % 3 == 0 ? NULL : qs, floats(w.want.p), T,
                                   Hi, KT_PICK(&rng, 32, 128)},
                              d = a;
        TD_EQ(TD_OK, td_index_weights_ref(&a, NULL));
        memcpy(w.run[1].p, xw, n * 4); /* the second run works in place */
        ct_result_up(&g, &w);
        d.xw = ct_up(&g, xw, n * 4);
        d.qs = ct_up(&g, a.qs, n * 4);
        d.w = floats(w.device[0]);
        TD_EQ(TD_OK, g.ops->index_weights(&d, g.stream));
        d.xw = d.w = floats(w.device[1]);
        TD_EQ(TD_OK, g.ops->index_weights(&d, g.stream));
        ct_result_numbers(&g, &w, TD_F32);
        ct_clear(&g);
        ct_result_free(&w);
        free(xw);
        free(qs);
    }
    ct_close(&g);
}

TEST(sum_partials_adds_in_the_judges_order)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        td_sum_partials_args a = {.P = KT_PICK(&rng, 1, 1, 2, 4, 9),
                                  .act = i % 2 ? TD_BF16 : TD_F32};
        a.T = KT_PICK(&rng, 0, 1, 3, 70);
        a.D = KT_PICK(&rng, 0, 1, 15, 17, 256, 1000);
        const size_t n = (size_t)a.T * (size_t)a.D, bytes = n * td_dtype_bytes(a.act);
        a.part_stride = (int64_t)n + KT_PICK(&rng, 0, 0, 4, 5);
        const size_t all = (size_t)(a.P - 1) * (size_t)a.part_stride + n;
        float *parts = kt_alloc(all * 4);
        kt_fill_f32(&rng, parts, all, 1.0f);
        for (size_t k = 0; k < all && i % 4 > 1; k += 5)
            parts[k] = kt_odd(&rng);
        ct_result y = ct_result_new(1, bytes, bytes + 8);
        td_sum_partials_args d = a;
        a.parts = parts;
        a.y = y.want.p;
        TD_EQ(TD_OK, td_sum_partials_ref(&a, NULL));
        d.parts = ct_up(&g, parts, all * 4);
        ct_result_up(&g, &y);
        for (int k = 0; k < 2; k++) {
            d.y = y.device[k];
            TD_EQ(TD_OK, g.ops->sum_partials(&d, g.stream));
        }
        ct_result_numbers(&g, &y, a.act);
        ct_clear(&g);
        ct_result_free(&y);
        free(parts);
    }
    ct_close(&g);
}

TEST(a_second_streams_points_say_when_its_copies_are_over)
{
    enum { N = 1 << 20 };
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    td_stream *other;
    td_event *point;
    void *first, *second, *host;
    TD_EQ(TD_OK, td_device_bind(g.device, NULL));
    TD_EQ(1, td_device_is_gpu(g.device));
    TD_EQ(TD_OK, td_device_open_stream(g.device, &other, NULL));
    TD_EQ(TD_OK, td_event_create(g.device, &point, NULL));
    TD_EQ(TD_OK, td_device_alloc(g.device, N, &first, NULL));
    TD_EQ(TD_OK, td_device_alloc(g.device, N, &second, NULL));
    TD_EQ(TD_OK, td_device_alloc_host(g.device, (size_t)2 * N, &host, NULL));
    TD_EQ(TD_OK, td_stream_sync(g.stream, NULL)); /* they are zeroed there */
    unsigned char *there = host, *back = there + N;
    for (int i = 0; i < 20; i++) {
        fill_bytes(&rng, there, N);
        TD_EQ(TD_OK, td_stream_write(other, first, there, N));
        TD_EQ(TD_OK, td_device_flush_writes(g.device));
        TD_EQ(TD_OK, td_stream_copy(other, second, first, N));
        TD_EQ(TD_OK, td_stream_read(other, back, second, N));
        TD_EQ(TD_OK, td_event_record(point, other));
        const int64_t end_ns = td_now_ns() + 10 * TD_NS_PER_S;
        td_status st;
        while ((st = td_event_poll(point, other)) == TD_PENDING)
            TD_TRUE(td_now_ns() < end_ns);
        TD_EQ(TD_OK, st);
        TD_MEM(there, back, N);
    }
    td_event_destroy(g.device, point);
    td_device_close_stream(other);
    td_device_free_host(g.device, host);
    td_device_free(g.device, first);
    td_device_free(g.device, second);
    ct_close(&g);
}
