/* td_expf, additions and divisions in a fixed order: ids and weights equal the reference's bits
 * (NaN equals NaN). */
#include "kernels/moe_gate/moe_gate.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static const int shapes[][4] = {
    /* E, K, n_group, topk_group */
    {256, 8, 8, 4}, {16, 4, 4, 2}, {8, 2, 1, 1},   {8, 8, 1, 1},   {6, 2, 6, 3},  {6, 3, 6, 3},
    {1, 1, 1, 1},   {9, 6, 3, 2},  {160, 6, 8, 3}, {33, 5, 11, 5}, {64, 8, 2, 2},
};

/* Logits of few values make ties; odd numbers make NaN. */
static void fill(kt_rng *rng, float *x, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = kt_normal(rng) * 2.0f;
        if (kind == 1)
            x[i] = (float)kt_int(rng, -1, 1);
        if (kind == 2 && kt_int(rng, 0, 8) == 0)
            x[i] = kt_odd(rng);
        if (kind == 3)
            x[i] = NAN;
    }
}

static void same_weights(const kt_out *want, const kt_out *got)
{
    for (size_t i = 0; i < want->rows * want->row_bytes / 4; i++)
        TD_EQ(0, kt_ulp_f32(((float *)(void *)want->p)[i], ((float *)(void *)got->p)[i]));
}

TEST(choices_and_weights_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 88; i++) {
        const int *s = shapes[i % 11];
        td_moe_gate_args a = {.T = KT_PICK(&rng, 0, 1, 2, 60), .E = s[0], .K = s[1]};
        a.n_group = s[2];
        a.topk_group = s[3];
        a.norm_topk = kt_int(&rng, 0, 1);
        a.scale = kt_int(&rng, 0, 1) ? 2.5f : 1.0f;
        a.eps = kt_int(&rng, 0, 1) ? 1e-20f : 0.0f;
        const size_t n = (size_t)a.T * (size_t)a.E, row = (size_t)a.K * 4, T = (size_t)a.T;
        float *logits = kt_alloc(n * 4), *bias = kt_alloc((size_t)a.E * 4);
        fill(&rng, logits, n, i / 22);
        fill(&rng, bias, (size_t)a.E, i / 22 == 3 ? 0 : i / 22);
        kt_out want_ids = kt_out_new(T, row, row), want_w = kt_out_new(T, row, row);
        kt_out ids = kt_out_new(T, row, row), weights = kt_out_new(T, row, row);
        a.logits = logits;
        a.bias = kt_int(&rng, 0, 2) ? bias : NULL;
        a.ids = (int32_t *)(void *)want_ids.p;
        a.weights = (float *)(void *)want_w.p;
        TD_EQ(TD_OK, td_moe_gate_ref(&a, NULL));
        a.ids = (int32_t *)(void *)ids.p;
        a.weights = (float *)(void *)weights.p;
        while (kt_ways_next(&w)) {
            kt_out_poison(&ids);
            kt_out_poison(&weights);
            TD_EQ(TD_OK, td_moe_gate_cpu(&a, w.stream));
            kt_out_check(&ids);
            kt_out_check(&weights);
            kt_out_same(&want_ids, &ids);
            same_weights(&want_w, &weights);
        }
        kt_out_free(&want_ids);
        kt_out_free(&want_w);
        kt_out_free(&ids);
        kt_out_free(&weights);
        free(logits);
        free(bias);
    }
    kt_ways_close(&w);
}

/* Worked by hand: groups {0,1} {2,3} {4,5}; sigmoid(0) = 0.5 everywhere, the bias decides. */
TEST(a_small_case_by_hand)
{
    kt_ways w = kt_ways_open();
    const float logits[6] = {0}, bias[6] = {0.5f, 0, 0.25f, 0.25f, 0.25f, 0.25f};
    int32_t ids[3];
    float weights[3];
    /* all groups sum to 1.5: the first two are kept; of 0: 1.0, 1: 0.5, 2 and 3: 0.75 */
    td_moe_gate_args a = {logits, bias, ids, weights, 1, 6, 3, 3, 2, 1, 3.0f, 0};
    while (kt_ways_next(&w)) {
        TD_EQ(TD_OK, td_moe_gate_cpu(&a, w.stream));
        TD_EQ(0, ids[0]);
        TD_EQ(2, ids[1]);
        TD_EQ(3, ids[2]);
        for (int k = 0; k < 3; k++)
            TD_TRUE(weights[k] == 0.5f / 1.5f * 3.0f);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    float logits[8] = {0}, weights[4];
    int32_t ids[4];
    const td_moe_gate_args good = {logits, NULL, ids, weights, 1, 8, 4, 4, 2, 1, 1, 0};
    td_moe_gate_args bad[10];
    for (int i = 0; i < 10; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].E = 0;
    bad[2].n_group = 3;
    bad[3].n_group = 0;
    bad[4].topk_group = 5;
    bad[5].topk_group = 0;
    bad[6].K = 5; /* two groups of two experts are kept */
    bad[7].logits = NULL;
    bad[8].ids = NULL;
    bad[9].weights = NULL;
    for (int i = 0; i < 10; i++)
        TD_EQ(TD_BAD_SHAPE, td_moe_gate_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_moe_gate_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
