#include "kernels/hadamard_quant/hadamard_quant.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static void check(kt_ways *w, const td_bf16 *x, int T, int ue8m0)
{
    kt_out want_q = kt_out_new((size_t)T, 128, 128), want_qs = kt_out_new((size_t)T, 4, 4);
    kt_out q = kt_out_new((size_t)T, 128, 128), qs = kt_out_new((size_t)T, 4, 4);
    td_hadamard_quant_args a = {x, want_q.p, (float *)(void *)want_qs.p, T, ue8m0};
    TD_EQ(TD_OK, td_hadamard_quant_ref(&a, NULL));
    a.q = q.p;
    a.qs = (float *)(void *)qs.p;
    while (kt_ways_next(w)) {
        kt_out_poison(&q);
        kt_out_poison(&qs);
        TD_EQ(TD_OK, td_hadamard_quant_cpu(&a, w->stream));
        kt_out_check(&q);
        kt_out_check(&qs);
        kt_out_same(&want_q, &q);
        kt_out_same(&want_qs, &qs);
    }
    kt_out *outs[] = {&want_q, &want_qs, &q, &qs};
    for (int i = 0; i < 4; i++)
        kt_out_free(outs[i]);
}

TEST(has_the_references_bits_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        int T = KT_PICK(&rng, 0, 1, 2, 7, 130, 300);
        td_bf16 *x = kt_alloc((size_t)T * 256);
        kt_fill_bf16(&rng, x, (size_t)T * 128, ldexpf(1.0f, kt_int(&rng, -30, 30)));
        for (int n = 0; n < T && i % 3 == 0; n++)
            x[kt_int(&rng, 0, T * 128 - 1)] = td_f32_to_bf16(kt_odd(&rng));
        check(&w, x, T, kt_int(&rng, 0, 1));
        free(x);
    }
    kt_ways_close(&w);
}

/* The transform of a unit vector is a row of the Walsh matrix: (-1)^popcount(i & j) / sqrt(128). */
TEST(unit_vectors_give_the_natural_order_walsh_matrix)
{
    td_device *device = kt_open(1);
    for (int i = 0; i < 128; i++) {
        td_bf16 x[128] = {0};
        uint8_t q[128];
        float qs;
        x[i] = td_f32_to_bf16(1.0f);
        td_hadamard_quant_args a = {x, q, &qs, 1, 1};
        TD_EQ(TD_OK, td_hadamard_quant_cpu(&a, td_device_stream(device)));
        float h = td_bf16_to_f32(td_f32_to_bf16(0.08838834764831845f));
        for (int j = 0; j < 128; j++) {
            float sign = __builtin_popcount((unsigned)(i & j)) % 2 ? -1.0f : 1.0f;
            TD_EQ(td_quant_code(sign * h, qs), q[j]);
        }
    }
    td_device_close(device);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    td_bf16 x[128];
    uint8_t q[128];
    float qs;
    td_hadamard_quant_args good = {x, q, &qs, 1, 1}, bad[] = {good, good, good, good};
    bad[0].T = -1;
    bad[1].x = NULL;
    bad[2].q = NULL;
    bad[3].qs = NULL;
    for (int i = 0; i < 4; i++)
        TD_EQ(TD_BAD_SHAPE, td_hadamard_quant_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
