#include "kernels/accept/accept.h"
#include "kernels/numbers.h"
#include "kernels/random.h"
#include "kernels/sample/sample.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

typedef struct {
    td_sample_args a;
    float *logits, *temperature, *top_p;
    int32_t *top_k, *position;
    uint64_t *seed;
    uint8_t *mask;
    kt_out token;
} sample_case;

static sample_case make(int T, int V, int64_t stride)
{
    sample_case c = {.a = {.T = T, .V = V, .stride = stride}};
    c.logits = kt_alloc((size_t)(T * stride) * 4);
    c.temperature = kt_alloc((size_t)T * 4);
    c.top_p = kt_alloc((size_t)T * 4);
    c.top_k = kt_alloc((size_t)T * 4);
    c.position = kt_alloc((size_t)T * 4);
    c.seed = kt_alloc((size_t)T * 8);
    c.mask = kt_alloc((size_t)T * (size_t)td_ceil_div(V, 8));
    c.token = kt_out_new((size_t)T, 4, 4);
    c.a.logits = c.logits;
    c.a.temperature = c.temperature;
    c.a.top_p = c.top_p;
    c.a.top_k = c.top_k;
    c.a.position = c.position;
    c.a.seed = c.seed;
    c.a.forbid_ids_mask = c.mask;
    c.a.token = (int32_t *)(void *)c.token.p;
    for (int t = 0; t < T; t++) {
        c.temperature[t] = 1.0f;
        c.top_p[t] = 1.0f;
    }
    return c;
}

static void drop(sample_case *c)
{
    free(c->logits);
    free(c->temperature);
    free(c->top_p);
    free(c->top_k);
    free(c->position);
    free(c->seed);
    free(c->mask);
    kt_out_free(&c->token);
}

static void fill(kt_rng *rng, sample_case *c)
{
    static const float temperatures[] = {0.0f,   1.0f,  0.7f,     1e-3f, 1e-30f, 1e-42f,
                                         100.0f, 1e30f, INFINITY, NAN,   -1.0f,  2.0f};
    static const float top_ps[] = {1.0f, 0.9f, 0.5f, 1e-6f, 0.999999f, 0.0f, NAN, 0.95f};
    const int V = c->a.V;
    for (int t = 0; t < c->a.T; t++) {
        float *x = c->logits + t * c->a.stride;
        int kind = kt_int(rng, 0, 6);
        for (int i = 0; i < c->a.stride; i++) {
            x[i] = kt_normal(rng) * (kind == 0 ? 0.1f : kind == 1 ? 10.0f : 3.0f);
            if (kind == 2) /* ties */
                x[i] = (float)kt_int(rng, -2, 2);
            if (kind == 3 && kt_int(rng, 0, 3) == 0)
                x[i] = kt_odd(rng);
            if (kind == 4) /* one token only */
                x[i] = i == V / 2 ? -7.0f : -INFINITY;
            if (kind == 5)
                x[i] = kt_int(rng, 0, 1) ? NAN : -INFINITY;
        }
        c->temperature[t] = temperatures[kt_int(rng, 0, 11)];
        c->top_p[t] = top_ps[kt_int(rng, 0, 7)];
        c->top_k[t] = KT_PICK(rng, 0, 0, 1, 2, 10, 50, V - 1, V, V + 1, -1);
        c->seed[t] = kt_u64(rng);
        c->position[t] = (int32_t)(kt_u64(rng) >> 40);
        uint8_t *mask = c->mask + t * td_ceil_div(V, 8);
        int density = kt_int(rng, 0, 3); /* none, few, half, all */
        for (int i = 0; i < V; i++) {
            mask[i / 8] &= (uint8_t) ~(1u << (i % 8));
            if (density == 3 || (density == 2 && kt_int(rng, 0, 1)) ||
                (density == 1 && kt_int(rng, 0, 20) == 0))
                mask[i / 8] |= (uint8_t)(1u << (i % 8));
        }
    }
}

