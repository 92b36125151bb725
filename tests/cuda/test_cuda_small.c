/* The CUDA forms of what plans, combines and chooses: integers and sums in a fixed order, bits
 * equal the judges'. */
#include "kernels/accept/accept.h"
#include "kernels/argmax/argmax.h"
#include "kernels/ep_combine/ep_combine.h"
#include "kernels/ep_plan/ep_plan.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

static int32_t *ints(void *p)
{
    return p;
}

/* counts are written with T 0 too. */
TEST(ep_plan_has_the_judges_lists)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 60; i++) {
        td_ep_plan_args a = {.T = KT_PICK(&rng, 0, 1, 7, 300, 1024, 2500),
                             .K = KT_PICK(&rng, 0, 1, 3, 8),
                             .E = KT_PICK(&rng, 0, 1, 5, 16, 256),
                             .P = KT_PICK(&rng, 1, 2, 3, 8)};
        const size_t T = (size_t)a.T, n_ids = T * (size_t)a.K, P = (size_t)a.P;
        const int hot = kt_int(&rng, 0, 3); /* 0: everything on one expert */
        int32_t *ids = kt_alloc(n_ids * 4);
        for (size_t k = 0; k < n_ids; k++)
            ids[k] = hot == 0 ? a.E - 1 : kt_int(&rng, -1, a.E);
        ct_result rows = ct_result_new(P, T * 4, T * 4), counts = ct_result_new(1, P * 4, P * 4);
        ct_result slot = ct_result_new(T, P * 4, P * 4);
        td_ep_plan_args d = a;
        a.ids = ids;
        a.rows = ints(rows.want.p);
        a.counts = ints(counts.want.p);
        a.slot = ints(slot.want.p);
        TD_EQ(TD_OK, td_ep_plan_ref(&a, NULL));
        d.ids = ct_up(&g, ids, n_ids * 4);
        ct_result_up(&g, &rows);
        ct_result_up(&g, &counts);
        ct_result_up(&g, &slot);
        for (int k = 0; k < 2; k++) {
            d.rows = ints(rows.device[k]);
            d.counts = ints(counts.device[k]);
            d.slot = ints(slot.device[k]);
            TD_EQ(TD_OK, g.ops->ep_plan(&d, g.stream));
        }
        ct_result_bits(&g, &rows);
        ct_result_bits(&g, &counts);
        ct_result_bits(&g, &slot);
        ct_clear(&g);
        ct_result_free(&rows);
        ct_result_free(&counts);
        ct_result_free(&slot);
        free(ids);
    }
    ct_close(&g);
}

TEST(ep_combine_adds_in_the_order_of_ranks)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        td_ep_combine_args a = {.T = KT_PICK(&rng, 0, 1, 60),
                                .P = KT_PICK(&rng, 1, 2, 8),
                                .D = KT_PICK(&rng, 0, 1, 17, 300, 2052),
                                .cap = KT_PICK(&rng, 0, 1, 60)};
        const size_t n = (size_t)a.P * (size_t)a.cap * (size_t)a.D, row = (size_t)a.D * 4;
        const size_t n_slots = (size_t)(a.T * a.P);
        float *parts = kt_alloc(n * 4);
        int32_t *slot = kt_alloc(n_slots * 4);
        kt_fill_f32(&rng, parts, n, 1.0f);
        for (size_t k = 0; k < n && i % 4 == 3; k += 5)
            parts[k] = kt_odd(&rng); /* -0 among them: a sum starts at +0 */
        for (size_t k = 0; k < n_slots; k++)
            slot[k] = kt_int(&rng, -1, a.cap - 1);
        ct_result y = ct_result_new((size_t)a.T, row, row);
        td_ep_combine_args d = a;
        a.parts = parts;
        a.slot = slot;
        a.y = (float *)(void *)y.want.p;
        TD_EQ(TD_OK, td_ep_combine_ref(&a, NULL));
        d.parts = ct_up(&g, parts, n * 4);
        d.slot = ct_up(&g, slot, n_slots * 4);
        ct_result_up(&g, &y);
        for (int k = 0; k < 2; k++) {
            d.y = y.device[k];
            TD_EQ(TD_OK, g.ops->ep_combine(&d, g.stream));
        }
        ct_result_numbers(&g, &y, TD_F32);
        ct_clear(&g);
        ct_result_free(&y);
        free(parts);
        free(slot);
    }
    ct_close(&g);
}

