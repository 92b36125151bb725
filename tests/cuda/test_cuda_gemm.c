/* The CUDA products against the plain judges. Small integers: every sum is exact, so the bits are
 * equal. Otherwise: a block of 128 products is summed by tensor cores (f32, at most 128 roundings),
 * then added to the others; the judge does the same one by one. With S = sum of |x w scales| the
 * two differ by less than (2 * (128 + K/128) + 4) * 2^-24 * S; bf16 results by one bf16 step more.
 * Tensor cores may cut where f32 rounds (one unit instead of half of one): twice that. */
#include "kernels/gemm/gemm.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

typedef struct {
    td_gemm_args a; /* host */
    void *x, *w;
    float *xs, *ws, *old;
    size_t nx, nw, n_xs, n_ws;
    kt_out want, got;
} problem;

static float *scales(kt_rng *rng, size_t n, int integers)
{
    float *s = kt_alloc(n * 4);
    for (size_t i = 0; i < n; i++)
        s[i] = integers ? (float)(1 << kt_int(rng, 0, 2)) : 0.001f + kt_unit(rng);
    return s;
}

static problem make(kt_rng *rng, int M, int N, int K, td_dtype dtype, int integers)
{
    problem p = {.a = {.M = M, .N = N, .K = K, .dtype = dtype}};
    const size_t size = td_dtype_bytes(dtype);
    const int kb = td_ceil_div(K, 128);
    p.a.x_stride = K + (kt_int(rng, 0, 1) ? 0 : kt_int(rng, 0, 9));
    p.a.y_stride = N + kt_int(rng, 0, 9);
    p.a.y_dtype = kt_int(rng, 0, 1) ? TD_F32 : TD_BF16;
    p.a.accumulate = p.a.y_dtype == TD_F32 && kt_int(rng, 0, 1);
    p.nx = M > 0 ? (size_t)((M - 1) * p.a.x_stride + K) * size : 0;
    p.nw = (size_t)N * (size_t)K * size;
    p.x = kt_alloc(p.nx);
    p.w = kt_alloc(p.nw);
    ct_fill(rng, p.x, p.nx / size, dtype, integers);
    ct_fill(rng, p.w, p.nw / size, dtype, integers);
    if (dtype == TD_E4M3) {
        p.n_xs = (size_t)(M * kb) * 4;
        p.n_ws = (size_t)(td_ceil_div(N, 128) * kb) * 4;
        p.xs = scales(rng, p.n_xs / 4, integers);
        p.ws = scales(rng, p.n_ws / 4, integers);
    }
    const size_t y_size = td_dtype_bytes(p.a.y_dtype);
    p.want = kt_out_new((size_t)M, (size_t)N * y_size, (size_t)p.a.y_stride * y_size);
    p.got = kt_out_new((size_t)M, (size_t)N * y_size, (size_t)p.a.y_stride * y_size);
    p.old = kt_alloc((size_t)(M * N) * 4);
    for (int i = 0; i < M * N; i++)
        p.old[i] = (float)kt_int(rng, -9, 9);
    return p;
}

static void set_old(const problem *p, kt_out *y)
{
    kt_out_poison(y);
    for (int m = 0; p->a.accumulate && m < p->a.M; m++)
        memcpy(y->p + (size_t)m * y->stride, p->old + m * p->a.N, y->row_bytes);
}

static void run_ref(problem *p)
{
    td_gemm_args a = p->a;
    set_old(p, &p->want);
    a.x = p->x;
    a.w = p->w;
    a.xs = p->xs;
    a.ws = p->ws;
    a.y = p->want.p;
    TD_EQ(TD_OK, td_gemm_ref(&a, NULL));
}

/* rows: how many go in one call, up to row `until`; those behind it go in one. */
static void run_mixed(ct_gpu *g, problem *p, int rows, int until)
{
    td_gemm_args a = p->a;
    const int kb = td_ceil_div(a.K, 128);
    set_old(p, &p->got);
    const char *x = ct_up(g, p->x, p->nx);
    const float *xs = ct_up(g, p->xs, p->n_xs);
    char *y = ct_out(g, &p->got);
    a.w = ct_up(g, p->w, p->nw);
    a.ws = ct_up(g, p->ws, p->n_ws);
    for (int m = 0; m < p->a.M || m == 0; m += a.M > 0 ? a.M : 1) {
        const int left = p->a.M - m;
        a.M = m >= until || left < rows ? left : rows;
        a.x = x + (size_t)(m * a.x_stride) * td_dtype_bytes(a.dtype);
        a.xs = xs == NULL ? NULL : xs + m * kb;
        a.y = y + (size_t)m * p->got.stride;
        TD_EQ(TD_OK, g->ops->gemm(&a, g->stream));
    }
    ct_fetch(g, &p->got, y);
    ct_clear(g);
}