static void check(kt_ways *w, sample_case *c)
{
    const size_t bytes = (size_t)c->a.T * 4;
    int32_t *want = kt_alloc(bytes);
    TD_EQ(TD_OK, td_sample_ref(&c->a, NULL));
    memcpy(want, c->token.p, bytes);
    while (kt_ways_next(w)) {
        kt_out_poison(&c->token);
        TD_EQ(TD_OK, td_sample_cpu(&c->a, w->stream));
        kt_out_check(&c->token);
        TD_MEM(want, c->token.p, bytes);
    }
    free(want);
}

TEST(draws_what_the_reference_draws_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 300; i++) {
        int V = KT_PICK(&rng, 1, 2, 7, 15, 16, 17, 64, 100, 1000, 4099);
        sample_case c = make(kt_int(&rng, 0, 6), V, V + kt_int(&rng, 0, 9));
        fill(&rng, &c);
        if (i % 3 == 0)
            c.a.forbid_ids_mask = NULL;
        check(&w, &c);
        drop(&c);
    }
    sample_case c = make(4, 129280, 129280); /* V3.2's vocabulary */
    fill(&rng, &c);
    for (int t = 0; t < 4; t++)
        c.temperature[t] = 0.8f;
    check(&w, &c);
    drop(&c);
    kt_ways_close(&w);
}

static int32_t draw_one(td_stream *stream, const float *logits, int V, float temperature,
                        uint64_t seed, int32_t position)
{
    const float top_p = 1.0f;
    const int32_t top_k = 0;
    int32_t token = -2;
    td_sample_args a = {logits, &temperature, &top_p, &top_k, &seed, &position,
                        NULL,   &token,       1,      V,      V};
    TD_EQ(TD_OK, td_sample_cpu(&a, stream));
    return token;
}

TEST(greedy_and_masks_follow_the_contract)
{
    kt_ways w = kt_ways_open();
    sample_case c = make(6, 5, 5);
    const float rows[6][5] = {{1, 3, 2, 3, NAN},
                              {1, 3, 2, 3, NAN},
                              {1, 3, 2, 3, 0},
                              {-INFINITY, NAN, -INFINITY, NAN, NAN},
                              {-INFINITY, NAN, -INFINITY, NAN, NAN},
                              {1, 2, 3, 4, 5}};
    memcpy(c.logits, rows, sizeof(rows));
    memset(c.temperature, 0, 6 * 4);
    c.temperature[4] = 1.0f;
    c.mask[1] = 1 << 1;           /* the first of two equal ones */
    c.mask[2] = 1 << 1 | 1 << 3;  /* both */
    c.mask[3] = c.mask[4] = 0x03; /* no number at all: the lowest that is allowed */
    c.mask[5] = 0x1f;
    const int32_t want[6] = {1, 3, 2, 2, 2, -1};
    while (kt_ways_next(&w)) {
        kt_out_poison(&c.token);
        TD_EQ(TD_OK, td_sample_cpu(&c.a, w.stream));
        TD_MEM(want, c.token.p, sizeof(want));
    }
    drop(&c);
    kt_ways_close(&w);
}

TEST(extreme_temperatures_behave)
{
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    const float x[4] = {-1.0f, 4.0f, 3.999f, -INFINITY};
    int seen[4] = {0};
    for (int i = 0; i < 1000; i++) {
        TD_EQ(1, draw_one(stream, x, 4, 1e-38f, 5, i));
        TD_EQ(1, draw_one(stream, x, 4, 1e-5f, 5, i));
        seen[draw_one(stream, x, 4, 1e38f, 5, i)]++;
        TD_NE(3, draw_one(stream, x, 4, INFINITY, 5, i));
    }
    for (int i = 0; i < 3; i++) /* uniform over those that can be drawn: 1000/3, sigma 15 */
        TD_TRUE(abs(seen[i] - 333) < 75);
    TD_EQ(0, seen[3]);
    td_device_close(device);
}