TEST(accept_counts_what_the_judge_counts)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 100; i++) {
        const int B = KT_PICK(&rng, 0, 1, 9, 300), N = kt_int(&rng, 1, 5);
        const size_t n = (size_t)(B * N), n_draft = (size_t)(B * (N - 1));
        int32_t *target = kt_alloc(n * 4), *draft = kt_alloc(n_draft * 4);
        int32_t *n_drafts = kt_alloc((size_t)B * 4);
        for (size_t j = 0; j < n; j++)
            target[j] = kt_int(&rng, -1, 1);
        for (size_t j = 0; j < n_draft; j++)
            draft[j] = kt_int(&rng, -1, 1);
        for (int b = 0; b < B; b++)
            n_drafts[b] = kt_int(&rng, -1, N + 1);
        ct_result r = ct_result_new((size_t)B, 4, 4);
        td_accept_args a = {target, draft, n_drafts, ints(r.want.p), B, N}, d = a;
        TD_EQ(TD_OK, td_accept_ref(&a, NULL));
        d.target = ct_up(&g, target, n * 4);
        d.draft = N == 1 ? NULL : ct_up(&g, draft, n_draft * 4);
        d.n_drafts = ct_up(&g, n_drafts, (size_t)B * 4);
        ct_result_up(&g, &r);
        for (int k = 0; k < 2; k++) {
            d.n_accepted = ints(r.device[k]);
            TD_EQ(TD_OK, g.ops->accept(&d, g.stream));
        }
        ct_result_bits(&g, &r);
        ct_clear(&g);
        ct_result_free(&r);
        free(target);
        free(draft);
        free(n_drafts);
    }
    ct_close(&g);
}

static void check_argmax(ct_gpu *g, const float *x, int T, int V, int64_t stride)
{
    const size_t n = T > 0 ? (size_t)((T - 1) * stride + V) : 0;
    ct_result r = ct_result_new((size_t)T, 4, 4);
    td_argmax_args a = {x, ints(r.want.p), T, V, stride}, d = a;
    TD_EQ(TD_OK, td_argmax_ref(&a, NULL));
    d.logits = ct_up(g, x, n * 4);
    ct_result_up(g, &r);
    for (int k = 0; k < 2; k++) {
        d.ids = ints(r.device[k]);
        TD_EQ(TD_OK, g->ops->argmax(&d, g->stream));
    }
    ct_result_bits(g, &r);
    ct_clear(g);
    ct_result_free(&r);
}

TEST(argmax_finds_what_the_judge_finds)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 120; i++) {
        const int T = KT_PICK(&rng, 0, 1, 2, 5);
        const int V = KT_PICK(&rng, 1, 2, 3, 15, 17, 100, 1000, 4099, 8191, 129280);
        const int64_t stride = V + kt_int(&rng, 0, 5);
        const size_t n = (size_t)(T * stride);
        float *x = kt_alloc(n * 4);
        for (size_t j = 0; j < n; j++) {
            x[j] = i % 3 == 0 ? (float)kt_int(&rng, -4, 4) : (float)(kt_u64(&rng) >> 48) - 3e4f;
            if (i % 2 == 0 && kt_int(&rng, 0, 3) == 0)
                x[j] = kt_odd(&rng);
        }
        check_argmax(&g, x, T, V, stride);
        free(x);
    }
    ct_close(&g);
}

/* A largest logit at each place in turn, alone and twice, among rows of nothing. */
TEST(argmax_sees_every_place_and_keeps_to_the_first)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    const int V = 131, T = 2 * V;
    const float nothing[] = {NAN, -INFINITY};
    float *x = kt_alloc((size_t)(T * V) * 4);
    for (int i = 0; i < T * V; i++)
        x[i] = nothing[kt_int(&rng, 0, 1)];
    for (int t = 0; t < V; t++) {
        x[t * V + t] = -3.0e38f;
        x[(V + t) * V + t] = 0.0f;
        x[(V + t) * V + kt_int(&rng, t, V - 1)] = t % 2 ? -0.0f : 0.0f;
    }
    check_argmax(&g, x, T, V, V);
    for (int i = 0; i < T * V; i++)
        x[i] = nothing[i / V % 2];
    check_argmax(&g, x, T, V, V);
    free(x);
    ct_close(&g);
}

TEST(refuses_what_the_contracts_refuse)
{
    ct_gpu g = ct_open();
    const td_ep_plan_args plan = {.T = 1, .P = 1};
    const td_ep_combine_args combine = {.T = 1, .P = 1, .D = 1};
    const td_accept_args accept = {.B = 1, .N = 1};
    const td_argmax_args argmax = {.T = 1, .V = 1};
    TD_EQ(TD_BAD_SHAPE, g.ops->ep_plan(&plan, g.stream));
    TD_EQ(TD_BAD_SHAPE, g.ops->ep_combine(&combine, g.stream));
    TD_EQ(TD_BAD_SHAPE, g.ops->accept(&accept, g.stream));
    TD_EQ(TD_BAD_SHAPE, g.ops->argmax(&argmax, g.stream));
    ct_sync(&g);
    ct_close(&g);
}
