/* The CUDA forms of the indexer's scores and of attention, against the plain judges. */
#include "kernels/index_logits/index_logits.h"
#include "kernels/sparse_mla/sparse_mla.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

#define MOST_T 8
enum { B = 2, MAX_PAGES = 5 };

/* ---- index_logits ---- */

static void fill_index_keys(kt_rng *rng, kt_cache *c, int dim)
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

/* sum_h |w_h| sum_d |q_d k_d| * scale of one entry. */
static double magnitude(const td_index_logits_args *a, int t, int s)
{
    const int rows = a->kv.page_rows, row = s % rows;
    const int32_t page = a->rows.block_table[a->rows.row_seq[t] * MAX_PAGES + s / rows];
    const unsigned char *base = a->kv.plane + (size_t)page * a->kv.page_stride;
    const td_dtype type = a->kv.dtype == 2 ? TD_F32 : TD_E4M3;
    double sum = 0.0;
    float scale = 1.0f;
    for (int h = 0; h < a->Hi; h++) {
        double dot = 0.0;
        for (int d = 0; d < a->dim; d++)
            dot += fabs((double)kt_get(a->q, (size_t)((t * a->Hi + h) * a->dim + d), type) *
                        kt_get(base, (size_t)(row * a->dim + d), type));
        sum += dot * fabsf(a->w[t * a->Hi + h]);
    }
    if (type == TD_E4M3)
        memcpy(&scale, base + rows * a->dim + 4 * row, 4);
    return sum * scale;
}

/* The bound of tests/kernels/test_index_logits.c: 2 dim + 2 Hi + 4 half units of
 * sum_h |w_h| sum_d |q_d k_d| * scale; the tensor cores' sums of 16 products lose less than as many
 * additions would. What is not wanted stays as it was. */
static void check_logits(const td_index_logits_args *a, const kt_out *want, const kt_out *got)
{
    for (int t = 0; t < a->T; t++)
        for (int s = 0; s < a->y_stride; s++) {
            const int len = a->rows.row_seq[t] < 0 || a->rows.row_len[t] <= a->skip_len
                                ? 0
                                : a->rows.row_len[t];
            const float *wp = (float *)(void *)want->p + t * a->y_stride + s;
            const float *gp = (float *)(void *)got->p + t * a->y_stride + s;
            const float x = *wp, y = *gp;
            if (s >= len)
                TD_MEM(wp, gp, 4);
            if (isnan(x) || isnan(y)) {
                TD_TRUE(isnan(x) && isnan(y));
                continue;
            }
            double bound = (2 * a->dim + 2 * a->Hi + 4) * 0x1p-24 * magnitude(a, t, s);
            TD_TRUE(fabs((double)x - y) <= bound);
        }
}

static void run_logits(ct_gpu *g, const td_index_logits_args *host, const kt_cache *c, kt_out *got)
{
    td_index_logits_args d = *host;
    const size_t es = host->kv.dtype == 2 ? 4 : 1, T = (size_t)host->T, n = T * (size_t)host->Hi;
    d.q = ct_up(g, host->q, n * (size_t)host->dim * es);
    d.w = ct_up(g, host->w, n * 4);
    d.kv.plane = ct_up(g, c->kv.plane, c->n_bytes);
    d.rows.row_seq = ct_up(g, host->rows.row_seq, T * 4);
    d.rows.row_len = ct_up(g, host->rows.row_len, T * 4);
    d.rows.block_table = ct_up(g, c->block_table, (size_t)(B * MAX_PAGES) * 4);
    kt_out_poison(got);
    void *p = d.y = ct_out(g, got);
    TD_EQ(TD_OK, g->ops->index_logits(&d, g->stream));
    ct_fetch(g, got, p);
    ct_clear(g);
}

