#include "kernels/sparse_mla/sparse_mla.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_sparse_mla_args a;
    kt_cache cache;
    void *q;
    int32_t *selected, *row_seq;
    kt_out u;
} mla_case;

typedef struct {
    int dtype, page_rows, B, max_pages, T, H, C, R, k;
    td_dtype act;
} shape;

static size_t row_bytes(const shape *s)
{
    return (size_t)(s->dtype == 0 ? s->C + s->C / 128 * 4 + 2 * s->R
                                  : (s->dtype == 1 ? 2 : 4) * (s->C + s->R));
}

static void fill_row(kt_rng *rng, unsigned char *row, const shape *s)
{
    const int dims = s->C + s->R;
    if (s->dtype == 2)
        kt_fill_f32(rng, (float *)(void *)row, (size_t)dims, 1.0f);
    if (s->dtype == 1)
        kt_fill_bf16(rng, (td_bf16 *)(void *)row, (size_t)dims, 1.0f);
    if (s->dtype != 0)
        return;
    kt_fill_e4m3(rng, row, (size_t)s->C);
    for (int g = 0; g < s->C / 128; g++) { /* readers must not assume powers of two */
        float scale = ldexpf(1.0f + 0.5f * (float)kt_int(rng, 0, 1), -7);
        memcpy(row + s->C + 4 * g, &scale, 4);
    }
    kt_fill_bf16(rng, (td_bf16 *)(void *)(row + s->C + s->C / 128 * 4), (size_t)s->R, 1.0f);
}

static void fill_selected(kt_rng *rng, mla_case *c, const shape *s)
{
    const int most = s->page_rows * s->max_pages;
    for (int t = 0; t < s->T; t++) {
        int32_t *row = c->selected + (int64_t)t * s->k;
        c->row_seq[t] = kt_int(rng, 0, 9) == 0 ? -1 : kt_int(rng, 0, s->B - 1);
        int holes = kt_int(rng, 0, 2); /* 0: full, 1: some are -1, 2: -1 from somewhere on */
        int end = holes == 2 ? kt_int(rng, 0, s->k) : s->k;
        for (int i = 0; i < s->k; i++)
            row[i] =
                i >= end || (holes == 1 && kt_int(rng, 0, 3) == 0) ? -1 : kt_int(rng, 0, most - 1);
    }
}

static mla_case make(kt_rng *rng, shape s)
{
    mla_case c = {.a = {.T = s.T, .H = s.H, .C = s.C, .R = s.R, .k = s.k, .act = s.act}};
    const size_t es = td_dtype_bytes(s.act), n = (size_t)(s.T * s.H * (s.C + s.R));
    c.cache = kt_cache_new(rng, s.dtype, s.page_rows, (size_t)s.page_rows * row_bytes(&s), s.B,
                           s.max_pages);
    for (int p = 0; p < c.cache.n_pages; p++)
        for (int r = 0; r < s.page_rows; r++)
            fill_row(rng,
                     c.cache.kv.plane + (size_t)p * c.cache.kv.page_stride +
                         (size_t)r * row_bytes(&s),
                     &s);
    c.q = kt_alloc(n * es);
    kt_fill_act(rng, c.q, n, 1.0f, s.act);
    c.selected = kt_alloc((size_t)(s.T * s.k) * 4);
    c.row_seq = kt_alloc((size_t)s.T * 4);
    fill_selected(rng, &c, &s);
    c.u = kt_out_new((size_t)(s.T * s.H), (size_t)s.C * es, (size_t)s.C * es);
    c.a.q = c.q;
    c.a.selected = c.selected;
    c.a.kv = c.cache.kv;
    c.a.rows = (td_rows_view){c.row_seq, NULL, c.cache.block_table, s.max_pages};
    c.a.u = c.u.p;
    c.a.scale = kt_int(rng, 0, 3) == 0 ? 1.0f : 0.13523378f; /* peaked, and the model's */
    return c;
}

static void drop(mla_case *c)
{
    kt_cache_free(&c->cache);
    free(c->q);
    free(c->selected);
    free(c->row_seq);
    kt_out_free(&c->u);
}

/* A score is (C+R)/16 fused roundings and a tree of 4 (twice that without fused multiply-add) of
 * partial sums up to about 4 sqrt(C+R), with unit normal q and keys: roundings that add up like a
 * random walk stay below 2e-5 * scale, and as much relatively in p and in an output; ten times that
 * is allowed. In bf16 a p on the edge then rounds the other way, by 2^-8 of itself: an output moves
 * by less than 2^-8 of the largest |c| (5.3 here). Neighbouring bf16 results are up to 2^-7 apart.
 */
