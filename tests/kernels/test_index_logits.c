#include "kernels/index_logits/index_logits.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_index_logits_args a;
    kt_cache cache;
    void *q;
    float *w;
    int32_t *row_seq, *row_len;
    kt_out y;
} logits_case;

typedef struct {
    int dtype, page_rows, B, max_pages, T, Hi, dim, skip_len;
} shape;

/* Finite keys: random bytes are no sensible f32 scales or values. */
static void fill_keys(kt_rng *rng, kt_cache *c, int dim)
{
    const int rows = c->kv.page_rows;
    for (int p = 0; p < c->n_pages; p++) {
        unsigned char *page = c->kv.plane + (size_t)p * c->kv.page_stride;
        if (c->kv.dtype == 2) {
            kt_fill_f32(rng, (float *)(void *)page, (size_t)(rows * dim), 1.0f);
            continue;
        }
        kt_fill_e4m3(rng, page, (size_t)(rows * dim));
        for (int r = 0; r < rows; r++) {
            float scale = ldexpf(1.0f, kt_int(rng, -12, -2));
            memcpy(page + rows * dim + 4 * r, &scale, 4);
        }
    }
}

static logits_case make(kt_rng *rng, shape s)
{
    logits_case c = {.a = {.T = s.T, .Hi = s.Hi, .dim = s.dim, .skip_len = s.skip_len}};
    size_t row_bytes = s.dtype == 2 ? 4 * (size_t)s.dim : 132;
    size_t n = (size_t)s.T * (size_t)s.Hi * (size_t)s.dim;
    c.cache =
        kt_cache_new(rng, s.dtype, s.page_rows, (size_t)s.page_rows * row_bytes, s.B, s.max_pages);
    fill_keys(rng, &c.cache, s.dim);
    c.q = kt_alloc(n * (s.dtype == 2 ? 4 : 1));
    kt_fill_act(rng, c.q, n, 1.0f, s.dtype == 2 ? TD_F32 : TD_E4M3);
    c.w = kt_alloc((size_t)(s.T * s.Hi) * 4);
    kt_fill_f32(rng, c.w, (size_t)(s.T * s.Hi), 0.1f);
    c.row_seq = kt_alloc((size_t)s.T * 4);
    c.row_len = kt_alloc((size_t)s.T * 4);
    int most = s.page_rows * s.max_pages, seq = 0, len = kt_int(rng, 0, most);
    for (int t = 0; t < s.T; t++) { /* runs of rows of one request, with padding between */
        if (kt_int(rng, 0, 5) == 0) {
            seq = kt_int(rng, 0, s.B - 1);
            len = kt_int(rng, 0, most);
        }
        len = len < most ? len + 1 : most;
        c.row_seq[t] = kt_int(rng, 0, 7) == 0 ? -1 : seq;
        c.row_len[t] = c.row_seq[t] < 0 ? 0 : len;
    }
    c.a.y_stride = most + kt_int(rng, 0, 20);
    c.y = kt_out_new((size_t)s.T, (size_t)most * 4, (size_t)c.a.y_stride * 4);
    c.a.q = c.q;
    c.a.w = c.w;
    c.a.kv = c.cache.kv;
    c.a.rows = (td_rows_view){c.row_seq, c.row_len, c.cache.block_table, s.max_pages};
    c.a.y = (float *)(void *)c.y.p;
    return c;
}

static void drop(logits_case *c)
{
    kt_cache_free(&c->cache);
    free(c->q);
    free(c->w);
    free(c->row_seq);
    free(c->row_len);
    kt_out_free(&c->y);
}

/* What sum_h |w_h| sum_d |q_d k_d| * scale is for one entry. */
static double magnitude(const logits_case *c, int t, int s)
{
    const td_index_logits_args *a = &c->a;
    int32_t slot = kt_cache_slot(&c->cache, c->row_seq[t], s);
    int page = slot / a->kv.page_rows, row = slot % a->kv.page_rows;
    const unsigned char *base = a->kv.plane + (size_t)page * a->kv.page_stride;
    td_dtype type = a->kv.dtype == 2 ? TD_F32 : TD_E4M3;
    double sum = 0.0;
    float scale = 1.0f;
    for (int h = 0; h < a->Hi; h++) {
        double dot = 0.0;
        for (int d = 0; d < a->dim; d++)
            dot += fabs((double)kt_get(a->q, (size_t)((t * a->Hi + h) * a->dim + d), type) *
                        kt_get(base, (size_t)(row * a->dim + d), type));
        sum += dot * fabs(a->w[t * a->Hi + h]);
    }
    if (type == TD_E4M3)
        memcpy(&scale, base + a->kv.page_rows * a->dim + 4 * row, 4);
    return sum * scale;
}

/* A dot product is a chain of `dim` roundings (twice that without fused multiply-add), the heads
 * another of 2 * Hi: at most (2 * dim + 2 * Hi + 4) half units of the sum of magnitudes. Entries
 * at and behind row_len are as they were. */
