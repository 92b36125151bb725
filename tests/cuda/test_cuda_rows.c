/* The CUDA forms of norms and quantisers, against the plain judges. */
#include "kernels/hadamard_quant/hadamard_quant.h"
#include "kernels/layernorm/layernorm.h"
#include "kernels/quant/quant.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"
#include "kernels/silu_mul/silu_mul.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

static float *floats(void *p)
{
    return p;
}

/* ---- rmsnorm ---- */

typedef struct {
    td_rmsnorm_args a;
    void *x, *res;
    float *w;
    size_t x_bytes, res_bytes;
    ct_result y, out, q, qs;
    int quantise;
} rmsnorm_case;

static rmsnorm_case make_rmsnorm(kt_rng *rng, td_dtype act)
{
    const int T = KT_PICK(rng, 0, 1, 2, 33), D = KT_PICK(rng, 1, 3, 127, 128, 130, 1536, 7168);
    const size_t es = td_dtype_bytes(act), n = (size_t)T * (size_t)D;
    const size_t groups = (size_t)td_ceil_div(D, TD_QUANT_GROUP);
    rmsnorm_case c = {.a = {.T = T, .D = D, .eps = 1e-6f, .act = act}};
    c.a.x_stride = c.a.y_stride = D + kt_int(rng, 0, 5);
    c.a.ue8m0 = kt_int(rng, 0, 1);
    c.quantise = act == TD_BF16 && kt_int(rng, 0, 1);
    c.x_bytes = (size_t)T * (size_t)c.a.x_stride * es;
    c.res_bytes = n * es;
    c.x = kt_alloc(c.x_bytes);
    kt_fill_act(rng, c.x, c.x_bytes / es, 2.0f, act);
    if (kt_int(rng, 0, 1)) {
        c.res = kt_alloc(c.res_bytes);
        kt_fill_act(rng, c.res, n, 2.0f, act);
    }
    c.w = kt_alloc((size_t)D * 4);
    kt_fill_f32(rng, c.w, (size_t)D, 1.0f);
    c.y = ct_result_new((size_t)T, (size_t)D * es, (size_t)c.a.y_stride * es);
    c.out = ct_result_new((size_t)T, (size_t)D * es, (size_t)D * es);
    c.q = ct_result_new((size_t)T, (size_t)D, (size_t)D);
    c.qs = ct_result_new((size_t)T, groups * 4, groups * 4);
    return c;
}

static void drop_rmsnorm(rmsnorm_case *c)
{
    free(c->x);
    free(c->res);
    free(c->w);
    ct_result_free(&c->y);
    ct_result_free(&c->out);
    ct_result_free(&c->q);
    ct_result_free(&c->qs);
}

static void run_rmsnorm(ct_gpu *g, rmsnorm_case *c)
{
    td_rmsnorm_args a = c->a, d = a;
    a.x = c->x;
    a.res = c->res;
    a.w = c->w;
    a.y = c->y.want.p;
    a.res_out = c->res == NULL ? NULL : c->out.want.p;
    TD_EQ(TD_OK, td_rmsnorm_ref(&a, NULL));
    d.x = ct_up(g, c->x, c->x_bytes);
    d.res = ct_up(g, c->res, c->res_bytes);
    d.w = ct_up(g, c->w, (size_t)a.D * 4);
    ct_result_up(g, &c->y);
    ct_result_up(g, &c->out);
    ct_result_up(g, &c->q);
    ct_result_up(g, &c->qs);
    for (int i = 0; i < 2; i++) {
        d.y = c->y.device[i];
        d.res_out = c->res == NULL ? NULL : c->out.device[i];
        d.q = c->quantise ? c->q.device[i] : NULL;
        d.qs = c->quantise ? floats(c->qs.device[i]) : NULL;
        TD_EQ(TD_OK, g->ops->rmsnorm(&d, g->stream));
    }
    ct_result_down(g, &c->y);
}