static void check_close(const mla_case *c, const void *want)
{
    const td_sparse_mla_args *a = &c->a;
    double bound = a->act == TD_BF16 ? 0.03 : 2e-4 * a->scale;
    for (size_t i = 0; i < (size_t)(a->T * a->H * a->C); i++) {
        double x = kt_get(want, i, a->act), y = kt_get(c->u.p, i, a->act);
        if (isnan(x) || isnan(y)) {
            TD_TRUE(isnan(x) && isnan(y));
            continue;
        }
        TD_TRUE(fabs(x - y) <= bound + 0x1p-7 * fabs(x) * (a->act == TD_BF16));
    }
}

static void check(kt_ways *w, mla_case *c)
{
    const size_t bytes = c->u.rows * c->u.stride;
    void *want = kt_alloc(bytes);
    kt_first first = {0};
    TD_EQ(TD_OK, td_sparse_mla_ref(&c->a, NULL));
    memcpy(want, c->u.p, bytes);
    while (kt_ways_next(w)) {
        kt_out_poison(&c->u);
        TD_EQ(TD_OK, td_sparse_mla_cpu(&c->a, w->stream));
        kt_out_check(&c->u);
        check_close(c, want);
        kt_first_same(&first, w, &c->u, c->a.act);
    }
    kt_first_free(&first);
    free(want);
}

