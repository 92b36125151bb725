/* Bits are fixed by the formula: codes and scales equal the reference's. */
#include "kernels/quant/quant.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static void fill(kt_rng *rng, td_bf16 *x, size_t n, int kind)
{
    kt_fill_bf16(rng, x, n, 2.0f);
    for (size_t i = 0; i < n; i++) {
        if (kind == 1) /* every exponent and sign, NaN and infinities among them */
            x[i] = (td_bf16)kt_u64(rng);
        if (kind == 2)
            x[i] = kt_int(rng, 0, 60) ? x[i] : td_f32_to_bf16(kt_odd(rng));
        if (kind == 3) /* far below the floor of amax */
            x[i] = td_f32_to_bf16(kt_normal(rng) * 1e-6f);
    }
}

TEST(codes_and_scales_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        td_quant_args a = {.T = KT_PICK(&rng, 0, 1, 2, 65),
                           .K = KT_PICK(&rng, 1, 5, 16, 127, 128, 129, 300, 576),
                           .ue8m0 = kt_int(&rng, 0, 1)};
        a.x_stride = a.K + KT_PICK(&rng, 0, 0, 11);
        const size_t T = (size_t)a.T, K = (size_t)a.K, G = (size_t)td_ceil_div(a.K, 128);
        const size_t n = T > 0 ? (T - 1) * (size_t)a.x_stride + K : 0;
        td_bf16 *x = kt_alloc(n * 2);
        fill(&rng, x, n, i % 4);
        kt_out want_q = kt_out_new(T, K, K), want_s = kt_out_new(T, G * 4, G * 4);
        kt_out q = kt_out_new(T, K, K), s = kt_out_new(T, G * 4, G * 4);
        a.x = x;
        a.q = want_q.p;
        a.qs = (float *)(void *)want_s.p;
        TD_EQ(TD_OK, td_quant_ref(&a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&q);
            kt_out_poison(&s);
            a.q = q.p;
            a.qs = (float *)(void *)s.p;
            TD_EQ(TD_OK, td_quant_cpu(&a, w.stream));
            kt_out_check(&q);
            kt_out_check(&s);
            kt_out_same(&want_q, &q);
            kt_out_same(&want_s, &s);
        }
        kt_out_free(&want_q);
        kt_out_free(&want_s);
        kt_out_free(&q);
        kt_out_free(&s);
        free(x);
    }
    kt_ways_close(&w);
}

/* Every bf16 once, at a scale of its own: half-way cases, subnormal codes, saturation. */
TEST(every_bf16_gets_the_reference_s_code)
{
    kt_ways w = kt_ways_open();
    td_bf16 *x = kt_alloc(65536 * 2 * 4);
    for (int i = 0; i < 65536; i++) {
        x[2 * i] = (td_bf16)i; /* beside 1.0: codes below 448, no saturation */
        x[2 * i + 1] = 0x3f80;
        x[2 * (65536 + i)] = (td_bf16)i; /* alone: the largest of its group */
    }
    uint8_t *want = kt_alloc(65536 * 4), *q = kt_alloc(65536 * 4);
    float *qs = kt_alloc(65536 * 2 * 4);
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++) {
        td_quant_args a = {x, want, qs, 2 * 65536, 2, 2, ue8m0};
        TD_EQ(TD_OK, td_quant_ref(&a, NULL));
        a.q = q;
        while (kt_ways_next(&w)) {
            TD_EQ(TD_OK, td_quant_cpu(&a, w.stream));
            TD_MEM(want, q, 65536 * 4);
        }
    }
    free(x);
    free(want);
    free(q);
    free(qs);
    kt_ways_close(&w);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    td_bf16 x[8] = {0};
    uint8_t q[8];
    float qs[2];
    const td_quant_args good = {x, q, qs, 2, 4, 4, 1};
    td_quant_args bad[6];
    for (int i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].K = -1;
    bad[2].x_stride = 3;
    bad[3].x = NULL;
    bad[4].q = NULL;
    bad[5].qs = NULL;
    for (int i = 0; i < 6; i++)
        TD_EQ(TD_BAD_SHAPE, td_quant_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_quant_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