/* The sum of squares is a tree of f32 on the device and f64 in the judge: r differs by a few units
 * in the last place, a bf16 result by one step where it was next to a boundary. A quantised code
 * follows the device's own y: its judge is the same formula on that y. */
TEST(rmsnorm_is_the_judges)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        rmsnorm_case c = make_rmsnorm(&rng, act);
        run_rmsnorm(&g, &c);
        ct_near(&c.y.want, &c.y.run[0], act, act == TD_F32 ? 16 : 1, 1e-30f);
        ct_result_bits(&g, &c.out); /* both poison without a residual */
        if (c.quantise) {
            td_quant_args q = {.x = c.y.run[0].p,
                               .q = c.q.want.p,
                               .qs = floats(c.qs.want.p),
                               .T = c.a.T,
                               .K = c.a.D,
                               .x_stride = c.a.y_stride,
                               .ue8m0 = c.a.ue8m0};
            TD_EQ(TD_OK, td_quant_ref(&q, NULL));
        }
        ct_result_bits(&g, &c.q);
        ct_result_bits(&g, &c.qs);
        ct_clear(&g);
        drop_rmsnorm(&c);
    }
    ct_close(&g);
}

/* Rows that are aligned stay in registers between the sum and the result, others are read twice. */
TEST(rmsnorm_has_the_same_bits_from_rows_of_any_alignment)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 12; i++) {
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        const int T = i % 3 == 0 ? 140 : 3,
                  D = KT_PICK(&rng, 128, 512, 1536, 2048, 2176, 7168, 8192);
        const size_t es = td_dtype_bytes(act), room = (size_t)T * (size_t)(D + 1) * es;
        char *x = kt_alloc(room);
        float *w = kt_alloc((size_t)D * 4);
        ct_result y = ct_result_new((size_t)T, (size_t)D * es, (size_t)D * es);
        kt_fill_act(&rng, x, room / es, 2.0f, act);
        kt_fill_f32(&rng, w, (size_t)D, 1.0f);
        td_rmsnorm_args d = {.T = T, .D = D, .y_stride = D, .eps = 1e-6f, .act = act};
        d.w = ct_up(&g, w, (size_t)D * 4);
        ct_result_up(&g, &y);
        for (int k = 0; k < 2; k++) {
            d.x_stride = k == 0 ? D : D + 1;
            d.x = ct_up(&g, x, room);
            for (int t = T - 1; t > 0 && k == 0; t--) /* the same rows, further apart */
                memmove(x + (size_t)(t * (D + 1)) * es, x + (size_t)(t * D) * es, (size_t)D * es);
            d.y = y.device[k];
            TD_EQ(TD_OK, g.ops->rmsnorm(&d, g.stream));
        }
        ct_result_down(&g, &y); /* compares the two */
        ct_clear(&g);
        ct_result_free(&y);
        free(x);
        free(w);
    }
    ct_close(&g);
}

TEST(rmsnorm_in_place_has_the_same_bits)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 20; i++) {
        rmsnorm_case c = make_rmsnorm(&rng, i % 2 ? TD_BF16 : TD_F32);
        ct_result x = ct_result_new(c.y.want.rows, c.y.want.row_bytes, c.y.want.stride);
        ct_result res = ct_result_new(c.out.want.rows, c.out.want.row_bytes, c.out.want.stride);
        run_rmsnorm(&g, &c);
        ct_result_down(&g, &c.out);
        ct_result_fill(&x, c.x);
        if (c.res != NULL)
            ct_result_fill(&res, c.res);
        ct_result_up(&g, &x);
        ct_result_up(&g, &res);
        td_rmsnorm_args d = c.a;
        d.w = ct_up(&g, c.w, (size_t)d.D * 4);
        d.x = d.y = x.device[0];
        d.res = d.res_out = c.res == NULL ? NULL : res.device[0];
        TD_EQ(TD_OK, g.ops->rmsnorm(&d, g.stream));
        for (size_t t = 0; t < x.want.rows; t++) /* the gaps of x are no poison */
            ct_down(&g, x.run[0].p + t * x.want.stride,
                    (unsigned char *)x.device[0] + t * x.want.stride, x.want.row_bytes);
        kt_out_same(&c.y.run[0], &x.run[0]);
        ct_fetch(&g, &res.run[0], res.device[0]);
        kt_out_same(&c.out.run[0], &res.run[0]);
        ct_clear(&g);
        ct_result_free(&x);
        ct_result_free(&res);
        drop_rmsnorm(&c);
    }
    ct_close(&g);
}

