#include "kernels/rmsnorm/rmsnorm.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_rmsnorm_args a;
    void *x, *res;
    float *w;
    kt_out y, res_out, q, qs;
} norm_case;

static norm_case make(kt_rng *rng, int T, int D, td_dtype act, int with_res, int with_q)
{
    norm_case c = {.a = {.T = T, .D = D, .act = act, .eps = 1e-6f}};
    const size_t es = td_dtype_bytes(act), n = (size_t)T * (size_t)D;
    c.a.x_stride = D + kt_int(rng, 0, 9);
    c.a.y_stride = D + kt_int(rng, 0, 9);
    c.a.ue8m0 = kt_int(rng, 0, 1);
    c.x = kt_alloc((size_t)T * (size_t)c.a.x_stride * es);
    kt_fill_act(rng, c.x, (size_t)T * (size_t)c.a.x_stride, 1.5f, act);
    c.w = kt_alloc((size_t)D * 4);
    kt_fill_f32(rng, c.w, (size_t)D, 1.0f);
    if (with_res) {
        c.res = kt_alloc(n * es);
        kt_fill_act(rng, c.res, n, 1.5f, act);
    }
    c.y = kt_out_new((size_t)T, (size_t)D * es, (size_t)c.a.y_stride * es);
    c.res_out = kt_out_new((size_t)T, (size_t)D * es, (size_t)D * es);
    c.q = kt_out_new((size_t)T, (size_t)D, (size_t)D);
    size_t groups = (size_t)td_ceil_div(D, 128);
    c.qs = kt_out_new((size_t)T, groups * 4, groups * 4);
    c.a.x = c.x;
    c.a.w = c.w;
    c.a.res = c.res;
    c.a.y = c.y.p;
    c.a.res_out = with_res ? c.res_out.p : NULL;
    c.a.q = with_q ? c.q.p : NULL;
    c.a.qs = with_q ? (float *)(void *)c.qs.p : NULL;
    return c;
}

static void drop(norm_case *c)
{
    free(c->x);
    free(c->w);
    free(c->res);
    kt_out_free(&c->y);
    kt_out_free(&c->res_out);
    kt_out_free(&c->q);
    kt_out_free(&c->qs);
}

/* The codes and scales that AQ_128 gives for the y that stands there. */
static void check_quantised(const norm_case *c)
{
    const int D = c->a.D, groups = td_ceil_div(D, 128);
    for (int t = 0; t < c->a.T; t++)
        for (int g = 0; g < groups; g++) {
            const td_bf16 *y = (const td_bf16 *)c->a.y + t * c->a.y_stride;
            int end = g * 128 + 128 < D ? g * 128 + 128 : D;
            float amax = 0.0f;
            for (int i = g * 128; i < end; i++)
                amax = fmaxf(amax, fabsf(td_bf16_to_f32(y[i])));
            float scale = td_quant_scale(amax, c->a.ue8m0);
            TD_MEM(&scale, c->a.qs + t * groups + g, 4);
            for (int i = g * 128; i < end; i++)
                TD_EQ(td_quant_code(td_bf16_to_f32(y[i]), scale), c->a.q[t * D + i]);
        }
}

/* The sum of squares is a sum of positive numbers in chains of D/64 and a tree of 6: its relative
 * error is below (D/64 + 6) half units, that of 1/sqrt half of it, and a few roundings follow. In
 * bf16 that is far below half a unit, so neighbours at most. */
static void check_close(const norm_case *c, const void *want)
{
    for (int t = 0; t < c->a.T; t++)
        for (int i = 0; i < c->a.D; i++) {
            size_t at = (size_t)t * (size_t)c->a.y_stride + (size_t)i;
            if (c->a.act == TD_F32)
                TD_TRUE(kt_ulp_f32(((const float *)want)[at], ((const float *)c->a.y)[at]) <=
                        c->a.D / 128 + 8);
            else
                TD_TRUE(kt_ulp_bf16(((const td_bf16 *)want)[at], ((const td_bf16 *)c->a.y)[at]) <=
                        1);
        }
}

