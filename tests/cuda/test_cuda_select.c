/* The CUDA forms of what selects: every result is fixed to the bit by the contracts. */
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/sample/sample.h"
#include "kernels/topk/topk.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

/* ---- topk ---- */

static void fill_scores(kt_rng *rng, float *x, int n)
{
    int how = kt_int(rng, 0, 4);
    for (int i = 0; i < n; i++) {
        x[i] = kt_normal(rng);
        if (how == 1) /* ties */
            x[i] = (float)kt_int(rng, -3, 3) * 0.5f;
        if (how == 2 && kt_int(rng, 0, 3) == 0)
            x[i] = kt_odd(rng);
        if (how == 3)
            x[i] = (float)i;
        if (how == 4) /* as when all relus are zero, of either sign */
            x[i] = kt_int(rng, 0, 50) == 0 ? x[i] : kt_int(rng, 0, 1) ? 0.0f : -0.0f;
    }
}

static void check_topk(kt_rng *rng, ct_gpu *g, int T, int k, int most)
{
    int64_t stride = most + kt_int(rng, 0, 9);
    const size_t bytes = (size_t)(T * stride) * 4, row = (size_t)k * 4;
    float *logits = kt_alloc(bytes);
    int32_t *len = kt_alloc((size_t)T * 4);
    for (int t = 0; t < T; t++) {
        len[t] = kt_int(rng, 0, 3) == 0 ? kt_int(rng, 0, most) : most - kt_int(rng, 0, most / 9);
        fill_scores(rng, logits + t * stride, len[t]);
    }
    kt_out want = kt_out_new((size_t)T, row, row), got = kt_out_new((size_t)T, row, row);
    td_topk_args a = {logits, len, (int32_t *)(void *)want.p, T, k, stride}, d = a;
    TD_EQ(TD_OK, td_topk_ref(&a, NULL));
    d.logits = ct_up(g, logits, bytes);
    d.row_len = ct_up(g, len, (size_t)T * 4);
    for (int again = 0; again < 2; again++) {
        kt_out_poison(&got);
        void *p = d.selected = ct_out(g, &got);
        TD_EQ(TD_OK, g->ops->topk(&d, g->stream));
        ct_fetch(g, &got, p);
        kt_out_same(&want, &got);
    }
    ct_clear(g);
    kt_out_free(&want);
    kt_out_free(&got);
    free(logits);
    free(len);
}

TEST(topk_selects_what_the_judge_selects)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(60); i++)
        check_topk(&rng, &g, KT_PICK(&rng, 0, 1, 3, 7), KT_PICK(&rng, 0, 1, 2, 16, 17, 256, 2048),
                   KT_PICK(&rng, 1, 2, 17, 64, 300, 1024, 1025, 3000, 20000));
    check_topk(&rng, &g, 2, 2048, 300001);
    ct_close(&g);
}

/* Few rows are split between blocks: two, four or eight of them, or one where there are many rows
 * or long ones. */
TEST(topk_of_rows_that_blocks_share_selects_what_the_judge_selects)
{
    static const int sizes[][3] = {
        /* T, k, length */
        {1, 2048, 163840},  {2, 2048, 65536}, {1, 2048, 4096},  {16, 300, 5000},    {17, 64, 3000},
        {17, 2048, 163840}, {32, 17, 1025},   {33, 2048, 9000}, {33, 2048, 110000}, {64, 16, 700},
        {65, 16, 700},      {5, 1, 33},       {3, 31, 32},      {2, 2048, 400000}};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        for (int k = 0; k < (ct_slow() > 0 ? 1 : sizes[i][2] > 20000 ? 2 : 6); k++)
            check_topk(&rng, &g, sizes[i][0], sizes[i][1], sizes[i][2]);
    ct_close(&g);
}

/* ---- moe_gate ---- */

