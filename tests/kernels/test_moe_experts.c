/* Against the reference: x, gate and up hold small integers and scales powers of two, so that the
 * first two products are exact, and so are the bits of the third's input; the sums of the third are
 * then within the bound of test_gemm.c, times the weight, plus one rounding per expert for the
 * weighted sum: (64 + 4 + I/1024 + 2 + 128 + I/128 + 4 + 2 K) * 2^-24 * sum |weight h down|.
 * With arbitrary numbers: equal bits to gemm, silu_mul, gemm and the weighted sum, one expert at a
 * time. */
#include "kernels/gemm/gemm.h"
#include "kernels/moe_experts/moe_experts.h"
#include "kernels/silu_mul/silu_mul.h"
#include "tests/common/base/td_hard.h"
#include "tests/kernels/moe_exact.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef enum { INTEGERS, NORMAL } values;
typedef enum { RANDOM, ALL_ON_ONE, NONE, FEW } routing;

typedef struct {
    td_moe_experts_args a;
    void *x, *gate, *up, *down;
    float *xs, *gate_s, *up_s, *down_s, *weights;
    int32_t *ids;
    kt_out y, want;
} problem;

static int groups(int n)
{
    return td_ceil_div(n, TD_QUANT_GROUP);
}

static void *numbers(kt_rng *rng, size_t n, td_dtype dtype, values v, float scale)
{
    if (v == INTEGERS)
        return kt_moe_integers(rng, n, dtype);
    void *x = kt_alloc(n * td_dtype_bytes(dtype));
    kt_fill_act(rng, x, n, scale, dtype);
    return x;
}

static float *scales(kt_rng *rng, size_t n, values v, float scale)
{
    if (v == INTEGERS)
        return kt_moe_powers(rng, n);
    float *s = kt_alloc(n * 4);
    for (size_t i = 0; i < n; i++)
        s[i] = scale * (0.5f + kt_unit(rng));
    return s;
}

static void route(kt_rng *rng, problem *p, routing r)
{
    const int E = p->a.expert_hi + 2, n = p->a.T * p->a.K;
    const int one = kt_int(rng, 0, E - 1);
    p->ids = kt_alloc((size_t)n * 4);
    p->weights = kt_alloc((size_t)n * 4);
    for (int i = 0; i < n; i++) {
        p->ids[i] = r == ALL_ON_ONE ? p->a.expert_lo : r == NONE ? -1 : kt_int(rng, -1, E - 1);
        if (r == FEW && kt_int(rng, 0, 5))
            p->ids[i] = one;
        p->weights[i] = 0.1f + kt_unit(rng);
    }
}

static problem make(kt_rng *rng, td_moe_experts_args shape, values v, routing r)
{
    problem p = {.a = shape};
    td_moe_experts_args *a = &p.a;
    const size_t T = (size_t)a->T, D = (size_t)a->D, I = (size_t)a->I;
    const size_t E = (size_t)(a->expert_hi - a->expert_lo);
    const size_t gd = (size_t)groups(a->D), gi = (size_t)groups(a->I);
    a->x = p.x = numbers(rng, T * D, a->dtype, v, 1.0f);
    a->gate = p.gate = numbers(rng, E * I * D, a->dtype, v, 0.1f);
    a->up = p.up = numbers(rng, E * I * D, a->dtype, v, 0.1f);
    a->down = p.down = numbers(rng, E * I * D, a->dtype, v, 0.1f);
    if (a->dtype == TD_E4M3) {
        a->xs = p.xs = scales(rng, T * gd, v, 0.01f);
        a->gate_s = p.gate_s = scales(rng, E * gi * gd, v, 0.001f);
        a->up_s = p.up_s = scales(rng, E * gi * gd, v, 0.001f);
        a->down_s = p.down_s = scales(rng, E * gi * gd, v, 0.001f);
    }
    route(rng, &p, r);
    a->ids = p.ids;
    a->weights = p.weights;
    p.y = kt_out_new(T, D * 4, D * 4);
    p.want = kt_out_new(T, D * 4, D * 4);
    a->y = (float *)(void *)p.y.p;
    return p;
}