static void run_gpu(ct_gpu *g, problem *p, int rows)
{
    run_mixed(g, p, rows, p->a.M);
}

/* In batches of `rows` the result is p->want's. */
static void run_in_batches(ct_gpu *g, problem *p, int rows)
{
    if (!ct_may_batch(p->a.M, rows))
        return;
    run_gpu(g, p, rows);
    kt_out_same(&p->want, &p->got);
}

static void drop(problem *p)
{
    kt_out_free(&p->want);
    kt_out_free(&p->got);
    free(p->x);
    free(p->w);
    free(p->xs);
    free(p->ws);
    free(p->old);
}

static problem draw(kt_rng *rng, int i, int integers)
{
    int M, N, K;
    do {
        M = KT_PICK(rng, 0, 1, 2, 15, 16, 17, 33, 64, 65, 130);
        N = KT_PICK(rng, 1, 3, 63, 64, 65, 128, 200, 512);
        K = KT_PICK(rng, 1, 7, 16, 64, 127, 128, 129, 256, 384, 500, 1536);
    } while ((int64_t)M * N * K > 6000000);
    return make(rng, M, N, K, (td_dtype)(i % 3), integers);
}

TEST(gemm_of_small_integers_equals_the_judge)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(90); i++) {
        problem p = draw(&rng, i, 1);
        run_ref(&p);
        run_gpu(&g, &p, p.a.M + 1);
        kt_out_same(&p.want, &p.got);
        drop(&p);
    }
    ct_close(&g);
}

static double magnitude(const problem *p, int m, int n)
{
    double s = 0;
    const int kb = td_ceil_div(p->a.K, 128);
    for (int k = 0; k < p->a.K; k++) {
        double v = fabs((double)kt_get(p->x, (size_t)(m * p->a.x_stride + k), p->a.dtype) *
                        (double)kt_get(p->w, (size_t)(n * p->a.K + k), p->a.dtype));
        if (p->a.dtype == TD_E4M3)
            v *= (double)p->xs[m * kb + k / 128] * (double)p->ws[n / 128 * kb + k / 128];
        s += v;
    }
    return s;
}

TEST(gemm_sums_are_within_rounding_of_the_judge)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(60); i++) {
        problem p = draw(&rng, i, 0);
        const double steps = 2.0 * (2 * (128 + p.a.K / 128.0) + 4);
        run_ref(&p);
        run_gpu(&g, &p, p.a.M + 1);
        for (int m = 0; m < p.a.M; m++)
            for (int n = 0; n < p.a.N; n++) {
                size_t at = (size_t)(m * p.a.y_stride + n);
                double want = (double)kt_get(p.want.p, at, p.a.y_dtype);
                double got = (double)kt_get(p.got.p, at, p.a.y_dtype);
                double bound = steps * 0x1p-24 * (magnitude(&p, m, n) + 9.0);
                if (p.a.y_dtype == TD_BF16)
                    bound += 0x1p-7 * fabs(want);
                if (!(fabs(got - want) <= bound)) {
                    printf("M %d N %d K %d dtype %d: [%d, %d] is %.9g, judge %.9g, bound %g\n",
                           p.a.M, p.a.N, p.a.K, p.a.dtype, m, n, got, want, bound);
                    TD_TRUE(0);
                }
            }
        drop(&p);
    }
    ct_close(&g);
}

TEST(a_row_of_gemm_has_the_same_bits_alone_and_in_any_batch)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(30); i++) {
        problem p = draw(&rng, i, 0);
        run_gpu(&g, &p, p.a.M + 1);
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        run_gpu(&g, &p, p.a.M + 1); /* twice */
        kt_out_same(&p.want, &p.got);
        run_in_batches(&g, &p, kt_int(&rng, 1, 20));
        drop(&p);
    }
    ct_close(&g);
}

/* bf16 splits K between blocks of a cluster, by N and K: shapes that take each number of parts, in
 * tiles of few rows and of many, with many stages and with few. */