static void check_row(const logits_case *c, const float *want, int t)
{
    const td_index_logits_args *a = &c->a;
    const float *y = a->y + t * a->y_stride;
    int len = a->rows.row_seq[t] < 0 || a->rows.row_len[t] <= a->skip_len ? 0 : a->rows.row_len[t];
    for (int s = 0; s < len; s++) {
        float x = want[t * a->y_stride + s];
        if (isnan(x) || isnan(y[s])) {
            TD_TRUE(isnan(x) && isnan(y[s]));
            continue;
        }
        double bound = (2 * a->dim + 2 * a->Hi + 4) * 0x1p-24 * magnitude(c, t, s);
        TD_TRUE(x == y[s] || fabs((double)x - y[s]) <= bound);
    }
    const unsigned char *rest = (const unsigned char *)(y + len);
    size_t offset = (size_t)(rest - c->y.base);
    for (size_t i = 0; i < (size_t)(a->y_stride - len) * 4; i++)
        TD_EQ(kt_poison(offset + i), rest[i]);
}

static void check(kt_ways *w, logits_case *c)
{
    const size_t bytes = c->y.rows * c->y.stride;
    float *want = kt_alloc(bytes);
    kt_first first = {0};
    TD_EQ(TD_OK, td_index_logits_ref(&c->a, NULL));
    memcpy(want, c->y.p, bytes);
    while (kt_ways_next(w)) {
        kt_out_poison(&c->y);
        TD_EQ(TD_OK, td_index_logits_cpu(&c->a, w->stream));
        kt_out_check(&c->y);
        for (int t = 0; t < c->a.T && w->threads == 1; t++)
            check_row(c, want, t);
        kt_first_same(&first, w, &c->y, TD_F32);
    }
    kt_first_free(&first);
    free(want);
}

TEST(matches_the_reference_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        shape s = {.dtype = i % 3, .page_rows = KT_PICK(&rng, 1, 16, 50, 64, 256), .dim = 128};
        s.B = kt_int(&rng, 1, 3);
        s.max_pages = s.page_rows == 1 ? 20 : KT_PICK(&rng, 1, 2, 3);
        s.T = KT_PICK(&rng, 0, 1, 2, 5, 17);
        s.Hi = KT_PICK(&rng, 1, 2, 3, 4, 6, 16);
        s.skip_len = KT_PICK(&rng, 0, 0, 10, 64);
        if (s.dtype == 2)
            s.dim = KT_PICK(&rng, 1, 7, 16, 33, 128);
        logits_case c = make(&rng, s);
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

/* More than one block of rows and more than one range of pages. */
TEST(long_contexts_and_many_rows_match_too)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    logits_case c = make(&rng, (shape){0, 64, 2, 40, 9, 4, 128, 0});
    check(&w, &c);
    drop(&c);
    c = make(&rng, (shape){0, 64, 2, 3, 150, 3, 128, 0});
    check(&w, &c);
    drop(&c);
    kt_ways_close(&w);
}

TEST(nan_codes_give_nan_where_they_are_seen)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 10; i++) {
        logits_case c = make(&rng, (shape){0, 64, 2, 2, 6, 4, 128, 0});
        for (int n = 0; n < 8; n++) { /* in queries and in codes of keys */
            ((uint8_t *)c.q)[kt_int(&rng, 0, 6 * 4 * 128 - 1)] = 0x7f;
            int32_t slot = kt_cache_slot(&c.cache, 0, kt_int(&rng, 0, 127));
            c.cache.kv
                .plane[(size_t)(slot / 64) * c.cache.kv.page_stride + (size_t)(slot % 64) * 128] =
                0xff;
        }
        check(&w, &c);
        drop(&c);
    }
    kt_ways_close(&w);
}

TEST(a_row_alone_equals_the_row_in_a_batch)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    logits_case c = make(&rng, (shape){0, 64, 3, 20, 70, 16, 128, 0});
    kt_out one = kt_out_new(1, 20 * 64 * 4, 20 * 64 * 4);
    while (kt_ways_next(&w)) {
        if (w.isa == TD_ISA_PORTABLE && w.threads > 1)
            continue; /* slow */
        TD_EQ(TD_OK, td_index_logits_cpu(&c.a, w.stream));
        for (int t = 0; t < c.a.T; t += 3) {
            td_index_logits_args a = c.a;
            a.T = 1;
            a.q = (const uint8_t *)c.q + t * 16 * 128;
            a.w = c.w + t * 16;
            a.rows.row_seq += t;
            a.rows.row_len += t;
            a.y = (float *)(void *)one.p;
            TD_EQ(TD_OK, td_index_logits_cpu(&a, w.stream));
            kt_out_check(&one);
            TD_MEM(c.y.p + (size_t)t * c.y.stride, one.p, (size_t)c.row_len[t] * 4);
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
    logits_case c = make(&rng, (shape){0, 64, 1, 1, 2, 4, 128, 0});
    td_index_logits_args bad[] = {c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a};
    bad[0].T = -1;
    bad[1].Hi = 0;
    bad[2].dim = 64;
    bad[3].kv.dtype = 5;
    bad[4].kv.page_rows = 0;
    bad[5].q = NULL;
    bad[6].w = NULL;
    bad[7].y = NULL;
    bad[8].rows.row_seq = NULL;
    bad[9].rows.block_table = NULL;
    bad[10].kv.plane = NULL;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_BAD_SHAPE, td_index_logits_cpu(&bad[i], td_device_stream(device)));
    drop(&c);
    td_device_close(device);
}
