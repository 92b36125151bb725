/* The CUDA product of heads against its plain judge, by test_cuda_gemm.c's rules: small integers to
 * the bit, the rest within a bound, and a row's bits the same in every batch. */
#include "kernels/head_gemm/head_gemm.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

typedef struct {
    td_head_gemm_args a;
    void *x, *w;
    size_t nx, nw;
    kt_out want, got; /* rows of H heads */
} heads;

/* a: act, sizes, strides. */
static heads heads_of(kt_rng *rng, td_head_gemm_args a, int integers)
{
    heads p = {.a = a};
    const size_t size = td_dtype_bytes(p.a.act);
    p.nx = (size_t)((p.a.T - 1) * p.a.x_row + (p.a.H - 1) * p.a.x_head + p.a.K) * size;
    p.nw = (size_t)(p.a.H * p.a.N) * (size_t)p.a.K * size;
    p.x = kt_alloc(p.nx);
    p.w = kt_alloc(p.nw);
    ct_fill(rng, p.x, p.nx / size, p.a.act, integers);
    ct_fill(rng, p.w, p.nw / size, p.a.act, integers);
    p.want = kt_out_new((size_t)(p.a.T * p.a.H), (size_t)p.a.N * size, (size_t)p.a.y_head * size);
    p.got = kt_out_new((size_t)(p.a.T * p.a.H), (size_t)p.a.N * size, (size_t)p.a.y_head * size);
    return p;
}

static heads make_heads(kt_rng *rng, int i, int integers)
{
    td_head_gemm_args a = {.act = i % 2 ? TD_BF16 : TD_F32};
    do {
        a.T = KT_PICK(rng, 1, 2, 5, 16, 17, 70);
        a.H = KT_PICK(rng, 1, 2, 5, 16);
        a.N = KT_PICK(rng, 1, 3, 64, 128, 130, 512);
        a.K = KT_PICK(rng, 1, 15, 16, 64, 128, 200, 512);
    } while ((int64_t)a.T * a.H * a.N * a.K > 6000000);
    a.x_head = a.K + (kt_int(rng, 0, 1) ? 0 : kt_int(rng, 0, 5));
    a.x_row = a.H * a.x_head;
    a.y_head = a.N + kt_int(rng, 0, 5);
    a.y_row = a.H * a.y_head;
    return heads_of(rng, a, integers);
}

static void run_heads(ct_gpu *g, heads *p, int rows)
{
    td_head_gemm_args a = p->a;
    const size_t size = td_dtype_bytes(a.act);
    kt_out_poison(&p->got);
    const char *x = ct_up(g, p->x, p->nx);
    char *y = ct_out(g, &p->got);
    a.w = ct_up(g, p->w, p->nw);
    for (int t = 0; t < p->a.T; t += rows) {
        a.T = p->a.T - t < rows ? p->a.T - t : rows;
        a.x = x + (size_t)(t * a.x_row) * size;
        a.y = y + (size_t)(t * a.y_row) * size;
        TD_EQ(TD_OK, g->ops->head_gemm(&a, g->stream));
    }
    ct_fetch(g, &p->got, y);
    ct_clear(g);
}

static void judge_heads(heads *p)
{
    td_head_gemm_args a = p->a;
    a.x = p->x;
    a.w = p->w;
    a.y = p->want.p;
    TD_EQ(TD_OK, td_head_gemm_ref(&a, NULL));
}

static void drop_heads(heads *p)
{
    kt_out_free(&p->want);
    kt_out_free(&p->got);
    free(p->x);
    free(p->w);
}

TEST(head_gemm_of_small_integers_equals_the_judge)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(40); i++) {
        heads p = make_heads(&rng, i, 1);
        judge_heads(&p);
        run_heads(&g, &p, p.a.T);
        kt_out_same(&p.want, &p.got);
        drop_heads(&p);
    }
    ct_close(&g);
}