static void check_index(kt_rng *rng, ct_gpu *g, int dtype, int T, int Hi, int page_rows)
{
    const int most = page_rows * MAX_PAGES;
    td_index_logits_args a = {
        .T = T, .dim = 128, .Hi = Hi, .skip_len = KT_PICK(rng, 0, 0, 10), .y_stride = most + 3};
    if (dtype == 2)
        a.dim = KT_PICK(rng, 1, 33, 128);
    const size_t n = (size_t)(a.T * a.Hi), row = (size_t)a.y_stride * 4;
    kt_cache c =
        kt_cache_new(rng, dtype, page_rows,
                     (size_t)page_rows * (dtype == 2 ? 4 * (size_t)a.dim : 132), B, MAX_PAGES);
    fill_index_keys(rng, &c, a.dim);
    int32_t *seq = kt_alloc((size_t)T * 4), *len = kt_alloc((size_t)T * 4);
    for (int t = 0; t < T; t++) {
        seq[t] = kt_int(rng, -1, B - 1);
        len[t] = seq[t] < 0 ? 0 : t == 1 ? 1 : kt_int(rng, 0, most);
    }
    void *q = kt_alloc(n * (size_t)a.dim * 4);
    float *w = kt_alloc(n * 4);
    kt_fill_act(rng, q, n * (size_t)a.dim, 1.0f, dtype == 2 ? TD_F32 : TD_E4M3);
    if (dtype == 0 && a.T > 1)
        ((uint8_t *)q)[3] = 0x7f; /* NaN */
    kt_fill_f32(rng, w, n, 0.1f);
    kt_out want = kt_out_new((size_t)a.T, row, row), got = kt_out_new((size_t)a.T, row, row);
    kt_out one = kt_out_new(1, row, row);
    a.q = q;
    a.w = w;
    a.kv = c.kv;
    a.rows = (td_rows_view){seq, len, c.block_table, MAX_PAGES};
    a.y = (float *)(void *)want.p;
    TD_EQ(TD_OK, td_index_logits_ref(&a, NULL));
    run_logits(g, &a, &c, &got);
    check_logits(&a, &want, &got);
    for (int t = 0; t < a.T; t += 1 + a.T / 16) { /* again, and alone */
        td_index_logits_args b = a;
        b.T = 1;
        b.q = (uint8_t *)q + (size_t)(t * a.Hi * a.dim) * (dtype == 2 ? 4 : 1);
        b.w = w + t * a.Hi;
        b.rows.row_seq += t;
        b.rows.row_len += t;
        run_logits(g, &b, &c, &one);
        const int written = seq[t] < 0 || len[t] <= a.skip_len ? 0 : len[t];
        TD_MEM(got.p + (size_t)t * row, one.p, (size_t)written * 4);
    }
    kt_cache_free(&c);
    kt_out_free(&want);
    kt_out_free(&got);
    kt_out_free(&one);
    free(q);
    free(w);
    free(seq);
    free(len);
}

TEST(index_logits_are_near_the_judges_and_alone_the_same)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(30); i++)
        check_index(&rng, &g, i % 3, KT_PICK(&rng, 0, 1, MOST_T),
                    KT_PICK(&rng, 1, 3, 8, 16, 64, 70), KT_PICK(&rng, 1, 50, 64));
    ct_close(&g);
}

/* So many rows that a block takes several; so many keys that it takes more than one tile of them.
 */
TEST(index_logits_of_many_rows_are_near_the_judges_and_alone_the_same)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    check_index(&rng, &g, 0, 4500, 2, 64);
    check_index(&rng, &g, 0, 300, 65, 64);
    check_index(&rng, &g, 0, 127, 2, 1024);
    check_index(&rng, &g, 2, 4500, 1, 64);
    ct_close(&g);
}

/* ---- sparse_mla ---- */

static size_t mla_row_bytes(int dtype, int C, int R)
{
    return (size_t)(dtype == 0 ? C + C / 128 * 4 + 2 * R : (dtype == 1 ? 2 : 4) * (C + R));
}