static void drop(problem *p)
{
    void *all[] = {p->x,    p->gate,   p->up,      p->down, p->xs,     p->gate_s,
                   p->up_s, p->down_s, p->weights, p->ids,  p->y.base, p->want.base};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

static td_moe_experts_args draw(kt_rng *rng, td_dtype dtype, int64_t most)
{
    td_moe_experts_args a = {.dtype = dtype, .ue8m0 = 1};
    do {
        a.T = KT_PICK(rng, 1, 2, 3, 9, 50, 200);
        a.D = KT_PICK(rng, 1, 40, 128, 130, 256, 300);
        a.I = KT_PICK(rng, 1, 17, 128, 130, 256);
        a.K = KT_PICK(rng, 1, 2, 4);
        a.expert_lo = KT_PICK(rng, 0, 0, 3);
        a.expert_hi = a.expert_lo + KT_PICK(rng, 1, 2, 7);
    } while ((int64_t)a.T * a.K * a.D * a.I > most);
    return a;
}

static void run(problem *p, td_stream *stream)
{
    kt_out_poison(&p->y);
    TD_EQ(TD_OK, td_moe_experts_cpu(&p->a, stream));
    kt_out_check(&p->y);
}

static double row_bound(const td_moe_experts_args *a, int t, int d)
{
    const int steps = 64 + 4 + a->I / 1024 + 2 + 128 + a->I / 128 + 4 + 2 * a->K;
    return steps * 0x1p-24 * kt_moe_magnitude(a, t, d);
}

TEST(exact_inputs_give_the_reference_within_rounding)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 24; i++) {
        problem p = make(&rng, draw(&rng, (td_dtype)(i % 3), 1000000), INTEGERS,
                         i < 18 ? RANDOM : (routing)(i % 4));
        td_moe_experts_args ref = p.a;
        ref.y = (float *)(void *)p.want.p;
        TD_EQ(TD_OK, td_moe_experts_ref(&ref, NULL));
        kt_first first = {{NULL, NULL}};
        while (kt_ways_next(&w)) {
            run(&p, w.stream);
            kt_first_same(&first, &w, &p.y, TD_F32);
            if (w.threads > 1)
                continue;
            for (int n = 0; n < 300; n++) {
                int t = kt_int(&rng, 0, p.a.T - 1), d = kt_int(&rng, 0, p.a.D - 1);
                double got = (double)p.a.y[t * p.a.D + d], want = (double)ref.y[t * p.a.D + d];
                /* the bound is dear: first see whether it is needed */
                if (got != want && !(fabs(got - want) <= row_bound(&p.a, t, d))) {
                    printf("[%d, %d] is %.9g, reference %.9g\n", t, d, got, want);
                    TD_TRUE(0);
                }
            }
        }
        kt_first_free(&first);
        drop(&p);
    }
    kt_ways_close(&w);
}

/* f_e of all rows of x by the operations that it is made of; out [T, D]. */
static void one_expert(const problem *p, int e, float *out, td_stream *stream)
{
    const td_moe_experts_args *a = &p->a;
    const td_dtype act = a->dtype == TD_F32 ? TD_F32 : TD_BF16;
    const size_t n = (size_t)a->T * (size_t)a->I, w = (size_t)a->I * (size_t)a->D;
    const size_t ws = (size_t)(groups(a->I) * groups(a->D)), size = td_dtype_bytes(a->dtype);
    void *g = kt_alloc(n * 4), *u = kt_alloc(n * 4);
    uint8_t *q = kt_alloc(n);
    float *qs = kt_alloc((size_t)(a->T * groups(a->I)) * 4);
    const int e4m3 = a->dtype == TD_E4M3;
    td_gemm_args first = {.x = a->x, .xs = a->xs, .M = a->T, .N = a->I, .K = a->D, .y = g};
    first.w = (char *)p->gate + (size_t)e * w * size;
    first.ws = e4m3 ? p->gate_s + (size_t)e * ws : NULL;
    first.x_stride = a->D;
    first.y_stride = a->I;
    first.dtype = a->dtype;
    first.y_dtype = act;
    TD_EQ(TD_OK, td_gemm_cpu(&first, stream));
    first.w = (char *)p->up + (size_t)e * w * size;
    first.ws = e4m3 ? p->up_s + (size_t)e * ws : NULL;
    first.y = u;
    TD_EQ(TD_OK, td_gemm_cpu(&first, stream));
    td_silu_mul_args product = {g, u, g, e4m3 ? q : NULL, qs, a->T, a->I, a->ue8m0, act};
    TD_EQ(TD_OK, td_silu_mul_cpu(&product, stream));
    td_gemm_args last = {.x = e4m3 ? (void *)q : g, .xs = qs, .M = a->T, .N = a->D, .K = a->I};
    last.w = (char *)p->down + (size_t)e * w * size;
    last.ws = e4m3 ? p->down_s + (size_t)e * ws : NULL;
    last.y = out;
    last.x_stride = a->I;
    last.y_stride = a->D;
    last.dtype = a->dtype;
    last.y_dtype = TD_F32;
    TD_EQ(TD_OK, td_gemm_cpu(&last, stream));
    free(g);
    free(u);
    free(q);
    free(qs);
}