/* ---- layernorm ---- */

/* y = (x - mu) r w + b. Judge: f64 sums. Device: a lane adds up to D/32 numbers one by one, then
 * five levels of a tree: mu is off by at most (D/32 + 9) half units of the mean of |x|, r
 * relatively by as much; both carry over to y in proportion to |w| r. In bf16 neighbours are up to
 * 2^-7 apart.
 */
static void layernorm_near(const td_layernorm_args *a, const kt_out *want, const kt_out *got)
{
    for (int t = 0; t < a->T; t++) {
        double abs_sum = 0.0, mean = 0.0, var = 0.0;
        for (int i = 0; i < a->D; i++) {
            double x = kt_get(a->x, (size_t)(t * a->D + i), a->act);
            abs_sum += fabs(x);
            mean += x / a->D;
        }
        for (int i = 0; i < a->D; i++) {
            double d = kt_get(a->x, (size_t)(t * a->D + i), a->act) - mean;
            var += d * d / a->D;
        }
        double eps = (a->D / 32.0 + 12.0) * 0x1p-24, r = 1.0 / sqrt(var + (double)a->eps);
        for (int i = 0; i < a->D; i++) {
            size_t at = (size_t)(t * a->D + i);
            double w = kt_get(want->p, at, a->act), v = kt_get(got->p, at, a->act);
            double x = kt_get(a->x, at, a->act);
            double scale =
                r * (double)fabsf(a->w[i]) * (fabs(x) + abs_sum / a->D) + (double)fabsf(a->b[i]);
            double step = a->act == TD_BF16 ? 0x1p-7 * fmax(fabs(w), fabs(v)) : 0.0;
            TD_TRUE((isnan(w) && isnan(v)) || fabs(w - v) <= eps * scale + step);
        }
    }
}

TEST(layernorm_is_the_judges_in_place_too)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        const int T = KT_PICK(&rng, 0, 1, 9, 70), D = KT_PICK(&rng, 2, 7, 100, 128, 129, 300);
        const size_t es = td_dtype_bytes(act), n = (size_t)T * (size_t)D, row = (size_t)D * es;
        void *x = kt_alloc(n * es);
        float *w = kt_alloc((size_t)D * 4), *b = kt_alloc((size_t)D * 4);
        kt_fill_act(&rng, x, n, 2.0f, act);
        kt_fill_f32(&rng, w, (size_t)D, 1.0f);
        kt_fill_f32(&rng, b, (size_t)D, 0.5f);
        if (act == TD_BF16 && n > 0 && i % 3 == 0) /* stays in its row */
            ((td_bf16 *)x)[kt_int(&rng, 0, (int)n - 1)] =
                td_f32_to_bf16(kt_int(&rng, 0, 1) ? NAN : INFINITY);
        ct_result y = ct_result_new((size_t)T, row, row);
        td_layernorm_args a = {x, w, b, y.want.p, T, D, 1e-6f, act}, d = a;
        TD_EQ(TD_OK, td_layernorm_ref(&a, NULL));
        memcpy(y.run[1].p, x, n * es); /* the second run works in place */
        ct_result_up(&g, &y);
        d.w = ct_up(&g, w, (size_t)D * 4);
        d.b = ct_up(&g, b, (size_t)D * 4);
        d.x = ct_up(&g, x, n * es);
        d.y = y.device[0];
        TD_EQ(TD_OK, g.ops->layernorm(&d, g.stream));
        d.x = d.y = y.device[1];
        TD_EQ(TD_OK, g.ops->layernorm(&d, g.stream));
        ct_result_down(&g, &y);
        layernorm_near(&a, &y.want, &y.run[0]);
        ct_clear(&g);
        ct_result_free(&y);
        free(x);
        free(w);
        free(b);
    }
    ct_close(&g);
}