TEST(matches_the_reference_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        shape s = {.dtype = i % 3, .page_rows = KT_PICK(&rng, 1, 16, 64, 256), .B = 2};
        s.max_pages = KT_PICK(&rng, 1, 2, 3);
        s.T = KT_PICK(&rng, 0, 1, 2, 5);
        s.H = KT_PICK(&rng, 1, 2, 3, 4, 5, 7, 16);
        s.C = s.dtype == 0 ? KT_PICK(&rng, 128, 512) : KT_PICK(&rng, 1, 16, 30, 48, 144, 512);
        s.R = KT_PICK(&rng, 0, 2, 16, 64);
        s.k = KT_PICK(&rng, 0, 1, 3, 8, 17, 64, 100);
        s.act = s.dtype == 2 ? TD_F32 : TD_BF16;
        mla_case c = make(&rng, s);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

/* More keys than are decoded at a time, and the real model's heads. */
TEST(many_keys_and_many_heads_match_too)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    static const shape shapes[] = {{0, 64, 2, 12, 2, 4, 512, 64, 700, TD_BF16},
                                   {1, 64, 1, 12, 1, 6, 512, 64, 513, TD_BF16},
                                   {2, 64, 1, 9, 2, 2, 512, 64, 300, TD_F32},
                                   {0, 64, 1, 2, 1, 128, 512, 64, 40, TD_BF16}};
    for (int i = 0; i < 4; i++) {
        mla_case c = make(&rng, shapes[i]);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

/* One position: the output is its latent, exactly (p = 1). */
TEST(one_selected_position_is_returned_as_it_is)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    mla_case c = make(&rng, (shape){1, 64, 1, 2, 1, 3, 512, 64, 1, TD_BF16});
    c.row_seq[0] = 0;
    c.selected[0] = 77;
    int32_t slot = kt_cache_slot(&c.cache, 0, 77);
    const unsigned char *row = c.cache.kv.plane + (size_t)(slot / 64) * c.cache.kv.page_stride +
                               (size_t)(slot % 64) * 1152;
    while (kt_ways_next(&w)) {
        kt_out_poison(&c.u);
        TD_EQ(TD_OK, td_sparse_mla_cpu(&c.a, w.stream));
        for (int h = 0; h < 3; h++)
            for (int i = 0; i < 512; i++)
                TD_TRUE(kt_get(c.u.p, (size_t)(h * 512 + i), TD_BF16) ==
                        kt_get(row, (size_t)i, TD_BF16));
    }
    drop(&c);
    kt_ways_close(&w);
}

/* ---- the rounding of p, bit for bit: few keys whose scores are exact ---- */

#define FEW_C 128
#define FEW_R 2
#define FEW_MOST 6

typedef struct {
    int n;
    double score[FEW_MOST], c[FEW_MOST][FEW_C];
} few_keys;

static double to_bf16(double x)
{
    return td_bf16_to_f32(td_f32_to_bf16((float)x));
}

/* Scores are multiples of 1/16, so that only exp and the division round before p does; drawn until
 * no p is nearer than 2^-16 of itself (f32 errs by less than 2^-20) to where bf16 rounds up. */
static few_keys draw_few(kt_rng *rng)
{
    few_keys f = {.n = kt_int(rng, 2, FEW_MOST)};
    for (int ok = 0; !ok;) {
        double sum = 0;
        for (int i = 0; i < f.n; i++) {
            f.score[i] = kt_int(rng, -48, 0) / 16.0;
            sum += exp(f.score[i]);
        }
        ok = 1;
        for (int i = 0; i < f.n; i++) {
            double p = exp(f.score[i]) / sum;
            ok &= to_bf16(p * (1 - 0x1p-16)) == to_bf16(p * (1 + 0x1p-16));
        }
    }
    for (int i = 0; i < f.n; i++)
        for (int j = 0; j < FEW_C; j++)
            f.c[i][j] = to_bf16(kt_normal(rng));
    return f;
}

/* u as the contract has it, and as it would be with p rounded before the division, and not at all.
 * Every product and sum of a few bf16 is exact in double. */
static void expect_few(const few_keys *f, int j, double *u, double *early, double *never)
{
    double sum = 0;
    *u = *early = *never = 0;
    for (int i = 0; i < f->n; i++)
        sum += exp(f->score[i]);
    for (int i = 0; i < f->n; i++) {
        *u += to_bf16(exp(f->score[i]) / sum) * f->c[i][j];
        *early += to_bf16(exp(f->score[i])) / sum * f->c[i][j];
        *never += exp(f->score[i]) / sum * f->c[i][j];
    }
    *u = to_bf16(*u);
    *early = to_bf16(*early);
    *never = to_bf16(*never);
}

/* The query looks at the first rotated dim only, where a key has its score. */
static mla_case make_few(kt_rng *rng, const few_keys *f)
{
    mla_case c = make(rng, (shape){1, 16, 1, 1, 1, 2, FEW_C, FEW_R, FEW_MOST, TD_BF16});
    td_bf16 *q = c.q;
    c.a.scale = 1.0f;
    c.row_seq[0] = 0;
    memset(q, 0, 2 * (FEW_C + FEW_R) * sizeof(*q));
    q[FEW_C] = q[FEW_C + FEW_R + FEW_C] = td_f32_to_bf16(1.0f);
    for (int i = 0; i < FEW_MOST; i++) {
        c.selected[i] = i < f->n ? 2 * i : -1;
        if (i >= f->n)
            continue;
        int32_t slot = kt_cache_slot(&c.cache, 0, 2 * i);
        unsigned char *row = c.cache.kv.plane + (size_t)(slot / 16) * c.cache.kv.page_stride +
                             (size_t)(slot % 16) * 2 * (FEW_C + FEW_R);
        for (int j = 0; j < FEW_C + FEW_R; j++) {
            double x = j < FEW_C ? f->c[i][j] : j == FEW_C ? f->score[i] : 7;
            td_bf16 b = td_f32_to_bf16((float)x);
            memcpy(row + 2 * j, &b, 2);
        }
    }
    return c;
}

static void check_few(const few_keys *f, const mla_case *c, int *early_differs, int *never_differs)
{
    for (int j = 0; j < FEW_C; j++) {
        double want, early, never;
        expect_few(f, j, &want, &early, &never);
        *early_differs += early != want;
        *never_differs += never != want;
        for (int h = 0; h < 2; h++)
            TD_TRUE(kt_get(c->u.p, (size_t)(h * FEW_C + j), TD_BF16) == (float)want);
    }
}

TEST(p_is_rounded_after_the_division_to_the_bit)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    int early = 0, never = 0;
    for (int round = 0; round < 40; round++) {
        few_keys f = draw_few(&rng);
        if (round == 0) { /* three alike: p = 1/3, which bf16 does not have */
            f.n = 3;
            f.score[0] = f.score[1] = f.score[2] = -0.5;
            for (int i = 0; i < 3 * FEW_C; i++)
                f.c[i / FEW_C][i % FEW_C] = to_bf16(kt_normal(&rng));
        }
        mla_case c = make_few(&rng, &f);
        TD_EQ(TD_OK, td_sparse_mla_ref(&c.a, NULL));
        check_few(&f, &c, &early, &never);
        while (kt_ways_next(&w)) {
            kt_out_poison(&c.u);
            TD_EQ(TD_OK, td_sparse_mla_cpu(&c.a, w.stream));
            check_few(&f, &c, &early, &never);
        }
        drop(&c);
    }
    TD_TRUE(early > 100 && never > 100); /* another order of rounding would have been seen */
    kt_ways_close(&w);
}

