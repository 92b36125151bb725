/* A prompt's numbers depend on the prompt alone: not on the batch it is computed in, on chunks, on
 * how tokens are split over ranks, nor on the engine's tiles. To the bit. */
#include "model/sampling.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/harness.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

#include <math.h>
#include <stdatomic.h>

TD_TEST_MAIN

#define N_PROMPTS 5
#define N_PAGES 40

static const int32_t lengths[N_PROMPTS] = {1, 63, 130, 7, 65};

typedef struct {
    int32_t *tokens;
    uint32_t pages[4], n_pages;
    float *logits, *mtp_logits; /* [len, V] */
    float hidden[256];          /* act, as bytes */
    int32_t first;
} prompt;

static const char *make(int fp8)
{
    const char *dir = td_scratch_dir();
    td_made_model m = td_made_model_odd();
    m.fp8 = fp8;
    m.moe_intermediate = 512;
    td_make_model(dir, &m);
    return dir;
}

static td_harness_options options(int precise, uint32_t n_ranks)
{
    return (td_harness_options){.precise = precise,
                                .kv = precise ? TD_KV_F32 : TD_KV_FP8,
                                .n_ranks = n_ranks,
                                .max_tokens = 400,
                                .max_seqs = 8,
                                .n_pages = N_PAGES};
}

/* Prompt i, its pages starting at `page`, going down. */
static prompt make_prompt(const td_harness *h, int i, uint32_t page)
{
    prompt p = {.n_pages = (uint32_t)(lengths[i] + 63) / 64, .first = -2};
    uint64_t seed = (uint64_t)i + 100;
    size_t n = (size_t)lengths[i], v = (size_t)h->config.vocab_size;
    p.tokens = calloc(n, sizeof(*p.tokens));
    for (size_t k = 0; k < n; k++)
        p.tokens[k] = (int32_t)(td_random(&seed) % v);
    for (uint32_t k = 0; k < p.n_pages; k++)
        p.pages[k] = page - k;
    p.logits = calloc(n * v, sizeof(float));
    p.mtp_logits = calloc(n * v, sizeof(float));
    return p;
}

static void free_prompt(prompt *p)
{
    free(p->tokens);
    free(p->logits);
    free(p->mtp_logits);
}

static td_prefill_seq whole(prompt *p, int i, const td_sampling *greedy)
{
    return (td_prefill_seq){.n_tokens = lengths[i],
                            .tokens = p->tokens,
                            .next_token = -1,
                            .pages = p->pages,
                            .n_pages = p->n_pages,
                            .sampling = greedy,
                            .hidden_out = p->hidden};
}

static void run_alone(td_harness *h, prompt *p, int i, int32_t chunk)
{
    td_sampling greedy;
    td_sampling_init(&greedy);
    td_prefill_seq seq = whole(p, i, &greedy);
    td_prefill_dump dump = {.logits = p->logits, .mtp_logits = p->mtp_logits};
    p->first = td_harness_prompt(h, &seq, chunk, &dump);
}

static void run_together(td_harness *h, prompt *p, int n)
{
    td_sampling greedy;
    td_prefill_seq seqs[N_PROMPTS];
    int32_t first[N_PROMPTS];
    size_t v = (size_t)h->config.vocab_size, at = 0;
    float *logits = calloc(400 * v, sizeof(float)), *mtp = calloc(400 * v, sizeof(float));
    td_prefill_dump dump = {.logits = logits, .mtp_logits = mtp};
    td_sampling_init(&greedy);
    for (int i = 0; i < n; i++)
        seqs[i] = whole(&p[i], i, &greedy);
    td_prefill_batch batch = {.seqs = seqs, .n_seqs = (uint32_t)n, .dump = &dump};
    TD_EQ(TD_OK, td_harness_run(h, &batch, first));
    for (int i = 0; i < n; i++) {
        size_t rows = (size_t)lengths[i];
        memcpy(p[i].logits, logits + at * v, rows * v * sizeof(float));
        memcpy(p[i].mtp_logits, mtp + at * v, rows * v * sizeof(float));
        p[i].first = first[i];
        at += rows;
    }
    free(logits);
    free(mtp);
}