/* p as the contract gives it, in double, by sorting; n kept in *n_kept. */
static void exact_p(const float *x, int V, float temperature, int top_k, float top_p, double *p)
{
    int order[64];
    double total = 0.0, sum = 0.0;
    for (int i = 0; i < V; i++)
        order[i] = i;
    for (int i = 1; i < V; i++) /* insertion sort, stable, descending */
        for (int j = i; j > 0 && x[order[j]] > x[order[j - 1]]; j--) {
            int swap = order[j];
            order[j] = order[j - 1];
            order[j - 1] = swap;
        }
    for (int i = 0; i < V; i++)
        p[i] = 0.0;
    int kept = top_k > 0 && top_k < V ? top_k : V;
    for (int i = 0; i < kept; i++)
        total += p[order[i]] = exp(((double)x[order[i]] - x[order[0]]) / temperature);
    int n = 0;
    while (n < kept && sum < top_p * total * (1.0 - 1e-12))
        sum += p[order[n++]];
    for (int i = n; i < kept; i++)
        p[order[i]] = 0.0;
    for (int i = 0; i < V; i++)
        p[i] /= sum;
}

/* Chi-square of `n` draws against p. Cells with p = 0 must be empty. */
static double chi_square(const int *seen, const double *p, int V, int n, int *degrees)
{
    double chi = 0.0;
    *degrees = -1;
    for (int i = 0; i < V; i++) {
        if (p[i] == 0.0) {
            TD_EQ(0, seen[i]);
            continue;
        }
        chi += (seen[i] - n * p[i]) * (seen[i] - n * p[i]) / (n * p[i]);
        ++*degrees;
    }
    return chi;
}

/* The 99.99 % point of chi-square (Wilson and Hilferty). Seeds are fixed: no test fails by chance.
 */
static double chi_limit(int degrees)
{
    double v = 2.0 / (9.0 * degrees), z = 1.0 - v + 3.72 * sqrt(v);
    return degrees * z * z * z;
}

TEST(draws_are_distributed_as_p)
{
    enum { V = 40, N = 40000 };
    static const struct {
        float temperature, top_p;
        int32_t top_k;
    } settings[] = {
        {1.0f, 1.0f, 0}, {0.6f, 1.0f, 0}, {1.5f, 1.0f, 10}, {1.0f, 0.85f, 0}, {1.2f, 0.7f, 20}};
    td_device *device = kt_open(2);
    kt_rng rng = {42};
    float x[V];
    kt_fill_f32(&rng, x, V, 1.2f);
    for (size_t s = 0; s < sizeof(settings) / sizeof(settings[0]); s++) {
        sample_case c = make(N, V, 0);
        double p[V];
        int seen[V] = {0}, degrees;
        free(c.logits);
        c.logits = kt_alloc((size_t)N * V * 4);
        c.a.logits = c.logits;
        c.a.stride = V;
        for (int t = 0; t < N; t++) {
            memcpy(c.logits + t * V, x, sizeof(x));
            c.temperature[t] = settings[s].temperature;
            c.top_p[t] = settings[s].top_p;
            c.top_k[t] = settings[s].top_k;
            c.seed[t] = 1000 + (uint64_t)t / 500; /* many positions of many requests */
            c.position[t] = t % 500;
        }
        TD_EQ(TD_OK, td_sample_cpu(&c.a, td_device_stream(device)));
        for (int t = 0; t < N; t++)
            seen[c.a.token[t]]++;
        exact_p(x, V, settings[s].temperature, settings[s].top_k, settings[s].top_p, p);
        double chi = chi_square(seen, p, V, N, &degrees);
        printf("temperature %g top-p %g top-k %d: chi-square %.1f of %d\n", settings[s].temperature,
               settings[s].top_p, settings[s].top_k, chi, degrees);
        TD_TRUE(chi < chi_limit(degrees));
        drop(&c);
    }
    td_device_close(device);
}

/* ---- speculation: a model whose next-token logits depend on the last token alone ---- */

enum { WORDS = 8, STEPS = 6, DRAFTS = 3 };

static void generate_plainly(td_stream *stream, const float model[WORDS][WORDS], uint64_t seed,
                             int32_t *out)
{
    int32_t last = 0;
    for (int i = 0; i < STEPS; i++)
        last = out[i] = draw_one(stream, model[last], WORDS, 1.0f, seed, 1 + i);
}

