#include "kernels/layernorm/layernorm.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_layernorm_args a;
    void *x;
    float *w, *b;
    kt_out y;
} norm_case;

static norm_case make(kt_rng *rng, int T, int D, td_dtype act)
{
    norm_case c = {.a = {.T = T, .D = D, .act = act, .eps = 1e-6f}};
    const size_t es = td_dtype_bytes(act), n = (size_t)T * (size_t)D;
    c.x = kt_alloc(n * es);
    kt_fill_act(rng, c.x, n, 2.0f, act);
    c.w = kt_alloc((size_t)D * 4);
    c.b = kt_alloc((size_t)D * 4);
    kt_fill_f32(rng, c.w, (size_t)D, 1.0f);
    kt_fill_f32(rng, c.b, (size_t)D, 0.5f);
    c.y = kt_out_new((size_t)T, (size_t)D * es, (size_t)D * es);
    c.a.x = c.x;
    c.a.w = c.w;
    c.a.b = c.b;
    c.a.y = c.y.p;
    return c;
}

static void drop(norm_case *c)
{
    free(c->x);
    free(c->w);
    free(c->b);
    kt_out_free(&c->y);
}

/* y = (x - mu) r w + b: mu is off by at most (D/16 + 6) half units of the mean of |x|, r relatively
 * by half of as much; both carry over to y in proportion to |w| r. In bf16 neighbours are up to
 * 2^-7 apart. */
static void check_close(const norm_case *c, const void *want)
{
    const int D = c->a.D;
    for (int t = 0; t < c->a.T; t++) {
        double abs_sum = 0.0, mean = 0.0, var = 0.0;
        for (int i = 0; i < D; i++) {
            double x = kt_get(c->x, (size_t)(t * D + i), c->a.act);
            abs_sum += fabs(x);
            mean += x / D;
        }
        for (int i = 0; i < D; i++) {
            double d = kt_get(c->x, (size_t)(t * D + i), c->a.act) - mean;
            var += d * d / D;
        }
        double eps = (D / 16.0 + 10.0) * 0x1p-24, r = 1.0 / sqrt(var + 1e-6);
        for (int i = 0; i < D; i++) {
            size_t at = (size_t)(t * D + i);
            double a = kt_get(want, at, c->a.act), b = kt_get(c->a.y, at, c->a.act);
            double x = kt_get(c->x, at, c->a.act);
            double scale = r * fabs(c->w[i]) * (fabs(x) + abs_sum / D) + fabs(c->b[i]);
            double bound =
                eps * scale + (c->a.act == TD_BF16 ? 0x1p-7 * fmax(fabs(a), fabs(b)) : 0.0);
            TD_TRUE((isnan(a) && isnan(b)) || fabs(a - b) <= bound);
        }
    }
}

static void check(kt_ways *w, norm_case *c)
{
    const size_t bytes = c->y.rows * c->y.stride;
    void *want = kt_alloc(bytes);
    kt_first first = {0};
    TD_EQ(TD_OK, td_layernorm_ref(&c->a, NULL));
    memcpy(want, c->y.p, bytes);
    while (kt_ways_next(w)) {
        kt_out_poison(&c->y);
        TD_EQ(TD_OK, td_layernorm_cpu(&c->a, w->stream));
        kt_out_check(&c->y);
        check_close(c, want);
        kt_first_same(&first, w, &c->y, c->a.act);
    }
    kt_first_free(&first);
    free(want);
}

TEST(matches_the_reference_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        int D = KT_PICK(&rng, 2, 7, 15, 16, 17, 64, 100, 128, 129, 300);
        norm_case c = make(&rng, kt_int(&rng, 0, 9), D, kt_int(&rng, 0, 1) ? TD_BF16 : TD_F32);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

TEST(nan_and_infinity_stay_in_their_row)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 20; i++) {
        static const float odd[] = {NAN, INFINITY, -INFINITY};
        norm_case c = make(&rng, 5, 128, TD_BF16);
        ((td_bf16 *)c.x)[(1 + 2 * kt_int(&rng, 0, 1)) * 128 + kt_int(&rng, 0, 127)] =
            td_f32_to_bf16(odd[i % 3]);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

TEST(a_row_alone_equals_the_row_in_a_batch_and_in_place)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    norm_case c = make(&rng, 300, 128, TD_BF16);
    while (kt_ways_next(&w)) {
        TD_EQ(TD_OK, td_layernorm_cpu(&c.a, w.stream));
        for (int t = 0; t < c.a.T; t += 17) {
            td_bf16 row[128];
            memcpy(row, (td_bf16 *)c.x + t * 128, sizeof(row));
            td_layernorm_args a = c.a;
            a.T = 1;
            a.x = a.y = row;
            TD_EQ(TD_OK, td_layernorm_cpu(&a, w.stream));
            TD_MEM(c.y.p + t * 256, row, 256);
        }
    }
    drop(&c);
    kt_ways_close(&w);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    norm_case c = make(&rng, 2, 32, TD_BF16);
    td_layernorm_args bad[] = {c.a, c.a, c.a, c.a, c.a, c.a, c.a};
    bad[0].T = -1;
    bad[1].D = 0;
    bad[2].act = TD_E4M3;
    bad[3].x = NULL;
    bad[4].w = NULL;
    bad[5].b = NULL;
    bad[6].y = NULL;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_BAD_SHAPE, td_layernorm_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(kt_poison(KT_GUARD), c.y.p[0]);
    drop(&c);
    td_device_close(device);
}