/* Same logits, drafts' logits, first token, hidden state, and pages on every rank. */
static void check_same(const td_harness *ha, const prompt *a, const td_harness *hb, const prompt *b,
                       int i)
{
    size_t v = (size_t)ha->config.vocab_size, n = (size_t)lengths[i];
    TD_MEM(a->logits, b->logits, n * v * sizeof(float));
    TD_MEM(a->mtp_logits, b->mtp_logits, (n - 1) * v * sizeof(float));
    TD_MEM(a->hidden, b->hidden, td_model_hidden_bytes(&ha->config, ha->o.precise));
    TD_EQ(a->first, b->first);
    for (uint32_t k = 0; k < a->n_pages; k++)
        for (uint32_t ra = 0; ra < ha->o.n_ranks; ra++)
            for (uint32_t rb = 0; rb < hb->o.n_ranks; rb++)
                TD_MEM(td_kv_slab_page(&ha->ranks[ra].slab, a->pages[k]),
                       td_kv_slab_page(&hb->ranks[rb].slab, b->pages[k]), ha->layout.page_stride);
}

/* Everything alone and whole with oa, everything in one batch with ob. */
static void alone_equals_together(const char *dir, const td_harness_options *oa,
                                  const td_harness_options *ob)
{
    td_harness ha, hb;
    prompt a[N_PROMPTS], b[N_PROMPTS];
    td_harness_open(&ha, dir, oa);
    td_harness_open(&hb, dir, ob);
    uint32_t page = N_PAGES;
    for (int i = 0; i < N_PROMPTS; i++) {
        a[i] = make_prompt(&ha, i, (uint32_t)i * 4 + 5);
        b[i] = make_prompt(&hb, i, --page);
        page -= b[i].n_pages;
        run_alone(&ha, &a[i], i, 0);
    }
    run_together(&hb, b, N_PROMPTS);
    for (int i = 0; i < N_PROMPTS; i++) {
        check_same(&ha, &a[i], &hb, &b[i], i);
        free_prompt(&a[i]);
        free_prompt(&b[i]);
    }
    td_harness_close(&ha);
    td_harness_close(&hb);
}

TEST(a_batch_of_prompts_is_each_of_them_alone_on_one_rank)
{
    for (int fp8 = TD_SANITIZED; fp8 < 2; fp8++) {
        const char *dir = make(fp8);
        for (int precise = 0; precise < 2; precise++) {
            td_harness_options o = options(precise, 1);
            alone_equals_together(dir, &o, &o);
        }
        td_harness_options o = options(0, 1);
        o.kv = TD_KV_BF16;
        alone_equals_together(dir, &o, &o);
    }
}

TEST(a_batch_of_prompts_is_each_of_them_alone_on_three_ranks_whatever_the_split)
{
    const char *dir = make(1);
    for (int moe = 0; moe < 2; moe++)
        for (int precise = 0; precise < 2; precise++) {
            if (TD_SANITIZED && precise == moe) /* two of the four pairs then */
                continue;
            td_harness_options a = options(precise, 3), b = a;
            a.moe = b.moe = moe == 0 ? TD_MOE_FUSED : TD_MOE_EP;
            b.split = TD_CP_IN_SEQ;
            alone_equals_together(dir, &a, &b);
            if (!TD_SANITIZED)
                alone_equals_together(dir, &b, &a);
        }
}

TEST(tiles_and_scratch_sizes_do_not_show)
{
    const char *dir = make(1);
    static const uint32_t tiles[] = {1, 7, 64};
    for (size_t i = TD_SANITIZED; i < 3; i++) {
        td_harness_options a = options(0, 1), b = a;
        b.tile = tiles[i];
        b.index_scratch_bytes = i == 0 ? 1 : 20000;
        alone_equals_together(dir, &a, &b);
    }
}