TEST(a_row_alone_has_the_bits_of_the_row_in_a_batch)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    const int T = 37, D = 1537;
    const size_t row = (size_t)D * 4, n = (size_t)T * (size_t)D;
    float *x = kt_alloc(n * 4), *w = kt_alloc(row);
    kt_fill_f32(&rng, x, n, 2.0f);
    kt_fill_f32(&rng, w, (size_t)D, 1.0f);
    float *dx = ct_up(&g, x, n * 4);
    ct_result y = ct_result_new((size_t)T, row, row);
    for (int norm = 0; norm < 2; norm++) {
        td_rmsnorm_args r = {.w = ct_up(&g, w, row),
                             .D = D,
                             .x_stride = D,
                             .y_stride = D,
                             .eps = 1e-6f,
                             .act = TD_F32};
        td_layernorm_args l = {.w = r.w, .b = r.w, .D = D, .eps = 1e-6f, .act = TD_F32};
        ct_result_up(&g, &y);
        for (int t = -1; t < T; t++) { /* all into the first run, each alone into the second */
            const size_t at = (size_t)(t < 0 ? 0 : t) * (size_t)D;
            r.x = l.x = dx + at;
            r.y = l.y = floats(y.device[t >= 0]) + at;
            r.T = l.T = t < 0 ? T : 1;
            TD_EQ(TD_OK, norm ? g.ops->layernorm(&l, g.stream) : g.ops->rmsnorm(&r, g.stream));
        }
        ct_result_down(&g, &y);
    }
    ct_clear(&g);
    ct_result_free(&y);
    free(x);
    free(w);
    ct_close(&g);
}

/* ---- quantisers: bits are fixed by the formula ---- */

static void check_quant(ct_gpu *g, const td_bf16 *x, int T, int K, int64_t stride, int ue8m0)
{
    const size_t groups = (size_t)td_ceil_div(K, TD_QUANT_GROUP);
    const size_t n = T > 0 ? (size_t)((T - 1) * stride + K) : 0;
    ct_result q = ct_result_new((size_t)T, (size_t)K, (size_t)K);
    ct_result qs = ct_result_new((size_t)T, groups * 4, groups * 4);
    td_quant_args a = {x, q.want.p, floats(qs.want.p), T, K, stride, ue8m0}, d = a;
    TD_EQ(TD_OK, td_quant_ref(&a, NULL));
    d.x = ct_up(g, x, n * 2);
    ct_result_up(g, &q);
    ct_result_up(g, &qs);
    for (int i = 0; i < 2; i++) {
        d.q = q.device[i];
        d.qs = floats(qs.device[i]);
        TD_EQ(TD_OK, g->ops->quant(&d, g->stream));
    }
    ct_result_bits(g, &q);
    ct_result_bits(g, &qs);
    ct_clear(g);
    ct_result_free(&q);
    ct_result_free(&qs);
}

TEST(quant_has_the_judges_codes_and_scales)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        const int T = KT_PICK(&rng, 0, 1, 2, 65), K = KT_PICK(&rng, 1, 5, 127, 128, 129, 576, 7168);
        const int64_t stride = K + KT_PICK(&rng, 0, 0, 4, 11);
        const size_t n = (size_t)(T * stride);
        td_bf16 *x = kt_alloc(n * 2);
        kt_fill_bf16(&rng, x, n, i % 4 == 3 ? 1e-6f : 2.0f); /* far below the floor of amax */
        for (size_t k = 0; k < n; k++)
            if (i % 4 == 1) /* every exponent and sign, NaN and infinities among them */
                x[k] = (td_bf16)kt_u64(&rng);
            else if (i % 4 == 2 && kt_int(&rng, 0, 60) == 0)
                x[k] = td_f32_to_bf16(kt_odd(&rng));
        check_quant(&g, x, T, K, stride, kt_int(&rng, 0, 1));
        free(x);
    }
    ct_close(&g);
}

