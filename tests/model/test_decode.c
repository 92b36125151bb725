/* A sequence's tokens depend neither on the others of its batch, nor on when they come and go, nor
 * on how many drafts are tried. */
#include "tests/common/base/td_hard.h"
#include "tests/model/harness.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

#include <math.h>

TD_TEST_MAIN

#define MAX_SEQS 6
#define MAX_NEW 40
#define N_PAGES 64
#define PAGES_EACH 4

static const char *make(int fp8)
{
    const char *dir = td_scratch_dir();
    td_made_model m = td_made_model_odd();
    m.fp8 = fp8;
    td_make_model(dir, &m);
    return dir;
}

static void open_engine(td_harness *h, const char *dir, int precise, const td_ops *ops)
{
    td_harness_options o = {.precise = precise,
                            .kv = precise ? TD_KV_F32 : TD_KV_FP8,
                            .n_ranks = 1,
                            .max_tokens = 300,
                            .max_seqs = 1,
                            .n_pages = N_PAGES,
                            .ops = ops};
    td_harness_open(h, dir, &o);
}

typedef struct { /* a request, as far as prefill brings it */
    int32_t prompt[220], n_prompt;
    uint32_t pages[PAGES_EACH];
    float hidden[256];
    td_decode_seq seq;
    int32_t tokens[MAX_NEW + 1]; /* first_token and what follows */
    int n_tokens;
} request;

/* Request i: its own prompt and pages, a third greedy, the others sampled. */
static void prepare(td_harness *h, request *r, int i, int max_new)
{
    uint64_t seed = (uint64_t)i * 31 + 7;
    memset(r, 0, sizeof(*r));
    r->n_prompt = 3 + (i * 47) % 180;
    for (int k = 0; k < r->n_prompt; k++)
        r->prompt[k] = (int32_t)(td_random(&seed) % (uint64_t)h->config.vocab_size);
    for (int k = 0; k < PAGES_EACH; k++)
        r->pages[k] = (uint32_t)(i * PAGES_EACH + (k * 3) % PAGES_EACH);
    td_sampling_init(&r->seq.sampling);
    if (i % 3 != 0) {
        r->seq.sampling.temperature = 0.8f;
        r->seq.sampling.top_p = i % 2 == 0 ? 0.9f : 1.0f;
        r->seq.sampling.top_k = i % 5;
        r->seq.sampling.seed = (uint64_t)i * 1234567;
    }
    td_prefill_seq seq = {.n_tokens = r->n_prompt,
                          .tokens = r->prompt,
                          .next_token = -1,
                          .pages = r->pages,
                          .n_pages = PAGES_EACH,
                          .sampling = &r->seq.sampling,
                          .hidden_out = r->hidden};
    r->seq.prompt_len = r->n_prompt;
    r->seq.first_token = td_harness_prompt(h, &seq, 0, NULL);
    r->seq.hidden = r->hidden;
    r->seq.pages = r->pages;
    r->seq.n_pages = PAGES_EACH;
    r->seq.max_new_tokens = max_new;
    r->tokens[r->n_tokens++] = r->seq.first_token;
}

static td_decode *open_decode(td_harness *h, uint32_t max_drafts, uint32_t pad)
{
    td_decode *d = NULL;
    td_err err = {0};
    td_engine_config config = td_harness_engine(h, 0);
    td_status st = td_decode_create(&config, MAX_SEQS, max_drafts, pad, &d, &err);
    if (st != TD_OK)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return d;
}

static void take_tokens(request *r, const td_decode_result *out)
{
    TD_TRUE(out->n_tokens >= 1 && out->n_tokens == out->n_accepted + 1);
    TD_TRUE(out->n_accepted <= out->n_drafted);
    TD_TRUE(r->n_tokens + (int)out->n_tokens <= r->seq.max_new_tokens + 1);
    for (uint32_t k = 0; k < out->n_tokens; k++)
        r->tokens[r->n_tokens++] = out->tokens[k];
    TD_EQ(r->n_tokens == r->seq.max_new_tokens + 1, out->done);
}

