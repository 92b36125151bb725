/* exp is td_expf everywhere and nothing is summed: bits equal the reference's (NaN equals NaN).
 * Against the formula in double: td_expf is within 1 unit, 1 + e, the division and the product
 * round once each, and an error of e counts at most once in the quotient: below 4 units of f32. */
#include "kernels/silu_mul/silu_mul.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_silu_mul_args a;
    void *gate, *up;
    kt_out y, q, qs;
} problem;

static void fill(kt_rng *rng, void *x, size_t n, td_dtype act, int odd)
{
    for (size_t i = 0; i < n; i++) {
        float v = kt_normal(rng) * (float)KT_PICK(rng, 1, 1, 10, 60);
        if (odd && kt_int(rng, 0, 20) == 0)
            v = kt_odd(rng);
        if (act == TD_F32)
            ((float *)x)[i] = v;
        else
            ((td_bf16 *)x)[i] = td_f32_to_bf16(v);
    }
}

static problem make(kt_rng *rng, int T, int I, td_dtype act, int odd)
{
    problem p = {.a = {.T = T, .I = I, .act = act, .ue8m0 = kt_int(rng, 0, 1)}};
    const size_t n = (size_t)T * (size_t)I, size = td_dtype_bytes(act);
    const size_t groups = (size_t)td_ceil_div(I, 128);
    p.gate = kt_alloc(n * size);
    p.up = kt_alloc(n * size);
    fill(rng, p.gate, n, act, odd);
    fill(rng, p.up, n, act, odd);
    p.y = kt_out_new((size_t)T, (size_t)I * size, (size_t)I * size);
    p.q = kt_out_new((size_t)T, (size_t)I, (size_t)I);
    p.qs = kt_out_new((size_t)T, groups * 4, groups * 4);
    p.a.gate = p.gate;
    p.a.up = p.up;
    p.a.y = p.y.p;
    if (act == TD_BF16 && kt_int(rng, 0, 3)) {
        p.a.q = p.q.p;
        p.a.qs = (float *)(void *)p.qs.p;
    }
    return p;
}

static void drop(problem *p)
{
    kt_out_free(&p->y);
    kt_out_free(&p->q);
    kt_out_free(&p->qs);
    free(p->gate);
    free(p->up);
}

static void check_y(const kt_out *want, const kt_out *y, size_t n, td_dtype act)
{
    for (size_t i = 0; i < n; i++) {
        float a = kt_get(want->p, i, act), b = kt_get(y->p, i, act);
        TD_EQ(0, kt_ulp_f32(a, b));
        TD_TRUE(isnan(a) || signbit(a) == signbit(b));
    }
}

TEST(products_and_codes_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 40; i++) {
        const int T = KT_PICK(&rng, 0, 1, 3, 40), I = KT_PICK(&rng, 1, 16, 100, 128, 130, 512);
        problem p = make(&rng, T, I, i % 2 ? TD_BF16 : TD_F32, i % 4 > 1);
        const size_t n = (size_t)T * (size_t)I;
        problem ref = p;
        ref.y = kt_out_new(p.y.rows, p.y.row_bytes, p.y.stride);
        ref.q = kt_out_new(p.q.rows, p.q.row_bytes, p.q.stride);
        ref.qs = kt_out_new(p.qs.rows, p.qs.row_bytes, p.qs.stride);
        ref.a.y = ref.y.p;
        ref.a.q = p.a.q == NULL ? NULL : ref.q.p;
        ref.a.qs = p.a.q == NULL ? NULL : (float *)(void *)ref.qs.p;
        TD_EQ(TD_OK, td_silu_mul_ref(&ref.a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&p.y);
            kt_out_poison(&p.q);
            kt_out_poison(&p.qs);
            TD_EQ(TD_OK, td_silu_mul_cpu(&p.a, w.stream));
            kt_out_check(&p.y);
            kt_out_check(&p.q);
            kt_out_check(&p.qs);
            check_y(&ref.y, &p.y, n, p.a.act);
            kt_out_same(&ref.q, &p.q); /* both poison where not wanted */
            kt_out_same(&ref.qs, &p.qs);
        }
        kt_out_free(&ref.y);
        kt_out_free(&ref.q);
        kt_out_free(&ref.qs);
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(y_may_stand_where_gate_or_up_stands)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 8; i++) {
        problem p = make(&rng, 5, 300, i % 2 ? TD_BF16 : TD_F32, 0);
        const size_t bytes = 5 * p.y.row_bytes;
        void *kept = kt_alloc(bytes), *shared = i % 4 > 1 ? p.gate : p.up;
        memcpy(kept, shared, bytes);
        while (kt_ways_next(&w)) {
            memcpy(shared, kept, bytes);
            p.a.y = p.y.p;
            TD_EQ(TD_OK, td_silu_mul_cpu(&p.a, w.stream));
            p.a.y = shared;
            TD_EQ(TD_OK, td_silu_mul_cpu(&p.a, w.stream));
            TD_MEM(p.y.p, shared, bytes);
        }
        free(kept);
        drop(&p);
    }
    kt_ways_close(&w);
}

TEST(the_formula_holds)
{
    kt_rng rng = kt_seeded();
    problem p = make(&rng, 50, 200, TD_F32, 0);
    td_device *device = kt_open(1);
    TD_EQ(TD_OK, td_silu_mul_cpu(&p.a, td_device_stream(device)));
    for (size_t i = 0; i < 10000; i++) {
        double g = (double)kt_get(p.gate, i, TD_F32), u = (double)kt_get(p.up, i, TD_F32);
        float got = kt_get(p.y.p, i, TD_F32), want = (float)(g / (1.0 + exp(-g)) * u);
        if (fabsf(want) > 0x1p-100f) /* exp flushes what is subnormal, overflows a little early */
            TD_TRUE(kt_ulp_f32(want, got) <= 4);
        else
            TD_TRUE(fabsf(want - got) <= 0x1p-100f);
    }
    drop(&p);
    td_device_close(device);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    td_bf16 gate[4] = {0}, up[4] = {0}, y[4];
    uint8_t q[4];
    float qs[2];
    const td_silu_mul_args good = {gate, up, y, q, qs, 2, 2, 1, TD_BF16};
    td_silu_mul_args bad[8];
    for (int i = 0; i < 8; i++)
        bad[i] = good;
    bad[0].T = -1;
    bad[1].I = -1;
    bad[2].act = TD_E4M3;
    bad[3].act = TD_F32; /* with q */
    bad[4].gate = NULL;
    bad[5].up = NULL;
    bad[6].y = NULL;
    bad[7].qs = NULL;
    for (int i = 0; i < 8; i++)
        TD_EQ(TD_BAD_SHAPE, td_silu_mul_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_silu_mul_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