/* Every bf16 once, at a scale of its own: half-way cases, subnormal codes, saturation. */
TEST(quant_gives_every_bf16_the_judges_code)
{
    ct_gpu g = ct_open();
    td_bf16 *x = kt_alloc(65536 * 2 * 4);
    for (int i = 0; i < 65536; i++) {
        x[2 * i] = (td_bf16)i; /* beside 1.0: codes below 448, no saturation */
        x[2 * i + 1] = 0x3f80;
        x[2 * (65536 + i)] = (td_bf16)i; /* alone: the largest of its group */
    }
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++)
        check_quant(&g, x, 2 * 65536, 2, 2, ue8m0);
    free(x);
    ct_close(&g);
}

TEST(hadamard_quant_has_the_judges_bits)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 30; i++) {
        const int T = KT_PICK(&rng, 0, 1, 7, 128, 300);
        const size_t n = (size_t)T * 128;
        td_bf16 *x = kt_alloc(n * 2);
        kt_fill_bf16(&rng, x, n, ldexpf(1.0f, kt_int(&rng, -30, 30)));
        for (int k = 0; k < T && i % 3 == 0; k++)
            x[kt_int(&rng, 0, T * 128 - 1)] = td_f32_to_bf16(kt_odd(&rng));
        for (int k = 0; k < T && i % 3 == 1; k++) { /* unit vectors: the Walsh matrix */
            memset(x + k * 128, 0, 256);
            x[k * 128 + k % 128] = 0x3f80;
        }
        ct_result q = ct_result_new((size_t)T, 128, 128), qs = ct_result_new((size_t)T, 4, 4);
        td_hadamard_quant_args a = {x, q.want.p, floats(qs.want.p), T, kt_int(&rng, 0, 1)}, d = a;
        TD_EQ(TD_OK, td_hadamard_quant_ref(&a, NULL));
        d.x = ct_up(&g, x, n * 2);
        ct_result_up(&g, &q);
        ct_result_up(&g, &qs);
        for (int k = 0; k < 2; k++) {
            d.q = q.device[k];
            d.qs = floats(qs.device[k]);
            TD_EQ(TD_OK, g.ops->hadamard_quant(&d, g.stream));
        }
        ct_result_bits(&g, &q);
        ct_result_bits(&g, &qs);
        ct_clear(&g);
        ct_result_free(&q);
        ct_result_free(&qs);
        free(x);
    }
    ct_close(&g);
}

/* ---- silu_mul ---- */

static void fill_silu(kt_rng *rng, void *x, size_t n, td_dtype act, int odd)
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