static const int split_sizes[][3] = {
    /* M, N, K */
    {1, 64, 7168},   {40, 64, 7168},    {2100, 64, 1100}, {9, 256, 7168},
    {1, 70, 4097},   {130, 1000, 1024}, {16, 1100, 1100}, {33, 2112, 3072},
    {5, 2112, 1536}, {20, 4096, 1100},  {3, 4300, 2048},  {600, 130, 2048}};

static problem make_split(kt_rng *rng, size_t i, int integers)
{
    const int *size = split_sizes[i];
    problem p = make(rng, size[0], size[1], size[2], TD_BF16, integers);
    if (size[2] % 8 == 0)
        p.a.x_stride = p.a.K; /* aligned: the rows that make() drew, closer together */
    return p;
}

TEST(bf16_gemm_of_small_integers_equals_the_judge_in_every_split)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(split_sizes) / sizeof(*split_sizes); i++) {
        problem p = make_split(&rng, i, 1);
        run_ref(&p);
        run_gpu(&g, &p, p.a.M);
        kt_out_same(&p.want, &p.got);
        drop(&p);
    }
    ct_close(&g);
}

TEST(a_row_of_bf16_gemm_has_the_same_bits_in_every_batch_where_k_is_split)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(split_sizes) / sizeof(*split_sizes); i++) {
        problem p = make_split(&rng, i, 0);
        run_gpu(&g, &p, p.a.M);
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        run_gpu(&g, &p, p.a.M); /* twice */
        kt_out_same(&p.want, &p.got);
        run_in_batches(&g, &p, p.a.M > 200 ? 70 : kt_int(&rng, 17, 65));
        run_in_batches(&g, &p, p.a.M > 200 ? 16 : 1);
        drop(&p);
    }
    ct_close(&g);
}

/* bf16 of many rows has wide tiles, of 64, 128 and 192 rows of x, K in one or in parts: shapes that
 * take each of them, with one tile for a block of threads and with several. Rows 16-byte aligned,
 * as the tiles want them. */
static const int wide_sizes[][3] = {
    /* M, N, K */
    {40, 8500, 136},   {70, 8500, 264},   {130, 8500, 72},    {257, 8500, 392},
    {400, 8500, 136},  {300, 4300, 520},  {64, 9000, 8},      {33, 8456, 640},
    {300, 2112, 1104}, {600, 2112, 2056}, {1100, 2112, 1104}, {570, 1000, 4096}};

static problem make_wide(kt_rng *rng, size_t i, int integers)
{
    problem p = make(rng, wide_sizes[i][0], wide_sizes[i][1], wide_sizes[i][2], TD_BF16, integers);
    p.a.x_stride = p.a.K; /* the rows that make() drew, closer together */
    return p;
}

TEST(bf16_gemm_of_small_integers_equals_the_judge_in_every_wide_tile)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(wide_sizes) / sizeof(*wide_sizes); i++) {
        problem p = make_wide(&rng, i, 1);
        run_ref(&p);
        run_gpu(&g, &p, p.a.M);
        kt_out_same(&p.want, &p.got);
        drop(&p);
    }
    ct_close(&g);
}

TEST(a_row_of_bf16_gemm_has_the_same_bits_through_every_tile)
{
    static const int rows[] = {1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 129};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(wide_sizes) / sizeof(*wide_sizes); i++) {
        problem p = make_wide(&rng, i, 0);
        run_gpu(&g, &p, p.a.M);
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        run_gpu(&g, &p, p.a.M); /* twice */
        kt_out_same(&p.want, &p.got);
        for (size_t k = i % 3; k < sizeof(rows) / sizeof(*rows); k += 3) { /* a third with each */
            run_mixed(&g, &p, rows[k], 2 * rows[k] + 5);
            kt_out_same(&p.want, &p.got);
        }
        drop(&p);
    }
    ct_close(&g);
}

/* e4m3 has tiles of many sizes, chosen by M and N: shapes that take each of them, and sizes around
 * their edges. Rows 16-byte aligned, as the tiles want them. */
static const int tile_sizes[][3] = {
    /* M, N, K */
    {1, 100, 4112},   {7, 2112, 144},  {8, 2200, 272},   {8, 8500, 144},   {9, 700, 528},
    {16, 4300, 144},  {17, 900, 656},  {20, 2112, 272},  {32, 8500, 16},   {33, 9000, 144},
    {64, 8500, 48},   {65, 2112, 64},  {128, 4300, 144}, {129, 2112, 128}, {257, 8500, 16},
    {400, 2112, 400}, {190, 8400, 48}, {256, 8400, 32},  {320, 8400, 16}};