/* Request i alone, with k drafts. */
static request run_alone(td_harness *h, int i, uint32_t k, int max_new)
{
    request r;
    uint32_t n = 0;
    td_decode_result out[MAX_SEQS];
    prepare(h, &r, i, max_new);
    td_decode *d = open_decode(h, k, 0);
    r.seq.max_drafts = k;
    TD_EQ(TD_OK, td_decode_join(d, 2, &r.seq, NULL));
    do {
        TD_EQ(TD_OK, td_decode_run(d, out, &n, NULL));
        if (n > 0) {
            TD_EQ(1, n);
            TD_EQ(2, out[0].slot);
            take_tokens(&r, &out[0]);
        }
    } while (n > 0);
    TD_EQ(0, td_decode_active(d));
    TD_EQ(max_new + 1, r.n_tokens);
    td_decode_destroy(d);
    return r;
}

/* All requests, joining two steps apart, in slots from the back, leaving when they are done. */
static void run_crowd(td_harness *h, request *r, uint32_t k, uint32_t pad)
{
    td_decode_result out[MAX_SEQS];
    uint32_t n = 0;
    int joined = 0, live = 0;
    td_decode *d = open_decode(h, k, pad);
    for (int i = 0; i < MAX_SEQS; i++)
        prepare(h, &r[i], i, 8 + 5 * i);
    for (int step = 0; joined < MAX_SEQS || live > 0; step++) {
        if (step % 2 == 0 && joined < MAX_SEQS) {
            r[joined].seq.max_drafts = joined == 3 && k > 0 ? k - 1 : k;
            TD_EQ(TD_OK,
                  td_decode_join(d, (uint32_t)(MAX_SEQS - 1 - joined), &r[joined].seq, NULL));
            joined++;
            live++;
        }
        TD_EQ(TD_OK, td_decode_run(d, out, &n, NULL));
        TD_EQ(live, n);
        for (uint32_t j = 0; j < n; j++) {
            request *of = &r[MAX_SEQS - 1 - (int)out[j].slot];
            take_tokens(of, &out[j]);
            if (out[j].done) {
                td_decode_leave(d, out[j].slot);
                live--;
            }
        }
    }
    td_decode_destroy(d);
}

static void crowd_equals_alone(int fp8, int precise)
{
    td_harness h;
    request alone[MAX_SEQS], crowd[MAX_SEQS];
    open_engine(&h, make(fp8), precise, NULL);
    for (int i = 0; i < MAX_SEQS; i++)
        alone[i] = run_alone(&h, i, 0, 8 + 5 * i);
    for (uint32_t k = 0; k <= 4; k++) {
        run_crowd(&h, crowd, k, k % 2 == 1 ? 4 : 0);
        for (int i = 0; i < MAX_SEQS; i++)
            TD_MEM(alone[i].tokens, crowd[i].tokens, (size_t)alone[i].n_tokens * sizeof(int32_t));
    }
    td_harness_close(&h);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_quantised)
{
    crowd_equals_alone(1, 0);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_precise)
{
    crowd_equals_alone(0, 1);
}

/* An oracle instead of the draft layer's choice: random weights hardly ever accept a draft. Every
 * third proposal is wrong. What the draft layer itself would have proposed first is kept. */
static struct {
    int32_t truth[MAX_NEW + 1];
    int next, calls, own_first;
    uint64_t seed;
} oracle;

static td_status oracle_argmax(const td_argmax_args *a, td_stream *stream)
{
    td_status st = td_argmax_cpu(a, stream);
    if (oracle.calls++ == 0)
        oracle.own_first = a->ids[0];
    int right = td_random(&oracle.seed) % 3 != 0 && oracle.next <= MAX_NEW;
    a->ids[0] = right ? oracle.truth[oracle.next] : (a->ids[0] + 1) % a->V;
    oracle.next++;
    return st;
}