static void fill_gate(kt_rng *rng, float *x, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = kind == 1 ? (float)kt_int(rng, -1, 1) : kt_normal(rng) * 2.0f;
        if (kind == 2 && kt_int(rng, 0, 8) == 0)
            x[i] = kt_odd(rng);
        if (kind == 3)
            x[i] = NAN;
    }
}

static void check_gate(kt_rng *rng, ct_gpu *g, const int *s, int kind)
{
    td_moe_gate_args a = {.T = KT_PICK(rng, 0, 1, 2, 60),
                          .E = s[0],
                          .K = s[1],
                          .n_group = s[2],
                          .topk_group = s[3],
                          .norm_topk = kt_int(rng, 0, 1),
                          .scale = kt_int(rng, 0, 1) ? 2.5f : 1.0f,
                          .eps = kt_int(rng, 0, 1) ? 1e-20f : 0.0f};
    const size_t T = (size_t)a.T, n = T * (size_t)a.E, row = (size_t)a.K * 4;
    float *logits = kt_alloc(n * 4), *bias = kt_alloc((size_t)a.E * 4);
    fill_gate(rng, logits, n, kind);
    fill_gate(rng, bias, (size_t)a.E, kind == 3 ? 0 : kind);
    kt_out want_ids = kt_out_new(T, row, row), want_w = kt_out_new(T, row, row);
    kt_out ids = kt_out_new(T, row, row), weights = kt_out_new(T, row, row);
    a.logits = logits;
    a.bias = kt_int(rng, 0, 2) ? bias : NULL;
    a.ids = (int32_t *)(void *)want_ids.p;
    a.weights = (float *)(void *)want_w.p;
    TD_EQ(TD_OK, td_moe_gate_ref(&a, NULL));
    td_moe_gate_args d = a;
    d.logits = ct_up(g, logits, n * 4);
    d.bias = ct_up(g, a.bias, (size_t)a.E * 4);
    void *pi = d.ids = ct_out(g, &ids), *pw = d.weights = ct_out(g, &weights);
    TD_EQ(TD_OK, g->ops->moe_gate(&d, g->stream));
    ct_fetch(g, &ids, pi);
    ct_fetch(g, &weights, pw);
    kt_out_same(&want_ids, &ids);
    for (size_t i = 0; i < T * (size_t)a.K; i++)
        TD_EQ(0, kt_ulp_f32(((float *)(void *)want_w.p)[i], ((float *)(void *)weights.p)[i]));
    ct_clear(g);
    kt_out *all[] = {&want_ids, &want_w, &ids, &weights};
    for (int i = 0; i < 4; i++)
        kt_out_free(all[i]);
    free(logits);
    free(bias);
}

TEST(moe_gate_gives_the_judges_ids_and_weights)
{
    static const int shapes[][4] = {/* E, K, n_group, topk_group */
                                    {256, 8, 8, 4}, {16, 4, 4, 2},  {8, 8, 1, 1},   {6, 3, 6, 3},
                                    {1, 1, 1, 1},   {160, 6, 8, 3}, {33, 5, 11, 5}, {512, 8, 1, 1}};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(64); i++)
        check_gate(&rng, &g, shapes[i % 8], i / 16);
    ct_close(&g);
}

/* ---- sample ---- */

typedef struct {
    float *x, *temperature, *top_p;
    int32_t *top_k, *position;
    uint64_t *seed;
    uint8_t *mask;
} draws;

static void fill_row(kt_rng *rng, float *x, int64_t n)
{
    int kind = kt_int(rng, 0, 4);
    for (int64_t i = 0; i < n; i++) {
        x[i] = kt_normal(rng) * (kind == 0 ? 0.1f : 3.0f);
        if (kind == 2) /* ties */
            x[i] = (float)kt_int(rng, -2, 2);
        if (kind == 3 && kt_int(rng, 0, 3) == 0)
            x[i] = kt_odd(rng);
        if (kind == 4)
            x[i] = kt_int(rng, 0, 40) ? NAN : -INFINITY;
    }
}

