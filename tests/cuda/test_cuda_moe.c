/* The CUDA form of moe_experts. Small integers and scales of powers of two, against the reference:
 * the first two products are exact then, silu_mul has the reference's bits (test_cuda_rows.c), so
 * only the order of the third product's sums and of the weighted sum differ. Any numbers: the same
 * bits as gemm, silu_mul, gemm and the weighted sum of the same device, one expert of one token at
 * a time, which test_cuda_gemm.c and test_cuda_rows.c hold against the references. */
#include "kernels/moe_experts/moe_experts.h"
#include "tests/cuda/cuda_test.h"
#include "tests/kernels/moe_exact.h"

TD_TEST_MAIN

typedef enum { RANDOM, ALL_ON_ONE, NONE, ONE_EMPTY, FEW, N_ROUTINGS } routing;

typedef struct {
    td_moe_experts_args a; /* device pointers, but for ids and weights */
    int32_t *ids;
    float *weights;
    const int32_t *d_ids;
    const float *d_weights;
    kt_out want, got;
    int integers; /* x, gate and up: their products are exact, whatever the order of the sums */
} problem;

/* scale 0: small integers. */
static const void *numbers(ct_gpu *g, kt_rng *rng, size_t n, td_dtype dtype, float scale)
{
    void *x = kt_alloc(n * td_dtype_bytes(dtype));
    if (scale == 0.0f)
        kt_fill_integers(rng, x, n, 2, dtype);
    else
        kt_fill_act(rng, x, n, scale, dtype);
    const void *d = ct_up(g, x, n * td_dtype_bytes(dtype));
    free(x);
    return d;
}

static const float *scales(ct_gpu *g, kt_rng *rng, size_t n)
{
    float *s = kt_alloc(n * 4);
    for (size_t i = 0; i < n; i++)
        s[i] = 0.0005f + 0.001f * kt_unit(rng);
    const float *d = ct_up(g, s, n * 4);
    free(s);
    return d;
}

static void route(ct_gpu *g, kt_rng *rng, problem *p, routing r)
{
    const int n = p->a.T * p->a.K, lo = p->a.expert_lo, hi = p->a.expert_hi;
    p->ids = kt_alloc((size_t)n * 4);
    p->weights = kt_alloc((size_t)n * 4);
    for (int i = 0; i < n; i++) {
        p->ids[i] = r == ALL_ON_ONE ? lo : r == NONE ? -1 : kt_int(rng, -1, hi + 1);
        if (r == ONE_EMPTY && p->ids[i] == lo)
            p->ids[i] = hi - 1;
        if (r == FEW && kt_int(rng, 0, 63) != 0)
            p->ids[i] = -1;
        p->weights[i] = 0.1f + kt_unit(rng);
    }
    p->d_ids = ct_up(g, p->ids, (size_t)n * 4);
    p->d_weights = ct_up(g, p->weights, (size_t)n * 4);
}

/* Inputs for sizes that stand in p->a. */
static void make_inputs(ct_gpu *g, kt_rng *rng, problem *p, routing r)
{
    td_moe_experts_args *a = &p->a;
    const td_dtype dtype = a->dtype;
    const size_t T = (size_t)a->T, D = (size_t)a->D, I = (size_t)a->I;
    const size_t E = (size_t)(a->expert_hi - a->expert_lo);
    const size_t gd = (size_t)td_ceil_div(a->D, 128), gi = (size_t)td_ceil_div(a->I, 128);
    a->x = numbers(g, rng, T * D, dtype, p->integers ? 0.0f : 1.0f);
    a->gate = numbers(g, rng, E * I * D, dtype, p->integers ? 0.0f : 0.1f);
    a->up = numbers(g, rng, E * I * D, dtype, p->integers ? 0.0f : 0.1f);
    a->down = numbers(g, rng, E * I * D, dtype, 0.1f);
    if (dtype == TD_E4M3) {
        a->xs = scales(g, rng, T * gd);
        a->gate_s = scales(g, rng, E * gi * gd);
        a->up_s = scales(g, rng, E * gi * gd);
        a->down_s = scales(g, rng, E * gi * gd);
    }
    route(g, rng, p, r);
    p->want = kt_out_new(T, D * 4, D * 4);
    p->got = kt_out_new(T, D * 4, D * 4);
}