static problem make_aligned(kt_rng *rng, const int *size, int integers)
{
    problem p = make(rng, size[0], size[1], size[2], TD_E4M3, integers);
    p.a.x_stride = p.a.K; /* the rows that make() drew, closer together */
    return p;
}

TEST(e4m3_gemm_of_small_integers_equals_the_judge_in_every_tile)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(tile_sizes) / sizeof(*tile_sizes); i++) {
        problem p = make_aligned(&rng, tile_sizes[i], 1);
        run_ref(&p);
        run_gpu(&g, &p, p.a.M);
        kt_out_same(&p.want, &p.got);
        drop(&p);
    }
    ct_close(&g);
}

TEST(a_row_of_e4m3_gemm_has_the_same_bits_through_every_tile)
{
    static const int sizes[][3] = {
        {130, 2112, 272}, {257, 4300, 144}, {70, 8500, 656}, {190, 8400, 272}, {256, 8400, 400}};
    static const int rows[] = {1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        problem p = make_aligned(&rng, sizes[i], 0);
        run_gpu(&g, &p, p.a.M);
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        run_gpu(&g, &p, p.a.M); /* twice */
        kt_out_same(&p.want, &p.got);
        for (size_t k = i % 3; k < sizeof(rows) / sizeof(*rows); k += 3) /* a third with each */
            run_in_batches(&g, &p, rows[k]);
        run_in_batches(&g, &p, i == 0 ? 1 : kt_int(&rng, 2, 70));
        drop(&p);
    }
    ct_close(&g);
}

/* Few tokens: K's blocks go to several warpgroups (many columns and a long K: of one block of
 * threads), with few columns to the blocks of a cluster, too, as long as the tiles are few. More
 * take another form. */
static const int few_sizes[][3] = {/* M, N, K */
                                   {1, 128, 7168},   {7, 576, 4112},   {9, 2112, 1040},
                                   {20, 1100, 560},  {3, 4300, 2064},  {13, 4300, 1296},
                                   {5, 4300, 4112},  {13, 4300, 4112}, {40, 4300, 1296},
                                   {130, 2112, 528}, {300, 520, 1040}, {200, 128, 2064},
                                   {66, 576, 1040}};

TEST(e4m3_gemm_of_few_rows_equals_the_judge_where_k_is_shared)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(few_sizes) / sizeof(*few_sizes); i++) {
        problem p = make_aligned(&rng, few_sizes[i], 1);
        run_ref(&p);
        run_gpu(&g, &p, p.a.M);
        kt_out_same(&p.want, &p.got);
        run_in_batches(&g, &p, 31);
        drop(&p);
    }
    ct_close(&g);
}

TEST(a_row_of_e4m3_gemm_has_the_same_bits_where_k_is_shared_and_where_not)
{
    static const int rows[] = {1, 8, 16, 32, 70};
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (size_t i = 0; i < sizeof(few_sizes) / sizeof(*few_sizes); i++) {
        problem p = make_aligned(&rng, few_sizes[i], 0);
        run_gpu(&g, &p, p.a.M);
        memcpy(p.want.base, p.got.base, kt_out_bytes(&p.got));
        for (size_t k = p.a.M > 200; k < sizeof(rows) / sizeof(*rows); k++)
            run_in_batches(&g, &p, rows[k]);
        drop(&p);
    }
    ct_close(&g);
}

TEST(gemm_puts_nan_and_infinity_where_the_judge_has_them)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < ct_rounds(45); i++) {
        const td_dtype dtype = (td_dtype)(i % 3);
        problem p =
            make(&rng, kt_int(&rng, 1, 30), kt_int(&rng, 1, 40), kt_int(&rng, 1, 300), dtype, 1);
        size_t m = (size_t)kt_int(&rng, 0, p.a.M - 1), k = (size_t)kt_int(&rng, 0, p.a.K - 1);
        size_t at = m * (size_t)p.a.x_stride + k;
        float v = kt_int(&rng, 0, 1) ? NAN : -INFINITY;
        if (dtype == TD_F32)
            ((float *)p.x)[at] = v;
        else if (dtype == TD_BF16)
            ((td_bf16 *)p.x)[at] = td_f32_to_bf16(v);
        else
            ((uint8_t *)p.x)[at] = 0x7f;
        run_ref(&p);
        run_gpu(&g, &p, p.a.M + 1);
        ct_near(&p.want, &p.got, p.a.y_dtype, 0, 0.0f);
        drop(&p);
    }
    ct_close(&g);
}
