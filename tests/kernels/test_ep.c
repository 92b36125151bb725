/* ep_plan: integers, bits equal the reference's. ep_combine: f32 additions in rank order, bits
 * equal the reference's. Together: every row comes back once from every rank that owns one of its
 * experts. */
#include "kernels/ep_combine/ep_combine.h"
#include "kernels/ep_plan/ep_plan.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_ep_plan_args a;
    int32_t *ids;
    kt_out rows, counts, slot;
} plan;

static plan make_plan(kt_rng *rng)
{
    plan p = {.a = {.T = KT_PICK(rng, 0, 1, 7, 300),
                    .K = KT_PICK(rng, 0, 1, 3, 8),
                    .E = KT_PICK(rng, 0, 1, 5, 16, 100),
                    .P = KT_PICK(rng, 1, 2, 3, 8)}};
    const size_t T = (size_t)p.a.T, K = (size_t)p.a.K, P = (size_t)p.a.P;
    const int hot = kt_int(rng, 0, 3); /* 0: everything on one expert */
    p.ids = kt_alloc(T * K * 4);
    for (size_t i = 0; i < T * K; i++)
        p.ids[i] = hot == 0 ? p.a.E - 1 : kt_int(rng, -1, p.a.E);
    p.rows = kt_out_new(P, T * 4, T * 4);
    p.counts = kt_out_new(1, P * 4, P * 4);
    p.slot = kt_out_new(T, P * 4, P * 4);
    p.a.ids = p.ids;
    p.a.rows = (int32_t *)(void *)p.rows.p;
    p.a.counts = (int32_t *)(void *)p.counts.p;
    p.a.slot = (int32_t *)(void *)p.slot.p;
    return p;
}

static void drop_plan(plan *p)
{
    kt_out_free(&p->rows);
    kt_out_free(&p->counts);
    kt_out_free(&p->slot);
    free(p->ids);
}

TEST(plans_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        plan p = make_plan(&rng);
        const size_t T = p.rows.row_bytes, P = p.counts.row_bytes;
        kt_out rows = kt_out_new(p.rows.rows, T, T), counts = kt_out_new(1, P, P);
        kt_out slot = kt_out_new(p.slot.rows, P, P);
        td_ep_plan_args ref = p.a;
        ref.rows = (int32_t *)(void *)rows.p;
        ref.counts = (int32_t *)(void *)counts.p;
        ref.slot = (int32_t *)(void *)slot.p;
        TD_EQ(TD_OK, td_ep_plan_ref(&ref, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&p.rows);
            kt_out_poison(&p.counts);
            kt_out_poison(&p.slot);
            TD_EQ(TD_OK, td_ep_plan_cpu(&p.a, w.stream));
            kt_out_check(&p.rows);
            kt_out_check(&p.counts);
            kt_out_check(&p.slot);
            kt_out_same(&rows, &p.rows);
            kt_out_same(&counts, &p.counts);
            kt_out_same(&slot, &p.slot);
        }
        kt_out_free(&rows);
        kt_out_free(&counts);
        kt_out_free(&slot);
        drop_plan(&p);
    }
    kt_ways_close(&w);
}

TEST(a_row_goes_once_to_each_owner)
{
    td_device *device = kt_open(1);
    /* E 10 over P 4: experts 0-1, 2-4, 5-6, 7-9 */
    const int32_t ids[3][3] = {{0, 9, 1}, {4, 3, 2}, {-1, -1, -1}};
    int32_t rows[4][3], counts[4], slot[3][4];
    td_ep_plan_args a = {ids[0], rows[0], counts, slot[0], 3, 3, 10, 4};
    const int32_t want_rows[4][3] = {{0, -1, -1}, {1, -1, -1}, {-1, -1, -1}, {0, -1, -1}};
    const int32_t want_counts[4] = {1, 1, 0, 1};
    const int32_t want_slot[3][4] = {{0, -1, -1, 0}, {-1, 0, -1, -1}, {-1, -1, -1, -1}};
    TD_EQ(TD_OK, td_ep_plan_cpu(&a, td_device_stream(device)));
    TD_MEM(want_rows, rows, sizeof(rows));
    TD_MEM(want_counts, counts, sizeof(counts));
    TD_MEM(want_slot, slot, sizeof(slot));
    td_device_close(device);
}

TEST(combined_sums_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 30; i++) {
        td_ep_combine_args a = {.T = KT_PICK(&rng, 0, 1, 60),
                                .P = KT_PICK(&rng, 1, 2, 8),
                                .D = KT_PICK(&rng, 1, 17, 300),
                                .cap = KT_PICK(&rng, 0, 1, 60)};
        const size_t n = (size_t)a.P * (size_t)a.cap * (size_t)a.D;
        float *parts = kt_alloc(n * 4);
        int32_t *slot = kt_alloc((size_t)(a.T * a.P) * 4);
        kt_fill_f32(&rng, parts, n, 1.0f);
        for (int k = 0; k < a.T * a.P; k++)
            slot[k] = kt_int(&rng, -1, a.cap - 1);
        const size_t row = (size_t)a.D * 4;
        kt_out want = kt_out_new((size_t)a.T, row, row), y = kt_out_new((size_t)a.T, row, row);
        a.parts = parts;
        a.slot = slot;
        a.y = (float *)(void *)want.p;
        TD_EQ(TD_OK, td_ep_combine_ref(&a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&y);
            a.y = (float *)(void *)y.p;
            TD_EQ(TD_OK, td_ep_combine_cpu(&a, w.stream));
            kt_out_check(&y);
            kt_out_same(&want, &y);
        }
        kt_out_free(&want);
        kt_out_free(&y);
        free(parts);
        free(slot);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    int32_t ids[2] = {0}, rows[4], counts[2], slot[4];
    float parts[4] = {0}, y[2];
    const td_ep_plan_args good = {ids, rows, counts, slot, 2, 1, 2, 2};
    td_ep_plan_args bad[8];
    for (int i = 0; i < 8; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].K = -1;
    bad[2].E = -1;
    bad[3].P = 0;
    bad[4].ids = NULL;
    bad[5].rows = NULL;
    bad[6].counts = NULL;
    bad[7].slot = NULL;
    for (int i = 0; i < 8; i++)
        TD_EQ(TD_BAD_SHAPE, td_ep_plan_cpu(&bad[i], stream));
    TD_EQ(TD_OK, td_ep_plan_cpu(&good, stream));
    const td_ep_combine_args fine = {parts, slot, y, 2, 2, 1, 2};
    td_ep_combine_args wrong[7];
    for (int i = 0; i < 7; i++)
        wrong[i] = fine;
    wrong[0].T = -1;
    wrong[1].P = 0;
    wrong[2].D = -1;
    wrong[3].cap = -1;
    wrong[4].parts = NULL;
    wrong[5].slot = NULL;
    wrong[6].y = NULL;
    for (int i = 0; i < 7; i++)
        TD_EQ(TD_BAD_SHAPE, td_ep_combine_cpu(&wrong[i], stream));
    TD_EQ(TD_OK, td_ep_combine_cpu(&fine, stream));
    td_device_close(device);
}