static void fill_draws(kt_rng *rng, draws *c, int T, int V, int64_t stride)
{
    static const float temperatures[] = {0.0f,   1.0f,  0.7f,     1e-3f, 1e-42f, 1.0f,
                                         100.0f, 1e30f, INFINITY, NAN,   -1.0f,  2.0f};
    static const float top_ps[] = {1.0f, 0.9f, 0.5f, 1e-6f, 0.999999f, 0.0f, NAN, 0.95f};
    for (int t = 0; t < T; t++) {
        fill_row(rng, c->x + t * stride, stride);
        c->temperature[t] = temperatures[kt_int(rng, 0, 11)];
        c->top_p[t] = top_ps[kt_int(rng, 0, 7)];
        c->top_k[t] = KT_PICK(rng, 0, 0, 1, 2, 10, 50, V - 1, V, V + 1, -1);
        c->seed[t] = kt_u64(rng);
        c->position[t] = (int32_t)(kt_u64(rng) >> 40);
        uint8_t *mask = c->mask + t * td_ceil_div(V, 8);
        int density = kt_int(rng, 0, 3); /* none, few, half, all */
        for (int i = 0; i < V; i++)
            if (density == 3 || (density == 2 && kt_int(rng, 0, 1)) ||
                (density == 1 && kt_int(rng, 0, 20) == 0))
                mask[i / 8] |= (uint8_t)(1u << (i % 8));
    }
}

static void check_sample(kt_rng *rng, ct_gpu *g, int T, int V, int masked)
{
    const int64_t stride = V + kt_int(rng, 0, 9);
    const size_t n = (size_t)T, bytes = (size_t)(T * stride) * 4;
    const size_t mask_bytes = n * (size_t)td_ceil_div(V, 8);
    draws c = {kt_alloc(bytes), kt_alloc(n * 4), kt_alloc(n * 4),     kt_alloc(n * 4),
               kt_alloc(n * 4), kt_alloc(n * 8), kt_alloc(mask_bytes)};
    fill_draws(rng, &c, T, V, stride);
    kt_out want = kt_out_new(n, 4, 4), got = kt_out_new(n, 4, 4);
    td_sample_args a = {c.x,
                        c.temperature,
                        c.top_p,
                        c.top_k,
                        c.seed,
                        c.position,
                        masked ? c.mask : NULL,
                        (int32_t *)(void *)want.p,
                        T,
                        V,
                        stride};
    TD_EQ(TD_OK, td_sample_ref(&a, NULL));
    a.logits = ct_up(g, c.x, bytes);
    a.temperature = ct_up(g, c.temperature, n * 4);
    a.top_p = ct_up(g, c.top_p, n * 4);
    a.top_k = ct_up(g, c.top_k, n * 4);
    a.seed = ct_up(g, c.seed, n * 8);
    a.position = ct_up(g, c.position, n * 4);
    a.forbid_ids_mask = ct_up(g, a.forbid_ids_mask, mask_bytes);
    void *p = a.token = ct_out(g, &got);
    TD_EQ(TD_OK, g->ops->sample(&a, g->stream));
    ct_fetch(g, &got, p);
    kt_out_same(&want, &got);
    ct_clear(g);
    kt_out_free(&want);
    kt_out_free(&got);
    void *all[] = {c.x, c.temperature, c.top_p, c.top_k, c.position, c.seed, c.mask};
    for (int i = 0; i < 7; i++)
        free(all[i]);
}

TEST(sample_draws_what_the_judge_draws)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(200); i++)
        check_sample(&rng, &g, kt_int(&rng, 0, 6),
                     KT_PICK(&rng, 1, 2, 7, 16, 17, 100, 1000, 1024, 1025, 4099), i % 3 != 0);
    for (int i = 0; i < 4; i++)
        check_sample(&rng, &g, 4, 129280, i % 2);
    ct_close(&g);
}