static size_t largest(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

/* Logits and draft logits of prompt and continuation in one prefill. */
static void prefill_all(td_harness *h, const request *r, float *logits, float *mtp)
{
    int32_t text[300], n = r->n_prompt;
    memcpy(text, r->prompt, (size_t)n * sizeof(*text));
    memcpy(text + n, r->tokens, (size_t)r->n_tokens * sizeof(*text));
    uint32_t pages[8];
    for (uint32_t i = 0; i < 8; i++)
        pages[i] = 40 + i;
    td_prefill_seq seq = {.n_tokens = n + r->n_tokens,
                          .tokens = text,
                          .next_token = -1,
                          .pages = pages,
                          .n_pages = 8};
    td_prefill_dump dump = {.logits = logits, .mtp_logits = mtp};
    td_harness_prompt(h, &seq, 0, &dump);
}

static void speculation_is_exact(int fp8, int precise)
{
    td_harness h;
    td_ops ops = *td_ops_cpu();
    ops.argmax = oracle_argmax;
    open_engine(&h, make(fp8), precise, &ops);
    size_t v = (size_t)h.config.vocab_size, accepted = 0;
    float *logits = calloc(300 * v, sizeof(float)), *mtp = calloc(300 * v, sizeof(float));
    float *rows = calloc(8 * v, sizeof(float));
    request plain = run_alone(&h, 3, 0, MAX_NEW), r;
    memcpy(oracle.truth, plain.tokens, sizeof(plain.tokens));
    prefill_all(&h, &plain, logits, mtp);
    for (uint32_t k = 1; k <= 4; k++) {
        td_decode_result out;
        uint32_t n = 1;
        prepare(&h, &r, 3, MAX_NEW);
        r.seq.max_drafts = k;
        td_decode *d = open_decode(&h, k, 0);
        TD_EQ(TD_OK, td_decode_join(d, 0, &r.seq, NULL));
        for (;;) {
            size_t root = (size_t)(r.n_prompt + r.n_tokens - 1); /* position of the root token */
            oracle.calls = 0;
            oracle.next = r.n_tokens;
            TD_EQ(TD_OK, td_decode_run(d, &out, &n, NULL));
            if (n == 0)
                break;
            /* decode of a position gives the bits of its prefill */
            TD_EQ(TD_OK, td_decode_read_logits(d, 0, rows, NULL));
            TD_MEM(logits + root * v, rows, out.n_tokens * v * sizeof(float));
            if (oracle.calls > 0)
                TD_EQ(largest(mtp + (root - 1) * v, v), oracle.own_first);
            take_tokens(&r, &out);
            accepted += out.n_accepted;
        }
        TD_MEM(plain.tokens, r.tokens, sizeof(plain.tokens));
        td_decode_destroy(d);
    }
    TD_TRUE(accepted > 20);
    free(logits);
    free(mtp);
    free(rows);
    td_harness_close(&h);
}

TEST(accepted_drafts_leave_the_bits_of_a_prefill_quantised)
{
    speculation_is_exact(1, 0);
}

TEST(accepted_drafts_leave_the_bits_of_a_prefill_precise)
{
    speculation_is_exact(1, 1);
}

TEST(accepted_drafts_leave_the_bits_of_a_prefill_of_bf16_weights)
{
    speculation_is_exact(0, 0);
}

TEST(ids_are_forbidden_until_min_tokens_are_there)
{
    td_harness h;
    open_engine(&h, make(1), 0, NULL);
    request plain = run_alone(&h, 0, 0, 20);
    for (uint32_t k = 0; k <= 3; k++) {
        request r;
        td_decode_result out;
        uint32_t n = 0;
        prepare(&h, &r, 0, 20);
        r.seq.max_drafts = k;
        r.seq.sampling.min_tokens = 9; /* tokens[1..8] may not be plain.tokens[4] */
        r.seq.sampling.n_forbid = 1;
        r.seq.sampling.forbid[0] = plain.tokens[4];
        td_decode *d = open_decode(&h, k, 0);
        TD_EQ(TD_OK, td_decode_join(d, 1, &r.seq, NULL));
        while (td_decode_active(d) > 0) {
            TD_EQ(TD_OK, td_decode_run(d, &out, &n, NULL));
            take_tokens(&r, &out);
        }
        for (int i = 1; i < 9; i++)
            TD_NE(plain.tokens[4], r.tokens[i]);
        TD_MEM(plain.tokens, r.tokens, 4 * sizeof(int32_t));
        td_decode_destroy(d);
    }
    td_harness_close(&h);
}

TEST(a_sequence_may_fill_the_context_to_its_last_position)
{
    td_harness h;
    td_harness_options o = {.kv = TD_KV_FP8,
                            .n_ranks = 1,
                            .max_tokens = 300,
                            .max_seqs = 1,
                            .n_pages = N_PAGES,
                            .max_context = 3 + 47 + 20};
    td_harness_open(&h, make(1), &o);
    for (uint32_t k = 0; k <= 4; k += 4)
        run_alone(&h, 1, k, 20); /* 50 + 20 positions */
    request r;
    td_err err;
    td_decode *d = open_decode(&h, 2, 0);
    prepare(&h, &r, 1, 21);
    TD_EQ(TD_INVALID, td_decode_join(d, 0, &r.seq, &err));
    TD_TRUE(strstr(err.text, "a context has 70 positions") != NULL);
    td_decode_destroy(d);
    td_harness_close(&h);
}

static void refuse(td_decode *d, uint32_t slot, td_decode_seq seq, const char *text)
{
    td_err err = {0};
    TD_EQ(TD_INVALID, td_decode_join(d, slot, &seq, &err));
    if (strstr(err.text, text) == NULL)
        fprintf(stderr, "'%s', not '%s'\n", err.text, text);
    TD_TRUE(strstr(err.text, text) != NULL);
}

TEST(joining_refuses_what_cannot_be_and_harms_nobody)
{
    td_harness h;
    td_decode_result out[MAX_SEQS];
    uint32_t n = 0;
    request r;
    open_engine(&h, make(1), 0, NULL);
    prepare(&h, &r, 0, 10);
    td_decode *d = open_decode(&h, 2, 0);
    TD_EQ(TD_OK, td_decode_run(d, out, &n, NULL));
    TD_EQ(0, n);
    td_decode_seq s = r.seq;
    refuse(d, MAX_SEQS, s, "slot 6 of 6");
    s.prompt_len = 0;
    refuse(d, 0, s, "prompt of 0 tokens");
    s = r.seq;
    s.first_token = 203;
    refuse(d, 0, s, "first token 203");
    s = r.seq;
    s.max_drafts = 3;
    refuse(d, 0, s, "made for 2");
    s = r.seq;
    s.hidden = NULL;
    refuse(d, 0, s, "hidden state");
    s = r.seq;
    s.max_new_tokens = 300;
    refuse(d, 0, s, "4 pages, 5 are needed");
    s = r.seq;
    r.pages[0] = N_PAGES;
    refuse(d, 0, s, "page 64 of a pool of 64");
    r.pages[0] = 0;
    s.sampling.top_p = 0;
    refuse(d, 0, s, "top_p");
    TD_EQ(TD_OK, td_decode_join(d, 0, &r.seq, NULL));
    refuse(d, 0, r.seq, "not free");
    TD_EQ(1, td_decode_active(d));
    TD_EQ(TD_OK, td_decode_run(d, out, &n, NULL));
    TD_EQ(1, n);
    td_decode_leave(d, 0);
    td_decode_leave(d, 0);
    TD_EQ(0, td_decode_active(d));
    s = r.seq;
    s.max_new_tokens = 0; /* nothing to do: prefill's token was the last */
    TD_EQ(TD_OK, td_decode_join(d, 0, &s, NULL));
    TD_EQ(TD_OK, td_decode_run(d, out, &n, NULL));
    TD_EQ(0, n);
    td_decode_destroy(d);
    td_decode_destroy(NULL);
    td_harness_close(&h);
}

TEST(creation_refuses_nonsense_and_survives_every_failed_allocation)
{
    td_harness h;
    td_decode *d = NULL;
    td_err err;
    td_harness_options o = {.kv = TD_KV_FP8,
                            .n_ranks = 1,
                            .max_tokens = 10,
                            .max_seqs = 1,
                            .n_pages = 4,
                            .without_draft = 1};
    td_harness_open(&h, make(1), &o);
    td_engine_config c = td_harness_engine(&h, 0);
    TD_EQ(TD_CONFIG, td_decode_create(&c, 0, 0, 0, &d, &err));
    TD_EQ(TD_CONFIG, td_decode_create(&c, 1, 9, 0, &d, &err));
    TD_EQ(TD_CONFIG, td_decode_create(&c, 1, 1, 0, &d, &err));
    TD_TRUE(strstr(err.text, "there is no draft layer") != NULL);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_decode_create(&c, 2, 0, 0, &d, &err), td_decode_destroy(d));
    td_harness_close(&h);
    TD_EQ(2, td_decode_pages(100, 20, 4));
    TD_EQ(3, td_decode_pages(100, 28, 4));
    TD_EQ(1, td_decode_pages(1, 0, 0));
}