/* Rounds of DRAFTS drafts, rows verified in one call, accepted by td_accept. Returns the number of
 * accepted drafts. */
static int generate_with_drafts(td_stream *stream, const float model[WORDS][WORDS],
                                const float draft_model[WORDS][WORDS], uint64_t seed, int32_t *out)
{
    enum { N = DRAFTS + 1 };
    int n = 0, accepted = 0;
    int32_t last = 0;
    sample_case c = make(N, WORDS, WORDS);
    c.a.forbid_ids_mask = NULL;
    while (n < STEPS) {
        int32_t draft[DRAFTS], n_drafts = DRAFTS, n_accepted, row = last;
        for (int j = 0; j < N; j++) {
            memcpy(c.logits + j * WORDS, model[row], sizeof(model[row]));
            c.seed[j] = seed;
            c.position[j] = 1 + n + j;
            if (j < DRAFTS) /* some draft or other: greedy from a worse model */
                row = draft[j] = draw_one(stream, draft_model[row], WORDS, 0.0f, 0, 0);
        }
        TD_EQ(TD_OK, td_sample_cpu(&c.a, stream));
        td_accept_args accept = {c.a.token, draft, &n_drafts, &n_accepted, 1, N};
        TD_EQ(TD_OK, td_accept_cpu(&accept, stream));
        accepted += n_accepted;
        for (int j = 0; j <= n_accepted && n < STEPS; j++)
            last = out[n++] = c.a.token[j];
    }
    drop(&c);
    return accepted;
}

/* The same tokens, and so the same distribution; which is the model's, by chi-square over the
 * STEPS-th token. */
TEST(drafts_change_neither_tokens_nor_distribution)
{
    enum { N = 4000 };
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    kt_rng rng = {7};
    float model[WORDS][WORDS], draft_model[WORDS][WORDS];
    double p[WORDS] = {1.0}, row[WORDS];
    int seen[WORDS] = {0}, degrees, accepted = 0;
    for (int i = 0; i < WORDS; i++) {
        kt_fill_f32(&rng, model[i], WORDS, 1.5f);
        kt_fill_f32(&rng, draft_model[i], WORDS, 0.5f);
        for (int j = 0; j < WORDS; j++)
            draft_model[i][j] += model[i][j];
    }
    for (uint64_t seed = 0; seed < N; seed++) {
        int32_t plain[STEPS], drafted[STEPS];
        generate_plainly(stream, model, seed, plain);
        accepted += generate_with_drafts(stream, model, draft_model, seed, drafted);
        TD_MEM(plain, drafted, sizeof(plain));
        seen[drafted[STEPS - 1]]++;
    }
    for (int step = 0; step < STEPS; step++) { /* p[0] = 1: every text starts at token 0 */
        double next[WORDS] = {0};
        for (int i = 0; i < WORDS; i++) {
            exact_p(model[i], WORDS, 1.0f, 0, 1.0f, row);
            for (int j = 0; j < WORDS; j++)
                next[j] += p[i] * row[j];
        }
        memcpy(p, next, sizeof(p));
    }
    double chi = chi_square(seen, p, WORDS, N, &degrees);
    printf("chi-square %.1f of %d, %d drafts accepted\n", chi, degrees, accepted);
    TD_TRUE(chi < chi_limit(degrees));
    TD_TRUE(accepted > N);
    td_device_close(device);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    sample_case c = make(2, 16, 16);
    td_sample_args bad[] = {c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a, c.a};
    bad[0].T = -1;
    bad[1].V = 0;
    bad[2].V = (1 << 22) + 1;
    bad[3].logits = NULL;
    bad[4].temperature = NULL;
    bad[5].top_p = NULL;
    bad[6].top_k = NULL;
    bad[7].seed = NULL;
    bad[8].position = NULL;
    bad[9].token = NULL;
    bad[10].stride = 15;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_BAD_SHAPE, td_sample_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(kt_poison(KT_GUARD), c.token.p[0]);
    drop(&c);
    td_device_close(device);
}