static void chunked_equals_whole(const char *dir, const td_harness_options *o)
{
    td_harness ha, hb;
    td_harness_open(&ha, dir, o);
    td_harness_open(&hb, dir, o);
    for (int i = 0; i < N_PROMPTS; i++) {
        prompt a = make_prompt(&ha, i, 20), b = make_prompt(&hb, i, 9);
        for (uint32_t k = 0; k < a.n_pages; k++)
            for (uint32_t r = 0; r < o->n_ranks; r++) {
                memset(td_kv_slab_page(&ha.ranks[r].slab, a.pages[k]), 0, ha.layout.page_stride);
                memset(td_kv_slab_page(&hb.ranks[r].slab, b.pages[k]), 0, hb.layout.page_stride);
            }
        run_alone(&ha, &a, i, 0);
        run_alone(&hb, &b, i, i % 2 == 0 ? 64 : 5); /* any chunk size is right, 64s are usual */
        check_same(&ha, &a, &hb, &b, i);
        free_prompt(&a);
        free_prompt(&b);
    }
    td_harness_close(&ha);
    td_harness_close(&hb);
}

TEST(a_prompt_in_chunks_is_the_whole_prompt)
{
    const char *dir = make(1);
    for (int precise = TD_SANITIZED; precise < 2; precise++) {
        td_harness_options o = options(precise, 1);
        chunked_equals_whole(dir, &o);
        o = options(precise, 2);
        o.split = TD_CP_IN_SEQ;
        if (!TD_SANITIZED)
            chunked_equals_whole(dir, &o);
        o.split = TD_CP_ROUND_ROBIN;
        o.moe = TD_MOE_EP;
        chunked_equals_whole(dir, &o);
    }
}

TEST(chunks_of_several_prompts_share_a_step)
{
    td_harness ha, hb;
    td_harness_options o = options(0, 2);
    const char *dir = make(1);
    td_harness_open(&ha, dir, &o);
    td_harness_open(&hb, dir, &o);
    prompt a = make_prompt(&ha, 2, 20), b = make_prompt(&hb, 2, 20), c = make_prompt(&hb, 1, 30);
    td_sampling greedy;
    td_sampling_init(&greedy);
    run_alone(&ha, &a, 2, 0);
    /* 64 tokens of b with all of c, then the other 66 of b. */
    size_t v = (size_t)hb.config.vocab_size;
    float *logits = calloc(200 * v, sizeof(float)), *mtp = calloc(200 * v, sizeof(float));
    td_prefill_seq seqs[2] = {whole(&b, 2, &greedy), whole(&c, 1, NULL)};
    td_prefill_dump dump = {.logits = logits, .mtp_logits = mtp};
    td_prefill_batch batch = {.seqs = seqs, .n_seqs = 2, .dump = &dump};
    int32_t first[2];
    seqs[0].n_tokens = 64;
    seqs[0].next_token = b.tokens[64];
    TD_EQ(TD_OK, td_harness_run(&hb, &batch, first));
    TD_EQ(-1, first[0]); /* the prompt goes on */
    TD_EQ(-1, first[1]); /* nobody asked for a token */
    memcpy(b.logits, logits, 64 * v * sizeof(float));
    memcpy(b.mtp_logits, mtp, 64 * v * sizeof(float));
    seqs[0].start = 64;
    seqs[0].n_tokens = 66;
    seqs[0].tokens = b.tokens + 64;
    seqs[0].next_token = -1;
    batch.n_seqs = 1;
    TD_EQ(TD_OK, td_harness_run(&hb, &batch, first));
    memcpy(b.logits + 64 * v, logits, 66 * v * sizeof(float));
    memcpy(b.mtp_logits + 64 * v, mtp, 66 * v * sizeof(float));
    b.first = first[0];
    check_same(&ha, &a, &hb, &b, 2);
    free(logits);
    free(mtp);
    free_prompt(&a);
    free_prompt(&b);
    free_prompt(&c);
    td_harness_close(&ha);
    td_harness_close(&hb);
}