TEST(padding_rows_and_empty_selections_give_zeros)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    mla_case c = make(&rng, (shape){0, 64, 1, 2, 3, 4, 128, 64, 20, TD_BF16});
    memset(c.selected, 0xff, 3 * 20 * 4);
    c.row_seq[0] = 0; /* nothing selected */
    c.row_seq[1] = -1;
    c.selected[20] = 5; /* a padding row's selection is not read */
    c.row_seq[2] = 0;
    c.selected[40] = 5;
    while (kt_ways_next(&w)) {
        kt_out_poison(&c.u);
        TD_EQ(TD_OK, td_sparse_mla_cpu(&c.a, w.stream));
        int bits = 0;
        for (size_t i = 0; i < 2 * 4 * 128 * 2; i++)
            TD_EQ(0, c.u.p[i]);
        for (size_t i = 0; i < 4 * 128 * 2; i++)
            bits |= c.u.p[2 * 4 * 128 * 2 + i];
        TD_NE(0, bits);
    }
    drop(&c);
    kt_ways_close(&w);
}

TEST(nan_and_infinity_stay_in_the_rows_that_see_them)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 20; i++) {
        mla_case c = make(&rng, (shape){1, 64, 2, 2, 6, 3, 128, 64, 30, TD_BF16});
        static const float odd[] = {NAN, INFINITY, -INFINITY};
        for (int n = 0; n < 3; n++)
            ((td_bf16 *)c.q)[kt_int(&rng, 0, 6 * 3 * 192 - 1)] = td_f32_to_bf16(odd[i % 3]);
        int32_t slot = kt_cache_slot(&c.cache, 0, kt_int(&rng, 0, 127));
        td_bf16 bad = td_f32_to_bf16(odd[(i + 1) % 3]);
        memcpy(c.cache.kv.plane + (size_t)(slot / 64) * c.cache.kv.page_stride +
                   (size_t)(slot % 64) * 384 + 2 * (size_t)kt_int(&rng, 0, 191),
               &bad, 2);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

/* Also with another number of threads, which cuts the heads in other groups. */
TEST(a_row_alone_equals_the_row_in_a_batch)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    mla_case c = make(&rng, (shape){0, 64, 3, 10, 12, 21, 512, 64, 300, TD_BF16});
    const size_t row = 21 * 512 * 2;
    kt_out one = kt_out_new(1, row, row);
    while (kt_ways_next(&w)) {
        if (w.isa == TD_ISA_PORTABLE && w.threads > 1)
            continue; /* slow */
        TD_EQ(TD_OK, td_sparse_mla_cpu(&c.a, w.stream));
        for (int t = 0; t < c.a.T; t += 2) {
            td_sparse_mla_args a = c.a;
            a.T = 1;
            a.q = (const td_bf16 *)c.q + t * 21 * 576;
            a.selected += t * 300;
            a.rows.row_seq += t;
            a.u = one.p;
            TD_EQ(TD_OK, td_sparse_mla_cpu(&a, w.stream));
            kt_out_check(&one);
            TD_MEM(c.u.p + (size_t)t * row, one.p, row);
        }
    }
    kt_out_free(&one);
    drop(&c);
    kt_ways_close(&w);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    mla_case c = make(&rng, (shape){0, 64, 1, 1, 2, 2, 128, 64, 8, TD_BF16});
    td_sparse_mla_args bad[] = {c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a};
    bad[0].T = -1;
    bad[1].H = 0;
    bad[2].C = 100;
    bad[3].R = -1;
    bad[4].k = -1;
    bad[5].act = TD_E4M3;
    bad[6].kv.dtype = 3;
    bad[7].q = NULL;
    bad[8].u = NULL;
    bad[9].selected = NULL;
    bad[10].rows.block_table = NULL;
    bad[11].rows.row_seq = NULL;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_BAD_SHAPE, td_sparse_mla_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(kt_poison(KT_GUARD), c.u.p[0]);
    drop(&c);
    td_device_close(device);
}