static problem make(ct_gpu *g, kt_rng *rng, td_dtype dtype, routing r)
{
    problem p = {.a = {.dtype = dtype, .ue8m0 = 1}};
    td_moe_experts_args *a = &p.a;
    do {
        a->T = KT_PICK(rng, 1, 2, 9, 40, 150);
        a->D = KT_PICK(rng, 1, 40, 128, 130, 256, 512);
        a->I = KT_PICK(rng, 1, 17, 64, 128, 130, 256);
        a->K = KT_PICK(rng, 1, 2, 8);
    } while (a->T * a->K > 400);
    a->expert_lo = KT_PICK(rng, 0, 0, 3);
    a->expert_hi = a->expert_lo + KT_PICK(rng, 1, 2, 7);
    make_inputs(g, rng, &p, r);
    return p;
}

static const void *part(const void *base, int64_t n, td_dtype dtype)
{
    return (const char *)base + n * (int64_t)td_dtype_bytes(dtype);
}

static const float *scale_part(const float *base, int64_t n)
{
    return base == NULL ? NULL : base + n;
}

/* f_e(x[t]) for local expert e, [D], to host memory. */
static void one_expert(ct_gpu *g, const problem *p, int t, int e, float *out)
{
    const td_moe_experts_args *a = &p->a;
    const td_dtype act = a->dtype == TD_F32 ? TD_F32 : TD_BF16;
    const int gd = td_ceil_div(a->D, 128), gi = td_ceil_div(a->I, 128);
    void *gate = ct_alloc(g, (size_t)a->I * 4), *up = ct_alloc(g, (size_t)a->I * 4);
    void *q = ct_alloc(g, (size_t)a->I), *y = ct_alloc(g, (size_t)a->D * 4);
    float *qs = ct_alloc(g, (size_t)gi * 4);
    const int64_t w = (int64_t)e * a->I * a->D, ws = (int64_t)e * gi * gd;
    td_gemm_args m = {.x = part(a->x, (int64_t)t * a->D, a->dtype),
                      .xs = scale_part(a->xs, (int64_t)t * gd),
                      .w = part(a->gate, w, a->dtype),
                      .ws = scale_part(a->gate_s, ws),
                      .y = gate,
                      .M = 1,
                      .N = a->I,
                      .K = a->D,
                      .dtype = a->dtype,
                      .y_dtype = act};
    TD_EQ(TD_OK, g->ops->gemm(&m, g->stream));
    m.w = part(a->up, w, a->dtype);
    m.ws = scale_part(a->up_s, ws);
    m.y = up;
    TD_EQ(TD_OK, g->ops->gemm(&m, g->stream));
    const int e4m3 = a->dtype == TD_E4M3;
    td_silu_mul_args s = {.gate = gate,
                          .up = up,
                          .y = gate,
                          .q = e4m3 ? q : NULL,
                          .qs = e4m3 ? qs : NULL,
                          .T = 1,
                          .I = a->I,
                          .ue8m0 = a->ue8m0,
                          .act = act};
    TD_EQ(TD_OK, g->ops->silu_mul(&s, g->stream));
    td_gemm_args d = {.x = e4m3 ? q : gate,
                      .xs = e4m3 ? qs : NULL,
                      .w = part(a->down, w, a->dtype),
                      .ws = scale_part(a->down_s, ws),
                      .y = y,
                      .M = 1,
                      .N = a->D,
                      .K = a->I,
                      .dtype = a->dtype,
                      .y_dtype = TD_F32};
    TD_EQ(TD_OK, g->ops->gemm(&d, g->stream));
    ct_down(g, out, y, (size_t)a->D * 4);
    for (int i = 0; i < 5; i++)
        td_device_free(g->device, g->buffers[--g->n_buffers]);
}

/* Of many tokens, where launches are slow, about sixteen are judged. */
static int is_judged(const problem *p, int t)
{
    return ct_slow() == 0 || t % (p->a.T / 16 + 1) == 0;
}

static void judge(ct_gpu *g, problem *p)
{
    const td_moe_experts_args *a = &p->a;
    float *y = kt_alloc((size_t)a->D * 4);
    for (int t = 0; t < a->T; t++) {
        if (!is_judged(p, t))
            continue;
        float *sum = (float *)(void *)(p->want.p + (size_t)t * p->want.stride);
        for (int d = 0; d < a->D; d++)
            sum[d] = 0;
        for (int k = 0; k < a->K; k++) {
            const int32_t e = p->ids[t * a->K + k];
            if (e < a->expert_lo || e >= a->expert_hi)
                continue;
            one_expert(g, p, t, e - a->expert_lo, y);
            for (int d = 0; d < a->D; d++)
                sum[d] += p->weights[t * a->K + k] * y[d];
        }
    }
    free(y);
}

