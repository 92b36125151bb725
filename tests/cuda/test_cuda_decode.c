/* Continuous batching on CUDA, steps recorded: a sequence's tokens depend neither on the others of
 * its batch (1 to 32), nor on when they come and go, nor on how many drafts are tried (0 to 4). */
#include "tests/cuda/cuda_test.h"
#include "tests/model/compare.h"
#include "tests/model/harness.h"

TD_TEST_MAIN

#define MAX_SEQS 32
#define MAX_NEW 24
#define PAGES_EACH 5

typedef struct { /* a request, as far as prefill brings it */
    int32_t prompt[220], n_prompt;
    uint32_t pages[PAGES_EACH];
    void *hidden; /* device */
    td_decode_seq seq;
    int32_t tokens[MAX_NEW + 1]; /* first_token and what follows */
    int n_tokens;
} request;

static void open_engine(td_harness *h, int precise)
{
    td_harness_options o = {.precise = precise,
                            .kv = precise ? TD_KV_F32 : TD_KV_FP8,
                            .n_ranks = 1,
                            .max_tokens = 256,
                            .max_seqs = 1,
                            .n_pages = MAX_SEQS * PAGES_EACH,
                            .max_context = 512,
                            .backend = TD_BACKEND_CUDA};
    ct_gpu g = ct_open(); /* skips where there is none */
    ct_close(&g);
    td_harness_open(h, td_source_path("models/tiny-v32"), &o);
}

/* Request i: its own prompt and pages; every third greedy, the others sampled. */
static void prepare(td_harness *h, request *r, int i)
{
    kt_rng rng = {(uint64_t)i * 31 + 7};
    memset(r, 0, sizeof(*r));
    r->n_prompt = 3 + (i * 47) % 200;
    for (int k = 0; k < r->n_prompt; k++)
        r->prompt[k] = k == 0 ? 0 : kt_int(&rng, 256, h->config.vocab_size - 1);
    for (int k = 0; k < PAGES_EACH; k++)
        r->pages[k] = (uint32_t)(i * PAGES_EACH + (k * 3) % PAGES_EACH);
    TD_EQ(TD_OK,
          td_device_alloc(h->ranks[0].device, td_model_hidden_bytes(&h->config, h->o.precise),
                          &r->hidden, NULL));
    td_sampling_init(&r->seq.sampling);
    if (i % 3 != 0) {
        r->seq.sampling.temperature = 0.8f;
        r->seq.sampling.top_p = i % 2 == 0 ? 0.9f : 1.0f;
        r->seq.sampling.top_k = i % 5 * 7;
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
    r->seq.max_new_tokens = MAX_NEW - i % 7;
    r->tokens[r->n_tokens++] = r->seq.first_token;
}

static void take_tokens(request *r, const td_decode_result *out)
{
    TD_TRUE(r->n_tokens + (int)out->n_tokens <= r->seq.max_new_tokens + 1);
    for (uint32_t k = 0; k < out->n_tokens; k++)
        r->tokens[r->n_tokens++] = out->tokens[k];
}

/* Requests first .. first + n - 1, two joining with every step, leaving when they are done. */
static void run(td_harness *h, request *r, int first, int n, uint32_t max_seqs, uint32_t k)
{
    td_decode_result out[MAX_SEQS];
    td_decode *d = NULL;
    td_err err = {0};
    uint32_t n_out = 0;
    td_engine_config config = td_harness_engine(h, 0);
    td_status st = td_decode_create(&config, max_seqs, k, 0, &d, &err);
    if (st != TD_OK)
        printf("%s\n", err.text);
    TD_EQ(TD_OK, st);
    TD_TRUE(td_decode_graphs_report(d)->n_graphs > 0);
    for (int i = 0; i < n; i++)
        prepare(h, &r[i], first + i);
    for (int joined = 0, live = 0; joined < n || live > 0;) {
        for (int twice = 0; twice < 2 && joined < n; twice++, joined++, live++) {
            r[joined].seq.max_drafts = joined % 4 == 3 && k > 0 ? k - 1 : k;
            TD_EQ(TD_OK, td_decode_join(d, (uint32_t)(n - 1 - joined), &r[joined].seq, &err));
        }
        TD_EQ(TD_OK, td_decode_run(d, out, &n_out, &err));
        TD_EQ(live, n_out);
        for (uint32_t j = 0; j < n_out; j++) {
            take_tokens(&r[n - 1 - (int)out[j].slot], &out[j]);
            if (out[j].done) {
                td_decode_leave(d, out[j].slot);
                live--;
            }
        }
    }
    td_decode_destroy(d);
    for (int i = 0; i < n; i++) {
        TD_EQ(r[i].seq.max_new_tokens + 1, r[i].n_tokens);
        td_device_free(h->ranks[0].device, r[i].hidden);
    }
}

static void crowd_equals_alone(int precise)
{
    static const int sizes[] = {2, 7, 32};
    static request alone[MAX_SEQS], crowd[MAX_SEQS];
    td_harness h;
    open_engine(&h, precise);
    for (int i = 0; i < MAX_SEQS; i++)
        run(&h, &alone[i], i, 1, 1, 0);
    for (uint32_t k = 0; k <= 4; k++)
        for (size_t s = 0; s < 3; s++) {
            run(&h, crowd, 0, sizes[s], (uint32_t)sizes[s], k);
            for (int i = 0; i < sizes[s]; i++)
                TD_MEM(alone[i].tokens, crowd[i].tokens,
                       (size_t)alone[i].n_tokens * sizeof(int32_t));
        }
    td_harness_close(&h);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_quantised)
{
    crowd_equals_alone(0);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_precise)
{
    crowd_equals_alone(1);
}