static void by_parts(const problem *p, float *y, td_stream *stream)
{
    const td_moe_experts_args *a = &p->a;
    const int E = a->expert_hi - a->expert_lo;
    const int64_t n = (int64_t)a->T * a->D;
    float *out = kt_alloc((size_t)(E * n) * 4);
    for (int e = 0; e < E; e++)
        one_expert(p, e, out + e * n, stream);
    for (int64_t i = 0; i < n; i++) {
        y[i] = 0;
        for (int64_t k = 0; k < a->K; k++) {
            const int64_t at = i / a->D * a->K + k;
            const int e = p->ids[at] - a->expert_lo;
            if (e >= 0 && e < E)
                y[i] += p->weights[at] * out[e * n + i];
        }
    }
    free(out);
}

TEST(any_inputs_give_the_bits_of_the_operations_it_is_made_of)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 30; i++) {
        td_moe_experts_args shape = draw(&rng, (td_dtype)(i % 3), 6000000);
        shape.ue8m0 = kt_int(&rng, 0, 1);
        problem p = make(&rng, shape, NORMAL, (routing)(i % 4));
        while (kt_ways_next(&w)) {
            by_parts(&p, (float *)(void *)p.want.p, w.stream);
            run(&p, w.stream);
            kt_out_same(&p.want, &p.y);
            run(&p, w.stream); /* twice: the same bits */
            kt_out_same(&p.want, &p.y);
        }
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(a_row_does_not_depend_on_the_others)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 9; i++) {
        problem p = make(&rng, draw(&rng, (td_dtype)(i % 3), 6000000), NORMAL, (routing)(i % 4));
        while (kt_ways_next(&w)) {
            run(&p, w.stream);
            memcpy(p.want.base, p.y.base, kt_out_bytes(&p.y));
            kt_out_poison(&p.y);
            for (int64_t t = 0; t < p.a.T;) {
                td_moe_experts_args a = p.a;
                a.T = t < 5 ? 1 : kt_int(&rng, 1, 30);
                a.T = a.T < p.a.T - t ? a.T : (int)(p.a.T - t);
                a.x = (char *)p.x + (size_t)(t * a.D) * td_dtype_bytes(a.dtype);
                a.xs = p.xs == NULL ? NULL : p.xs + t * groups(a.D);
                a.ids += t * a.K;
                a.weights += t * a.K;
                a.y += t * a.D;
                TD_EQ(TD_OK, td_moe_experts_cpu(&a, w.stream));
                t += a.T;
            }
            kt_out_check(&p.y);
            kt_out_same(&p.want, &p.y);
        }
        drop(&p);
    }
    kt_ways_close(&w);
}

