#include "kernels/rope/rope.h"
#include "kernels/rope/rope_table.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static const td_rope_params v32 = {.R = 64,
                                   .theta = 10000.0f,
                                   .yarn = 1,
                                   .factor = 40.0f,
                                   .beta_fast = 32.0f,
                                   .beta_slow = 1.0f,
                                   .original_max_pos = 4096};

static void near(double want, double got, double relative)
{
    if (fabs(got - want) > relative * fabs(want)) {
        printf("want %.9g, got %.9g\n", want, got);
        TD_TRUE(0);
    }
}

/* model-spec A.4, check values */
TEST(yarn_frequencies_are_the_specified_ones)
{
    double f[32];
    TD_EQ(TD_OK, td_rope_frequencies(&v32, f, NULL));
    TD_TRUE(f[0] == 1.0f);
    near(0.0562341325, f[10], 2e-7);
    near(0.0390069266, f[11], 2e-7);
    near(0.0083345090, f[15], 2e-7);
    near(1.778279e-4, f[22], 1e-6);
    near(3.333804e-5, f[23], 1e-6);
    near(3.333804e-6, f[31], 1e-6);
}

TEST(plain_frequencies_are_powers_of_theta)
{
    double f[32];
    td_rope_params plain = {.R = 64, .theta = 10000.0f};
    TD_EQ(TD_OK, td_rope_frequencies(&plain, f, NULL));
    for (int i = 0; i < 32; i++)
        near(pow(10000.0, -2.0 * i / 64), f[i], 3e-7);
}

/* The angle is rounded to f32; its cosine and sine are those of the rounded angle, to an ulp. */
TEST(the_table_holds_the_cosine_and_sine_of_the_angle)
{
    const int max_pos = 163840;
    double f[32];
    float *table = kt_alloc((size_t)max_pos * 64 * 4);
    TD_EQ(TD_OK, td_rope_frequencies(&v32, f, NULL));
    TD_EQ(TD_OK, td_rope_table(&v32, max_pos, table, NULL));
    for (int p = 0; p < max_pos; p += p < 100 ? 1 : 997)
        for (int i = 0; i < 32; i++) {
            double angle = (double)p * f[i];
            TD_TRUE(fabs(cos(angle) - (double)table[p * 64 + 2 * i]) <= 0x1p-24);
            TD_TRUE(fabs(sin(angle) - (double)table[p * 64 + 2 * i + 1]) <= 0x1p-24);
        }
    TD_TRUE(table[0] == 1.0f && table[1] == 0.0f);
    free(table);
}

TEST(the_table_refuses_bad_parameters)
{
    double f[8];
    float table[8];
    td_rope_params bad[8];
    for (int i = 0; i < 8; i++) {
        bad[i] = v32;
        bad[i].R = 16;
    }
    bad[0].R = 7;
    bad[1].R = 0;
    bad[2].theta = 1.0f;
    bad[3].theta = NAN;
    bad[4].factor = 0.0f;
    bad[5].beta_slow = -1.0f;
    bad[6].original_max_pos = 0;
    bad[7].factor = INFINITY;
    for (int i = 0; i < 8; i++)
        TD_EQ(TD_INVALID, td_rope_frequencies(&bad[i], f, NULL));
    TD_EQ(TD_INVALID, td_rope_table(&v32, -1, table, NULL));
}

typedef struct {
    td_rope_args a;
    int32_t *positions;
    float *table;
    size_t es, n; /* elements of x */
    void *x;
} rope_case;

static rope_case make(kt_rng *rng, int T, int heads, int R, td_dtype act)
{
    rope_case c = {.a = {.T = T, .heads = heads, .R = R, .act = act, .max_pos = 50}};
    c.es = td_dtype_bytes(act);
    c.a.interleaved = kt_int(rng, 0, 1);
    c.a.head_stride = R + kt_int(rng, 0, 70);
    c.a.row_stride = heads * c.a.head_stride + kt_int(rng, 0, 70);
    c.n = (size_t)(T * c.a.row_stride);
    c.x = kt_alloc(c.n * c.es);
    kt_fill_act(rng, c.x, c.n, 3.0f, act);
    c.positions = kt_alloc((size_t)T * 4);
    for (int t = 0; t < T; t++)
        c.positions[t] = kt_int(rng, -2, 51);
    c.table = kt_alloc(50 * (size_t)R * 4);
    kt_fill_f32(rng, c.table, 50 * (size_t)R, 0.7f);
    c.a.positions = c.positions;
    c.a.cos_sin = c.table;
    return c;
}