static void check(kt_ways *w, norm_case *c)
{
    const size_t y_bytes = c->y.rows * c->y.stride, res_bytes = c->res_out.rows * c->res_out.stride;
    void *want = kt_alloc(y_bytes), *want_res = kt_alloc(res_bytes);
    kt_first first_y = {0}, first_q = {0}, first_qs = {0};
    kt_out *outs[] = {&c->y, &c->res_out, &c->q, &c->qs};
    TD_EQ(TD_OK, td_rmsnorm_ref(&c->a, NULL));
    memcpy(want, c->y.p, y_bytes);
    memcpy(want_res, c->res_out.p, res_bytes);
    while (kt_ways_next(w)) {
        for (int i = 0; i < 4; i++)
            kt_out_poison(outs[i]);
        TD_EQ(TD_OK, td_rmsnorm_cpu(&c->a, w->stream));
        for (int i = 0; i < 4; i++)
            kt_out_check(outs[i]);
        check_close(c, want);
        kt_same_numbers(want_res, c->res_out.p, res_bytes / td_dtype_bytes(c->a.act), c->a.act);
        kt_first_same(&first_y, w, &c->y, c->a.act);
        if (c->a.q != NULL) {
            check_quantised(c);
            kt_first_same(&first_q, w, &c->q, TD_E4M3);
            kt_first_same(&first_qs, w, &c->qs, TD_F32);
        }
    }
    kt_first_free(&first_y);
    kt_first_free(&first_q);
    kt_first_free(&first_qs);
    free(want);
    free(want_res);
}

TEST(matches_the_reference_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        int D = KT_PICK(&rng, 1, 7, 15, 16, 17, 64, 100, 128, 129, 300, 576, 1536, 7168);
        td_dtype act = kt_int(&rng, 0, 1) ? TD_BF16 : TD_F32;
        norm_case c = make(&rng, kt_int(&rng, 0, 5), D, act, kt_int(&rng, 0, 1),
                           act == TD_BF16 && kt_int(&rng, 0, 1));
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
        norm_case c = make(&rng, 5, 200, TD_BF16, 1, 1);
        for (int n = 0; n < 6; n++) /* rows 1, 3 */
            ((td_bf16 *)c.x)[(1 + 2 * kt_int(&rng, 0, 1)) * c.a.x_stride + kt_int(&rng, 0, 199)] =
                td_f32_to_bf16(kt_odd(&rng));
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

TEST(a_row_alone_equals_the_row_in_a_batch)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    norm_case c = make(&rng, 40, 700, TD_BF16, 1, 1);
    while (kt_ways_next(&w)) {
        TD_EQ(TD_OK, td_rmsnorm_cpu(&c.a, w.stream));
        for (int t = 0; t < c.a.T; t++) {
            norm_case one = make(&rng, 1, 700, TD_BF16, 1, 1);
            one.a.ue8m0 = c.a.ue8m0;
            one.a.x = (const td_bf16 *)c.x + t * c.a.x_stride;
            one.a.res = (const td_bf16 *)c.res + t * 700;
            one.a.w = c.w;
            TD_EQ(TD_OK, td_rmsnorm_cpu(&one.a, w.stream));
            TD_MEM(c.y.p + (size_t)t * c.y.stride, one.y.p, c.y.row_bytes);
            TD_MEM(c.q.p + (size_t)t * c.q.stride, one.q.p, c.q.row_bytes);
            TD_MEM(c.qs.p + (size_t)t * c.qs.stride, one.qs.p, c.qs.row_bytes);
            drop(&one);
        }
    }
    drop(&c);
    kt_ways_close(&w);
}

TEST(outputs_may_alias_inputs)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    norm_case c = make(&rng, 6, 333, TD_BF16, 1, 0);
    size_t x_bytes = 6 * (size_t)c.a.x_stride * 2, res_bytes = 6 * 333 * 2;
    void *x = kt_alloc(x_bytes), *res = kt_alloc(res_bytes);
    while (kt_ways_next(&w)) {
        TD_EQ(TD_OK, td_rmsnorm_cpu(&c.a, w.stream));
        memcpy(x, c.x, x_bytes);
        memcpy(res, c.res, res_bytes);
        td_rmsnorm_args a = c.a;
        a.x = a.y = x;
        a.y_stride = a.x_stride;
        a.res = a.res_out = res;
        TD_EQ(TD_OK, td_rmsnorm_cpu(&a, w.stream));
        for (int t = 0; t < 6; t++)
            TD_MEM(c.y.p + (size_t)t * c.y.stride, (td_bf16 *)x + t * a.x_stride, 333 * 2);
        TD_MEM(c.res_out.p, res, res_bytes);
    }
    free(x);
    free(res);
    drop(&c);
    kt_ways_close(&w);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    norm_case c = make(&rng, 2, 32, TD_BF16, 1, 1);
    td_rmsnorm_args bad[] = {c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a};
    bad[0].T = -1;
    bad[1].D = 0;
    bad[2].act = TD_E4M3;
    bad[3].x = NULL;
    bad[4].w = NULL;
    bad[5].y = NULL;
    bad[6].res = NULL;
    bad[7].qs = NULL;
    bad[8].y_stride = 31;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_BAD_SHAPE, td_rmsnorm_cpu(&bad[i], td_device_stream(device)));
    kt_out_check(&c.y);
    TD_EQ(kt_poison(KT_GUARD), c.y.p[0]);
    drop(&c);
    td_device_close(device);
}