/* exp is td_expf everywhere and nothing is summed: bits, y on gate or up too. */
TEST(silu_mul_has_the_judges_bits_in_place_too)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 40; i++) {
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        const int T = KT_PICK(&rng, 0, 1, 3, 40), I = KT_PICK(&rng, 1, 16, 100, 128, 130, 2048);
        const size_t es = td_dtype_bytes(act), n = (size_t)T * (size_t)I, row = (size_t)I * es;
        const size_t groups = (size_t)td_ceil_div(I, TD_QUANT_GROUP);
        const int quantise = act == TD_BF16 && kt_int(&rng, 0, 3), on_up = kt_int(&rng, 0, 1);
        void *gate = kt_alloc(n * es), *up = kt_alloc(n * es);
        fill_silu(&rng, gate, n, act, i % 4 > 1);
        fill_silu(&rng, up, n, act, i % 4 > 1);
        ct_result y = ct_result_new((size_t)T, row, row);
        ct_result q = ct_result_new((size_t)T, (size_t)I, (size_t)I);
        ct_result qs = ct_result_new((size_t)T, groups * 4, groups * 4);
        td_silu_mul_args a = {.gate = gate,
                              .up = up,
                              .y = y.want.p,
                              .T = T,
                              .I = I,
                              .ue8m0 = kt_int(&rng, 0, 1),
                              .act = act},
                         d = a;
        a.q = quantise ? q.want.p : NULL;
        a.qs = quantise ? floats(qs.want.p) : NULL;
        TD_EQ(TD_OK, td_silu_mul_ref(&a, NULL));
        memcpy(y.run[1].p, on_up ? up : gate, n * es);
        ct_result_up(&g, &y);
        ct_result_up(&g, &q);
        ct_result_up(&g, &qs);
        d.gate = ct_up(&g, gate, n * es);
        d.up = ct_up(&g, up, n * es);
        for (int k = 0; k < 2; k++) {
            d.y = y.device[k];
            d.q = quantise ? q.device[k] : NULL;
            d.qs = quantise ? floats(qs.device[k]) : NULL;
            if (k == 1 && on_up)
                d.up = d.y;
            if (k == 1 && !on_up)
                d.gate = d.y;
            TD_EQ(TD_OK, g.ops->silu_mul(&d, g.stream));
        }
        ct_result_numbers(&g, &y, act);
        ct_result_bits(&g, &q); /* both poison where not wanted */
        ct_result_bits(&g, &qs);
        ct_clear(&g);
        ct_result_free(&y);
        ct_result_free(&q);
        ct_result_free(&qs);
        free(gate);
        free(up);
    }
    ct_close(&g);
}

/* ---- rope ---- */

/* Products and a sum, not fused: bits. Rows outside of the table and gaps stay as they are. */
TEST(rope_has_the_judges_bits)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 60; i++) {
        const td_dtype act = i % 2 ? TD_BF16 : TD_F32;
        const size_t es = td_dtype_bytes(act);
        td_rope_args a = {.T = KT_PICK(&rng, 0, 1, 7, 40),
                          .heads = KT_PICK(&rng, 0, 1, 5, 128),
                          .R = KT_PICK(&rng, 2, 4, 6, 64, 66),
                          .max_pos = 50,
                          .act = act,
                          .interleaved = i / 2 % 2};
        a.head_stride = a.R + kt_int(&rng, 0, 70);
        a.row_stride = a.heads * a.head_stride + kt_int(&rng, a.heads == 0 ? a.R : 0, 70);
        const size_t n = (size_t)(a.T * a.row_stride), table = 50 * (size_t)a.R;
        void *x = kt_alloc(n * es);
        float *cos_sin = kt_alloc(table * 4);
        int32_t *positions = kt_alloc((size_t)a.T * 4);
        kt_fill_act(&rng, x, n, 3.0f, act);
        kt_fill_f32(&rng, cos_sin, table, 0.7f);
        for (int t = 0; t < a.T; t++)
            positions[t] = KT_PICK(&rng, kt_int(&rng, 0, 49), 0, 49, 50, -1, INT32_MAX, INT32_MIN);
        if (i % 4 == 0 && n > 0 && act == TD_F32)
            ((float *)x)[kt_int(&rng, 0, (int)n - 1)] = kt_odd(&rng);
        ct_result out = ct_result_new(1, n * es, n * es);
        ct_result_fill(&out, x);
        td_rope_args d = a;
        a.x = out.want.p;
        a.positions = positions;
        a.cos_sin = cos_sin;
        TD_EQ(TD_OK, td_rope_ref(&a, NULL));
        ct_result_up(&g, &out);
        d.positions = ct_up(&g, positions, (size_t)a.T * 4);
        d.cos_sin = ct_up(&g, cos_sin, table * 4);
        for (int k = 0; k < 2; k++) {
            d.x = out.device[k];
            TD_EQ(TD_OK, g.ops->rope(&d, g.stream));
        }
        ct_result_numbers(&g, &out, act);
        ct_clear(&g);
        ct_result_free(&out);
        free(x);
        free(cos_sin);
        free(positions);
    }
    ct_close(&g);
}