static void count_layer(void *arg, uint32_t layer)
{
    uint32_t *next = arg; /* of one rank: the harness runs rank 0 on the test's thread */
    TD_EQ(*next, layer);
    ++*next;
}

TEST(layers_are_announced_in_order_the_draft_layer_last)
{
    td_harness h;
    td_harness_options o = options(0, 1);
    uint32_t next = 0;
    td_harness_open(&h, make(0), &o);
    prompt p = make_prompt(&h, 1, 20);
    td_prefill_seq seq = whole(&p, 1, NULL);
    td_prefill_batch batch = {
        .seqs = &seq, .n_seqs = 1, .on_layer_done = count_layer, .hook_arg = &next};
    TD_EQ(TD_OK, td_harness_run(&h, &batch, &p.first));
    TD_EQ(3, next); /* two layers and the draft layer */
    free_prompt(&p);
    td_harness_close(&h);
}

TEST(the_first_token_is_the_largest_logit_that_is_not_forbidden)
{
    td_harness h;
    td_harness_options o = options(0, 2);
    td_sampling s;
    td_sampling_init(&s);
    td_harness_open(&h, make(1), &o);
    prompt p = make_prompt(&h, 2, 20);
    size_t v = (size_t)h.config.vocab_size, last = (size_t)lengths[2] - 1, best = 0, second = 0;
    run_alone(&h, &p, 2, 0);
    const float *row = p.logits + last * v;
    for (size_t i = 1; i < v; i++)
        best = row[i] > row[best] ? i : best;
    second = best == 0;
    for (size_t i = 0; i < v; i++)
        second = i != best && row[i] > row[second] ? i : second;
    TD_EQ(best, p.first);
    s.min_tokens = 1;
    s.n_forbid = 1;
    s.forbid[0] = (int32_t)best;
    td_prefill_seq seq = whole(&p, 2, &s);
    td_prefill_batch batch = {.seqs = &seq, .n_seqs = 1};
    TD_EQ(TD_OK, td_harness_run(&h, &batch, &p.first));
    TD_EQ(second, p.first);
    s.min_tokens = 0;
    TD_EQ(TD_OK, td_harness_run(&h, &batch, &p.first));
    TD_EQ(best, p.first);
    free_prompt(&p);
    td_harness_close(&h);
}

static void refuse(td_harness *h, td_prefill_seq seq, const char *text)
{
    int32_t first;
    td_prefill_batch batch = {.seqs = &seq, .n_seqs = 1};
    TD_EQ(TD_INVALID, td_harness_run(h, &batch, &first));
    if (strstr(h->err.text, text) == NULL)
        fprintf(stderr, "'%s', not '%s'\n", h->err.text, text);
    TD_TRUE(strstr(h->err.text, text) != NULL);
}