/* More pairs of token and expert than a chunk of tokens or a slab of columns holds. */
TEST(long_batches_are_cut_without_a_trace)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(2);
    td_stream *stream = td_device_stream(device);
    td_moe_experts_args shape = {.T = 9000, .D = 400, .I = 512, .K = 4, .dtype = TD_F32};
    shape.expert_lo = 1;
    shape.expert_hi = 3;
    problem p = make(&rng, shape, NORMAL, RANDOM);
    run(&p, stream);
    for (int i = 0; i < 200; i++) {
        int64_t t = i < 3 ? i : i < 6 ? shape.T - 1 - i : kt_int(&rng, 0, shape.T - 1);
        float row[400];
        td_moe_experts_args a = p.a;
        a.T = 1;
        a.x = (char *)p.x + (size_t)(t * a.D) * 4;
        a.ids += t * a.K;
        a.weights += t * a.K;
        a.y = row;
        TD_EQ(TD_OK, td_moe_experts_cpu(&a, stream));
        TD_MEM(p.y.p + (size_t)t * p.y.stride, row, sizeof(row));
    }
    drop(&p);
    td_device_close(device);
}

TEST(rows_without_an_expert_of_ours_are_zero)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 9; i++) {
        td_moe_experts_args shape = draw(&rng, (td_dtype)(i % 3), 1000000);
        if (i < 3)
            shape.I = 0;
        else if (i < 6)
            shape.expert_hi = shape.expert_lo;
        problem p = make(&rng, shape, NORMAL, i < 6 ? RANDOM : NONE);
        while (kt_ways_next(&w)) {
            run(&p, w.stream);
            for (int n = 0; n < p.a.T * p.a.D; n++)
                TD_TRUE(p.a.y[n] == 0.0f && !signbit(p.a.y[n]));
        }
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(nan_stays_in_its_row)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int d = 0; d < 3; d++) {
        td_moe_experts_args shape = {.T = 20, .D = 130, .I = 140, .K = 2, .dtype = (td_dtype)d};
        shape.expert_hi = 3;
        problem p = make(&rng, shape, NORMAL, ALL_ON_ONE);
        if (d == TD_F32)
            ((float *)p.x)[7 * 130 + 5] = NAN;
        else if (d == TD_BF16)
            ((td_bf16 *)p.x)[7 * 130 + 5] = 0x7fc0;
        else
            ((uint8_t *)p.x)[7 * 130 + 5] = 0x7f;
        while (kt_ways_next(&w)) {
            run(&p, w.stream);
            for (int n = 0; n < 20 * 130; n++)
                TD_EQ(n / 130 == 7, isnan(p.a.y[n]) != 0);
        }
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(says_when_memory_is_short)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(3);
    td_moe_experts_args shape = {.T = 20, .D = 40, .I = 30, .K = 2, .dtype = TD_E4M3};
    shape.expert_hi = 3;
    problem p = make(&rng, shape, NORMAL, RANDOM);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_moe_experts_cpu(&p.a, td_device_stream(device)), (void)0);
    drop(&p);
    td_device_close(device);
}

TEST(refuses_what_it_cannot_do)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    td_moe_experts_args shape = {.T = 2, .D = 4, .I = 4, .K = 2, .dtype = TD_E4M3};
    shape.expert_hi = 2;
    problem p = make(&rng, shape, NORMAL, RANDOM);
    td_moe_experts_args bad[18];
    for (int i = 0; i < 18; i++)
        bad[i] = p.a;
    bad[0].T = -1;
    bad[1].D = -1;
    bad[2].I = -1;
    bad[3].K = -1;
    bad[4].expert_lo = -1;
    bad[5].expert_lo = 3;
    bad[6].dtype = (td_dtype)3;
    bad[7].x = NULL;
    bad[8].xs = NULL;
    bad[9].ids = NULL;
    bad[10].weights = NULL;
    bad[11].gate = NULL;
    bad[12].up = NULL;
    bad[13].down = NULL;
    bad[14].gate_s = NULL;
    bad[15].up_s = NULL;
    bad[16].down_s = NULL;
    bad[17].y = NULL;
    for (int i = 0; i < 18; i++)
        TD_EQ(TD_BAD_SHAPE, td_moe_experts_cpu(&bad[i], stream));
    TD_EQ(TD_OK, td_moe_experts_cpu(&p.a, stream));
    drop(&p);
    td_device_close(device);
}