static void fill_latent(kt_rng *rng, unsigned char *row, int dtype, int C, int R)
{
    const size_t dims = (size_t)(C + R);
    if (dtype != 0) {
        kt_fill_act(rng, row, dims, 1.0f, dtype == 2 ? TD_F32 : TD_BF16);
        return;
    }
    static const float scales[] = {0x1p-7f, 0x1.8p-7f, 0x1.5554p-7f}; /* bf16 holds two */
    kt_fill_e4m3(rng, row, (size_t)C);
    for (int g = 0; g < C / 128; g++) {
        float scale = scales[kt_int(rng, 0, 2)];
        memcpy(row + C + 4 * g, &scale, 4);
    }
    kt_fill_bf16(rng, (td_bf16 *)(void *)(row + C + C / 128 * 4), (size_t)R, 1.0f);
}

static void run_mla(ct_gpu *g, const td_sparse_mla_args *host, const kt_cache *c, kt_out *got)
{
    td_sparse_mla_args d = *host;
    const size_t T = (size_t)host->T, es = td_dtype_bytes(host->act);
    d.q = ct_up(g, host->q, T * (size_t)(host->H * (host->C + host->R)) * es);
    d.selected = ct_up(g, host->selected, T * (size_t)host->k * 4);
    d.kv.plane = ct_up(g, c->kv.plane, c->n_bytes);
    d.rows.row_seq = ct_up(g, host->rows.row_seq, T * 4);
    d.rows.block_table = ct_up(g, c->block_table, (size_t)(B * MAX_PAGES) * 4);
    kt_out_poison(got);
    void *p = d.u = ct_out(g, got);
    TD_EQ(TD_OK, g->ops->sparse_mla(&d, g->stream));
    ct_fetch(g, got, p);
    ct_clear(g);
}

typedef struct {
    int dtype, C, R, H, k; /* dtype: the cache's */
    td_dtype act;
    int T;
} mla_shape;

/* bf16: scores differ by f32 roundings, so a p on the edge rounds the other way, and an fp8 value
 * is rounded to bf16 for the second product: 2^-8 and 2^-9 of the largest |c| (5.3), and one bf16
 * step of the result. f32: as in tests/kernels/test_sparse_mla.c. Of many rows some are judged. */
static void check_mla(kt_rng *rng, ct_gpu *g, mla_shape shape)
{
    const int dtype = shape.dtype, C = shape.C, R = shape.R, H = shape.H, k = shape.k, T = shape.T;
    const int most = 64 * MAX_PAGES;
    const td_dtype act = shape.act;
    const size_t row = mla_row_bytes(dtype, C, R), es = td_dtype_bytes(act);
    const size_t n = (size_t)(T * H * (C + R)), out = (size_t)(H * C) * es;
    kt_cache c = kt_cache_new(rng, dtype, 64, 64 * row, B, MAX_PAGES);
    for (int i = 0; i < c.n_pages * 64; i++)
        fill_latent(rng, c.kv.plane + (size_t)(i / 64) * c.kv.page_stride + (size_t)(i % 64) * row,
                    dtype, C, R);
    void *q = kt_alloc(n * es);
    kt_fill_act(rng, q, n, 1.0f, act);
    int32_t *seq = kt_alloc((size_t)T * 4), *selected = kt_alloc((size_t)(T * k) * 4);
    for (int t = 0; t < T; t++) {
        int end = kt_int(rng, 0, 2) ? k : kt_int(rng, 0, k);
        seq[t] = kt_int(rng, 0, 5) == 0 ? -1 : kt_int(rng, 0, B - 1);
        for (int i = 0; i < k; i++)
            selected[t * k + i] =
                i >= end || kt_int(rng, 0, 9) == 0 ? -1 : kt_int(rng, 0, most - 1);
    }
    kt_out want = kt_out_new(1, out, out), got = kt_out_new((size_t)T, out, out);
    kt_out one = kt_out_new(1, out, out);
    td_sparse_mla_args a = {q,      selected, c.kv,        {seq, NULL, c.block_table, MAX_PAGES},
                            want.p, T,        H,           C,
                            R,      k,        0.13523378f, act};
    run_mla(g, &a, &c, &got);
    for (int t = 0; t < T; t += 1 + T / 8) { /* against the judge; again, and alone */
        const unsigned char *mine = got.p + (size_t)t * out;
        td_sparse_mla_args b = a;
        b.T = 1;
        b.q = (unsigned char *)q + (size_t)(t * H * (C + R)) * es;
        b.selected += t * k;
        b.rows.row_seq += t;
        TD_EQ(TD_OK, td_sparse_mla_ref(&b, NULL));
        for (size_t i = 0; i < (size_t)(H * C); i++) {
            double x = kt_get(want.p, i, act), y = kt_get(mine, i, act);
            double bound = act == TD_BF16 ? 0.04 + 0x1p-7 * fabs(x) : 2e-4;
            TD_TRUE(fabs(x - y) <= bound);
        }
        run_mla(g, &b, &c, &one);
        TD_MEM(mine, one.p, out);
    }
    kt_cache_free(&c);
    kt_out_free(&want);
    kt_out_free(&got);
    kt_out_free(&one);
    free(q);
    free(seq);
    free(selected);
}