TEST(refuses_batches_that_are_not_as_described_and_goes_on)
{
    td_harness h;
    td_harness_options o = options(0, 1);
    td_sampling bad;
    td_sampling_init(&bad);
    bad.temperature = NAN;
    td_harness_open(&h, make(0), &o);
    prompt p = make_prompt(&h, 2, 20);
    td_prefill_seq good = whole(&p, 2, NULL), s = good;
    s.n_tokens = 0;
    refuse(&h, s, "0 tokens");
    s = good;
    s.start = -1;
    refuse(&h, s, "position -1");
    s = good;
    s.start = 1000;
    refuse(&h, s, "a context has 1024");
    s = good;
    s.n_pages = 2;
    refuse(&h, s, "2 pages, 3 are needed");
    s = good;
    p.pages[1] = N_PAGES;
    refuse(&h, s, "page 40 of a pool of 40");
    p.pages[1] = 19;
    p.tokens[5] = 203;
    refuse(&h, s, "token id 203 at position 5");
    p.tokens[5] = -1;
    refuse(&h, s, "token id -1");
    p.tokens[5] = 0;
    s.next_token = 203;
    refuse(&h, s, "next token id 203");
    s = good;
    s.sampling = &bad;
    refuse(&h, s, "temperature");
    td_prefill_seq many[9];
    for (int i = 0; i < 9; i++)
        many[i] = good;
    int32_t first[9];
    td_prefill_batch batch = {.seqs = many, .n_seqs = 9};
    TD_EQ(TD_INVALID, td_harness_run(&h, &batch, first));
    batch.n_seqs = 4; /* 520 tokens */
    TD_EQ(TD_INVALID, td_harness_run(&h, &batch, first));
    batch.n_seqs = 0;
    TD_EQ(TD_INVALID, td_harness_run(&h, &batch, first));
    batch.n_seqs = 1;
    TD_EQ(TD_OK, td_harness_run(&h, &batch, first));
    free_prompt(&p);
    td_harness_close(&h);
}

static atomic_int calls_left;

static td_status failing_rmsnorm(const td_rmsnorm_args *a, td_stream *stream)
{
    return atomic_fetch_sub(&calls_left, 1) == 1 ? TD_BAD_SHAPE : td_rmsnorm_cpu(a, stream);
}

TEST(an_operation_that_fails_on_one_rank_ends_the_step_on_all)
{
    td_ops ops = *td_ops_cpu();
    ops.rmsnorm = failing_rmsnorm;
    const char *dir = make(1);
    for (int at = 1; at < 20; at += 6) {
        td_harness h;
        td_harness_options o = options(0, 3);
        o.ops = &ops;
        td_harness_open(&h, dir, &o);
        prompt p = make_prompt(&h, 2, 20);
        td_prefill_seq seq = whole(&p, 2, NULL);
        td_prefill_batch batch = {.seqs = &seq, .n_seqs = 1};
        atomic_store(&calls_left, at);
        TD_EQ(TD_BAD_SHAPE, td_harness_run(&h, &batch, &p.first));
        TD_TRUE(strstr(h.err.text, "operation rmsnorm") != NULL);
        free_prompt(&p);
        td_harness_close(&h);
    }
}

TEST(creation_refuses_what_does_not_fit_together)
{
    td_harness h;
    td_prefill *prefill = NULL;
    td_err err;
    td_kv_layout other;
    td_harness_options o = options(0, 1);
    td_harness_open(&h, make(0), &o);
    td_engine_config good = td_harness_engine(&h, 0), c = good;
    TD_EQ(TD_OK, td_kv_layout_init(&other, TD_KV_F32, 2, 1, 128, 16, 128, NULL));
    c.layout = &other;
    TD_EQ(TD_CONFIG, td_prefill_create(&c, 64, 1, &prefill, &err));
    TD_TRUE(strstr(err.text, "quantised mode with an f32 cache") != NULL);
    TD_EQ(TD_OK, td_kv_layout_init(&other, TD_KV_FP8, 3, 1, 128, 16, 128, NULL));
    TD_EQ(TD_CONFIG, td_prefill_create(&c, 64, 1, &prefill, &err));
    TD_TRUE(strstr(err.text, "not this model's") != NULL);
    c = good;
    c.max_context = 1025;
    TD_EQ(TD_CONFIG, td_prefill_create(&c, 64, 1, &prefill, &err));
    c = good;
    c.n_pages = 0;
    TD_EQ(TD_CONFIG, td_prefill_create(&c, 64, 1, &prefill, &err));
    TD_EQ(TD_CONFIG, td_prefill_create(&good, 0, 1, &prefill, &err));
    TD_EQ(TD_CONFIG, td_prefill_create(&good, 64, 0, &prefill, &err));
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_prefill_create(&good, 64, 2, &prefill, &err),
                        td_prefill_destroy(prefill));
    td_prefill_destroy(NULL);
    td_harness_close(&h);
}