static void drop(rope_case *c)
{
    free(c->x);
    free(c->positions);
    free(c->table);
}

static void check(kt_ways *w, rope_case *c)
{
    kt_out out = kt_out_new(1, c->n * c->es, c->n * c->es);
    void *want = kt_alloc(c->n * c->es);
    memcpy(want, c->x, c->n * c->es);
    c->a.x = want;
    TD_EQ(TD_OK, td_rope_ref(&c->a, NULL));
    c->a.x = out.p;
    while (kt_ways_next(w)) {
        kt_out_poison(&out);
        memcpy(out.p, c->x, c->n * c->es);
        TD_EQ(TD_OK, td_rope_cpu(&c->a, w->stream));
        kt_out_check(&out);
        for (size_t i = 0; i < c->n; i++) {
            float a = kt_get(want, i, c->a.act), b = kt_get(out.p, i, c->a.act);
            if (!(isnan(a) && isnan(b)))
                TD_MEM((char *)want + i * c->es, out.p + i * c->es, c->es);
        }
    }
    free(want);
    kt_out_free(&out);
}

TEST(has_the_references_bits_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 150; i++) {
        int R = KT_PICK(&rng, 2, 4, 6, 16, 18, 30, 32, 34, 64, 66, 128);
        rope_case c = make(&rng, kt_int(&rng, 0, 7), kt_int(&rng, 0, 5), R,
                           kt_int(&rng, 0, 1) ? TD_BF16 : TD_F32);
        if (i % 4 == 0 && c.n > 0 && c.a.act == TD_F32)
            ((float *)c.x)[kt_int(&rng, 0, (int)c.n - 1)] = kt_odd(&rng);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

TEST(many_rows_are_each_like_one_alone)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    rope_case c = make(&rng, 200, 4, 64, TD_BF16);
    check(&w, &c);
    drop(&c);
    kt_ways_close(&w);
}

TEST(both_pairings_rotate_the_same_planes)
{
    td_device *device = kt_open(1);
    float table[64], pairs[64], halves[64];
    td_rope_params p = {.R = 64, .theta = 100.0f};
    float *cos_sin = kt_alloc(8 * 64 * 4);
    TD_EQ(TD_OK, td_rope_table(&p, 8, cos_sin, NULL));
    for (int i = 0; i < 32; i++) {
        pairs[2 * i] = halves[i] = (float)i - 7.0f;
        pairs[2 * i + 1] = halves[32 + i] = (float)i * 0.25f;
    }
    int32_t position = 5;
    td_rope_args a = {.x = pairs,
                      .positions = &position,
                      .cos_sin = cos_sin,
                      .T = 1,
                      .heads = 1,
                      .R = 64,
                      .max_pos = 8,
                      .interleaved = 1,
                      .act = TD_F32};
    TD_EQ(TD_OK, td_rope_cpu(&a, td_device_stream(device)));
    a.x = halves;
    a.interleaved = 0;
    TD_EQ(TD_OK, td_rope_cpu(&a, td_device_stream(device)));
    for (int i = 0; i < 32; i++) {
        table[i] = halves[i];
        TD_TRUE(pairs[2 * i] == halves[i] && pairs[2 * i + 1] == halves[32 + i]);
    }
    double angle = 5.0 * pow(100.0, -2.0 / 64);
    near(-6.0 * cos(angle) - 0.25 * sin(angle), table[1], 1e-6);
    free(cos_sin);
    td_device_close(device);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    rope_case c = make(&rng, 2, 2, 32, TD_BF16);
    c.a.x = c.x;
    td_rope_args bad[] = {c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a};
    bad[0].T = -1;
    bad[1].R = 31;
    bad[2].act = TD_E4M3;
    bad[3].x = NULL;
    bad[4].positions = NULL;
    bad[5].cos_sin = NULL;
    bad[6].heads = -1;
    bad[7].head_stride = 31;
    bad[8].max_pos = -1;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_BAD_SHAPE, td_rope_cpu(&bad[i], td_device_stream(device)));
    drop(&c);
    td_device_close(device);
}