TEST(sparse_mla_of_the_models_shape_is_near_the_judge)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(20); i++)
        check_mla(&rng, &g,
                  (mla_shape){i % 2, 512, 64, KT_PICK(&rng, 1, 5, 8, 16, 21, 33, 64, 128),
                              KT_PICK(&rng, 0, 1, 2, 31, 32, 33, 63, 64, 65, 300), TD_BF16,
                              KT_PICK(&rng, 1, 2, 5)});
    check_mla(&rng, &g, (mla_shape){0, 512, 64, 16, 2048, TD_BF16, 3});
    ct_close(&g);
}

TEST(sparse_mla_of_other_shapes_is_near_the_judge)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(12); i++)
        check_mla(&rng, &g,
                  (mla_shape){i % 3, 128 * kt_int(&rng, 1, 2), KT_PICK(&rng, 0, 1, 2, 64),
                              KT_PICK(&rng, 1, 3), KT_PICK(&rng, 0, 1, 33, 130),
                              i % 2 ? TD_BF16 : TD_F32, KT_PICK(&rng, 1, 2, 5)});
    ct_close(&g);
}

/* Heads in blocks that are not full, parts and tiles without keys, selections at their edges. */
TEST(sparse_mla_of_fp8_caches_is_near_the_judge)
{
    static const int ks[] = {0, 1, 63, 64, 65, 128, 257, 600};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(ks) / sizeof(*ks); i++)
        check_mla(&rng, &g,
                  (mla_shape){0, 512, 64, KT_PICK(&rng, 33, 64, 65, 100, 127, 128, 130), ks[i],
                              TD_BF16, KT_PICK(&rng, 1, 2, 3)});
    /* Many rows take wide blocks of heads, a row alone narrow ones. */
    check_mla(&rng, &g, (mla_shape){0, 512, 64, 128, 65, TD_BF16, 50});
    check_mla(&rng, &g, (mla_shape){0, 512, 64, 65, 130, TD_BF16, 51});
    check_mla(&rng, &g, (mla_shape){0, 512, 64, 33, 63, TD_BF16, 52});
    ct_close(&g);
}

/* More rows than the scratch takes at a time; fewer where computing is slow. */
TEST(sparse_mla_of_many_rows_is_near_the_judge)
{
    const int part = ct_slow() > 1 ? 10 : 1;
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    check_mla(&rng, &g, (mla_shape){0, 512, 64, 128, 2048, TD_BF16, 300 / part});
    check_mla(&rng, &g, (mla_shape){1, 512, 64, 128, 2048, TD_BF16, 150 / part});
    ct_close(&g);
}