/* Runs twice; frees the problem. */
static void expect_judge(ct_gpu *g, problem *p)
{
    judge(g, p);
    for (int again = 0; again < 2; again++) {
        td_moe_experts_args a = p->a;
        kt_out_poison(&p->got);
        a.ids = p->d_ids;
        a.weights = p->d_weights;
        a.y = ct_out(g, &p->got);
        TD_EQ(TD_OK, g->ops->moe_experts(&a, g->stream));
        ct_fetch(g, &p->got, a.y);
        for (int t = 0; t < a.T && again == 0; t++)
            if (!is_judged(p, t)) /* twice the same, at least */
                memcpy(p->want.p + (size_t)t * p->want.stride, p->got.p + (size_t)t * p->got.stride,
                       (size_t)a.D * 4);
        kt_out_same(&p->want, &p->got);
    }
    ct_clear(g);
    kt_out_free(&p->want);
    kt_out_free(&p->got);
    free(p->ids);
    free(p->weights);
}

TEST(moe_experts_is_gemm_silu_gemm_and_the_sum_bit_for_bit)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(24); i++) {
        problem p = make(&g, &rng, (td_dtype)(i % 3), (routing)(i / 3 % N_ROUTINGS));
        expect_judge(&g, &p);
    }
    ct_close(&g);
}

/* Sizes that take each of the tiles for e4m3, over the edges of the token tiles. The judge's one
 * row goes through the narrowest. */
TEST(moe_experts_has_the_same_bits_in_every_e4m3_tile)
{
    static const int sizes[][5] = {
        /* T, D, I, K, experts */
        {1, 1040, 256, 8, 8},  {8, 1056, 256, 8, 64}, {9, 512, 128, 1, 1},
        {17, 256, 144, 8, 13}, {65, 144, 256, 2, 3},  {129, 272, 48, 1, 1},
        {150, 400, 128, 2, 3}, {300, 128, 64, 1, 1},  {700, 704, 400, 4, 22}};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        const int *z = sizes[i];
        problem p = {.a = {.dtype = TD_E4M3, .T = z[0], .D = z[1], .I = z[2], .K = z[3]}};
        p.a.expert_hi = z[4];
        make_inputs(&g, &rng, &p, z[4] == 1 ? ALL_ON_ONE : RANDOM);
        expect_judge(&g, &p);
    }
    ct_close(&g);
}

/* More single results than scratch memory takes at once: D goes in slices. With bf16 the judge's
 * gemm splits so long a K of so few columns, which moe_experts never does: exact sums. */
TEST(moe_experts_has_the_same_bits_in_slices_of_D)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int dtype = 0; dtype < 3; dtype++) {
        problem p = {.a = {.dtype = (td_dtype)dtype, .T = 1200, .D = 7440, .I = 16, .K = 8}};
        p.a.expert_hi = 2;
        p.integers = dtype == TD_BF16;
        make_inputs(&g, &rng, &p, FEW);
        expect_judge(&g, &p);
    }
    ct_close(&g);
}

TEST(moe_experts_without_experts_or_width_gives_zeros)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(9); i++) {
        problem p = make(&g, &rng, (td_dtype)(i % 3), RANDOM);
        td_moe_experts_args a = p.a;
        a.ids = p.d_ids;
        a.weights = p.d_weights;
        a.K = i / 3 == 0 ? 0 : a.K;
        a.I = i / 3 == 1 ? 0 : a.I;
        a.expert_hi = i / 3 == 2 ? a.expert_lo : a.expert_hi;
        a.y = ct_out(&g, &p.got);
        TD_EQ(TD_OK, g.ops->moe_experts(&a, g.stream));
        ct_fetch(&g, &p.got, a.y);
        for (int t = 0; t < a.T; t++)
            for (int d = 0; d < a.D; d++)
                TD_TRUE(((float *)(void *)p.got.p)[t * a.D + d] == 0.0f);
        ct_clear(&g);
        kt_out_free(&p.want);
        kt_out_free(&p.got);
        free(p.ids);
        free(p.weights);
    }
    ct_close(&g);
}

/* ---- against the reference ---- */

typedef struct { /* on the host; a.y is want's */
    td_moe_experts_args a;
    void *x, *gate, *up, *down;
    float *xs, *gate_s, *up_s, *down_s, *weights;
    int32_t *ids;
    kt_out want, got;
} exact;