/* The judge adds K products one after the other: K roundings more. */
TEST(head_gemm_sums_are_within_rounding_and_rows_do_not_depend_on_the_batch)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(30); i++) {
        heads p = make_heads(&rng, i, 0);
        judge_heads(&p);
        run_heads(&g, &p, p.a.T);
        for (int r = 0; r < p.a.T * p.a.H; r++)
            for (int n = 0; n < p.a.N; n++) {
                const size_t x = (size_t)(r / p.a.H * p.a.x_row + r % p.a.H * p.a.x_head);
                const size_t w = (size_t)(r % p.a.H * p.a.N + n) * (size_t)p.a.K;
                double s = 0, steps = 2.0 * (2 * 128 + p.a.K + 8);
                for (int k = 0; k < p.a.K; k++)
                    s += fabs((double)kt_get(p.x, x + (size_t)k, p.a.act) *
                              (double)kt_get(p.w, w + (size_t)k, p.a.act));
                double want = (double)kt_get(p.want.p, (size_t)(r * p.a.y_head + n), p.a.act);
                double got = (double)kt_get(p.got.p, (size_t)(r * p.a.y_head + n), p.a.act);
                double bound = steps * 0x1p-24 * s + (p.a.act == TD_BF16 ? 0x1p-7 * fabs(want) : 0);
                TD_TRUE(fabs(got - want) <= bound);
            }
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        run_heads(&g, &p, kt_int(&rng, 1, 20));
        kt_out_same(&p.want, &p.got);
        drop_heads(&p);
    }
    ct_close(&g);
}

/* Many rows of bf16 have wide tiles, of 64, 128 and 192 rows of x: shapes that take each, with one
 * tile for a block of threads and with several, which go round the ring of stages. Rows 16-byte
 * aligned, as the tiles want them. */
static const int head_sizes[][4] = {
    /* T, H, N, K */
    {40, 70, 100, 136},  {100, 40, 140, 128}, {150, 67, 64, 200},
    {300, 12, 512, 128}, {400, 70, 128, 200}, {300, 24, 128, 512},
    {200, 70, 100, 512}, {33, 34, 131, 16},   {130, 5, 200, 264}};

static heads make_wide_heads(kt_rng *rng, size_t i, int integers)
{
    const int *size = head_sizes[i];
    td_head_gemm_args a = {.act = TD_BF16, .T = size[0], .H = size[1], .N = size[2], .K = size[3]};
    a.x_head = a.K + 8 * kt_int(rng, 0, 2);
    a.x_row = a.H * a.x_head;
    a.y_head = a.N + kt_int(rng, 0, 5);
    a.y_row = a.H * a.y_head;
    return heads_of(rng, a, integers);
}

TEST(bf16_head_gemm_of_small_integers_equals_the_judge_in_every_wide_tile)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(head_sizes) / sizeof(*head_sizes); i++) {
        heads p = make_wide_heads(&rng, i, 1);
        judge_heads(&p);
        run_heads(&g, &p, p.a.T);
        kt_out_same(&p.want, &p.got);
        drop_heads(&p);
    }
    ct_close(&g);
}

TEST(a_row_of_bf16_head_gemm_has_the_same_bits_through_every_tile)
{
    static const int rows[] = {7, 8, 9, 16, 17, 32, 33, 64, 65, 129};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(head_sizes) / sizeof(*head_sizes); i++) {
        heads p = make_wide_heads(&rng, i, 0);
        run_heads(&g, &p, p.a.T);
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        run_heads(&g, &p, p.a.T); /* twice */
        kt_out_same(&p.want, &p.got);
        for (size_t k = i % 3; k < sizeof(rows) / sizeof(*rows); k += 3) { /* a third with each */
            if (!ct_may_batch(p.a.T, rows[k]))
                continue;
            run_heads(&g, &p, rows[k]);
            kt_out_same(&p.want, &p.got);
        }
        drop_heads(&p);
    }
    ct_close(&g);
}