static exact make_exact(kt_rng *rng, td_dtype dtype, int all_on_one)
{
    exact p = {.a = {.dtype = dtype, .ue8m0 = 1}};
    td_moe_experts_args *a = &p.a;
    a->T = KT_PICK(rng, 1, 2, 9, 40, 150);
    a->D = KT_PICK(rng, 1, 40, 128, 130, 256, 304);
    a->I = KT_PICK(rng, 1, 17, 128, 130, 256);
    a->K = KT_PICK(rng, 1, 2, 4);
    a->expert_lo = KT_PICK(rng, 0, 0, 3);
    a->expert_hi = a->expert_lo + KT_PICK(rng, 1, 2, 7);
    const size_t T = (size_t)a->T, D = (size_t)a->D, I = (size_t)a->I, n = T * (size_t)a->K;
    const size_t E = (size_t)(a->expert_hi - a->expert_lo);
    const size_t gd = (size_t)td_ceil_div(a->D, 128), gi = (size_t)td_ceil_div(a->I, 128);
    a->x = p.x = kt_moe_integers(rng, T * D, dtype);
    a->gate = p.gate = kt_moe_integers(rng, E * I * D, dtype);
    a->up = p.up = kt_moe_integers(rng, E * I * D, dtype);
    a->down = p.down = kt_moe_integers(rng, E * I * D, dtype);
    if (dtype == TD_E4M3) {
        a->xs = p.xs = kt_moe_powers(rng, T * gd);
        a->gate_s = p.gate_s = kt_moe_powers(rng, E * gi * gd);
        a->up_s = p.up_s = kt_moe_powers(rng, E * gi * gd);
        a->down_s = p.down_s = kt_moe_powers(rng, E * gi * gd);
    }
    a->ids = p.ids = kt_alloc(n * 4);
    a->weights = p.weights = kt_alloc(n * 4);
    for (size_t i = 0; i < n; i++) {
        p.ids[i] = all_on_one ? a->expert_lo : kt_int(rng, -1, a->expert_hi + 1);
        p.weights[i] = 0.1f + kt_unit(rng);
    }
    p.want = kt_out_new(T, D * 4, D * 4);
    p.got = kt_out_new(T, D * 4, D * 4);
    a->y = (float *)(void *)p.want.p;
    return p;
}

static void run_exact(ct_gpu *g, exact *p)
{
    td_moe_experts_args a = p->a;
    const size_t T = (size_t)a.T, D = (size_t)a.D, I = (size_t)a.I, n = T * (size_t)a.K * 4;
    const size_t E = (size_t)(a.expert_hi - a.expert_lo), size = td_dtype_bytes(a.dtype);
    const size_t gd = (size_t)td_ceil_div(a.D, 128), gi = (size_t)td_ceil_div(a.I, 128);
    kt_out_poison(&p->got);
    a.x = ct_up(g, p->x, T * D * size);
    a.gate = ct_up(g, p->gate, E * I * D * size);
    a.up = ct_up(g, p->up, E * I * D * size);
    a.down = ct_up(g, p->down, E * I * D * size);
    a.xs = ct_up(g, p->xs, T * gd * 4);
    a.gate_s = ct_up(g, p->gate_s, E * gi * gd * 4);
    a.up_s = ct_up(g, p->up_s, E * gi * gd * 4);
    a.down_s = ct_up(g, p->down_s, E * gi * gd * 4);
    a.ids = ct_up(g, p->ids, n);
    a.weights = ct_up(g, p->weights, n);
    a.y = ct_out(g, &p->got);
    TD_EQ(TD_OK, g->ops->moe_experts(&a, g->stream));
    ct_fetch(g, &p->got, a.y);
    ct_clear(g);
}

TEST(moe_experts_of_integers_is_the_reference_within_rounding)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(30); i++) {
        exact p = make_exact(&rng, (td_dtype)(i % 3), i % 5 == 4);
        TD_EQ(TD_OK, td_moe_experts_ref(&p.a, NULL));
        run_exact(&g, &p);
        const double steps = 2.0 * (128 + p.a.I / 128.0 + 4) + 2.0 * p.a.K + 4;
        const float *got = (const float *)(const void *)p.got.p;
        for (int j = 0; j < 300; j++) {
            const int t = kt_int(&rng, 0, p.a.T - 1), d = kt_int(&rng, 0, p.a.D - 1);
            const double x = (double)p.a.y[t * p.a.D + d], y = (double)got[t * p.a.D + d];
            /* the bound is dear: first see whether it is needed */
            if (x != y && !(fabs(x - y) <= steps * 0x1p-24 * kt_moe_magnitude(&p.a, t, d))) {
                printf("dtype %d: [%d, %d] is %.9g, reference %.9g\n", p.a.dtype, t, d, y, x);
                TD_TRUE(0);
            }
        }
        void *all[] = {p.x,    p.gate,   p.up,      p.down, p.xs,        p.gate_s,
                       p.up_s, p.down_s, p.weights, p.ids,  p.want.base, p.got.base};
        for (size_t k = 0; k < sizeof(all) / sizeof(*all); k++)
            free(all[k]);
    }
    ct_close(&g);
}
