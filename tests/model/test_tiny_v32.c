/* The bundled model: a trained one, so that rank counts, cache formats and modes can be judged as
 * their users will judge them. The text (Alice's Adventures in Wonderland, 1865) is not among what
 * it was trained on. */
#include "common/base/conf.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/model/compare.h"
#include "tests/td_test.h"
#include "tools/tandem-logits/run.h"

#include <math.h>

TD_TEST_MAIN

#define MODEL "models/tiny-v32"

typedef struct {
    int32_t *ids;
    size_t n;
} text;

/* The text's ids; skipped where the bundled model is not there. */
static text read_text(void)
{
    text t = {0};
    td_tokenizer *tokenizer = NULL;
    char *bytes = NULL;
    size_t n_bytes = 0;
    td_status st = td_tokenizer_open(td_source_path(MODEL), &tokenizer, NULL);
    if (st == TD_NOT_FOUND)
        td_skip("no bundled model");
    TD_EQ(TD_OK, st);
    TD_EQ(TD_OK,
          td_read_file(td_source_path("tests/model/alice.txt"), 1 << 20, &bytes, &n_bytes, NULL));
    TD_EQ(TD_OK,
          td_tokenizer_encode(tokenizer, bytes, n_bytes, TD_ENCODE_SPECIAL, &t.ids, &t.n, NULL));
    TD_TRUE(t.n > 1000); /* well beyond index_topk */
    td_tokenizer_destroy(tokenizer);
    free(bytes);
    return t;
}

static td_logits_result run(const text *t, td_logits_options o)
{
    td_logits_result r;
    td_err err = {0};
    o.model = td_source_path(MODEL);
    o.n_ranks = o.n_ranks == 0 ? 1 : o.n_ranks;
    td_status st = td_logits_run(&o, t->ids, (uint32_t)t->n, &r, &err);
    if (st != TD_OK)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return r;
}

TEST(perplexity_of_the_quantised_modes_is_within_5_percent_of_precise)
{
    text t = read_text();
    double p[3];
    t.n = TD_SANITIZED ? 320 : 800;
    td_logits_options modes[3] = {
        {.precise = 1, .kv = TD_KV_F32}, {.kv = TD_KV_FP8}, {.kv = TD_KV_BF16}};
    for (int i = 0; i < 3; i++) {
        td_logits_result r = run(&t, modes[i]);
        p[i] = td_perplexity(r.logits, t.ids, t.n, (size_t)r.config.vocab_size);
        td_logits_free(&r);
    }
    printf("perplexity: precise %.3f, fp8 cache %.3f, bf16 cache %.3f\n", p[0], p[1], p[2]);
    TD_TRUE(p[0] < 200); /* it has learnt to read */
    TD_TRUE(fabs(p[1] / p[0] - 1) < 0.05);
    TD_TRUE(fabs(p[2] / p[0] - 1) < 0.05);
    free(t.ids);
}

static void ranks_agree(td_moe_mode moe)
{
    text t = read_text();
    td_logits_options o = {.kv = TD_KV_FP8, .moe = moe, .chunk = 320};
    t.n = TD_SANITIZED ? 330 : 600; /* above index_topk, and two chunks */
    td_logits_result one = run(&t, o);
    for (uint32_t n = TD_SANITIZED ? 4 : 2; n <= 4; n += 2)
        for (int split = 0; split < 2; split++) {
            o.n_ranks = n;
            o.split = split == 0 ? TD_CP_ROUND_ROBIN : TD_CP_IN_SEQ;
            td_logits_result r = run(&t, o);
            td_closeness c =
                td_compare_logits(one.logits, r.logits, t.n, (size_t)one.config.vocab_size);
            printf("%u ranks, %s, %s: KL %.2e, top-1 %.4f\n", n, td_cp_split_name(o.split),
                   td_moe_mode_name(moe), c.kl, c.top1);
            TD_TRUE(c.kl <= 1e-3);
            TD_TRUE(c.top1 >= 0.99);
            td_logits_free(&r);
        }
    td_logits_free(&one);
    free(t.ids);
}

TEST(rank_counts_agree_fused)
{
    ranks_agree(TD_MOE_FUSED);
}

TEST(rank_counts_agree_ep)
{
    ranks_agree(TD_MOE_EP);
}

/* Twice as many ranks as experts: every other one owns none. */
TEST(ranks_without_an_expert_agree_too)
{
    text t = read_text();
    td_logits_options o = {.kv = TD_KV_FP8, .moe = TD_MOE_EP, .chunk = 320};
    t.n = TD_SANITIZED ? 330 : 600;
    td_logits_result one = run(&t, o);
    o.n_ranks = 8;
    TD_TRUE(one.config.n_experts < 8);
    td_logits_result r = run(&t, o);
    td_closeness c = td_compare_logits(one.logits, r.logits, t.n, (size_t)one.config.vocab_size);
    printf("8 ranks, ep: KL %.2e, top-1 %.4f\n", c.kl, c.top1);
    TD_TRUE(c.kl <= 1e-3 && c.top1 >= 0.99);
    td_logits_free(&one);
    td_logits_free(&r);
    free(t.ids);
}

static void drafts_change_nothing(td_logits_options o, int want_accepted)
{
    enum { N = 64 };
    text t = read_text();
    int32_t plain[N];
    t.n = TD_SANITIZED ? 270 : 500;
    o.generate = N;
    o.no_logits = 1;
    for (uint32_t k = 0; k <= 4; k += TD_SANITIZED ? 4 : 1) {
        o.drafts = k;
        o.chunk = k % 4 == 0 ? 0 : 256;
        td_logits_result r = run(&t, o);
        TD_EQ(N, r.n_generated);
        if (k == 0)
            memcpy(plain, r.generated, sizeof(plain));
        TD_MEM(plain, r.generated, sizeof(plain));
        printf("%u drafts: %llu of %llu accepted in %llu steps\n", k,
               (unsigned long long)r.n_accepted, (unsigned long long)r.n_drafted,
               (unsigned long long)r.n_steps);
        if (k > 0 && want_accepted)
            TD_TRUE(r.n_accepted * 10 > r.n_drafted * 3);
        td_logits_free(&r);
    }
    free(t.ids);
}

TEST(greedy_text_is_the_same_with_0_to_4_drafts_quantised)
{
    drafts_change_nothing((td_logits_options){.kv = TD_KV_FP8}, 1);
}

TEST(greedy_text_is_the_same_with_0_to_4_drafts_precise)
{
    drafts_change_nothing((td_logits_options){.kv = TD_KV_F32, .precise = 1}, 1);
}

TEST(sampled_text_is_the_same_with_0_to_4_drafts)
{
    td_sampling s;
    td_sampling_init(&s);
    s.temperature = 0.9f;
    s.top_p = 0.95f;
    s.seed = 42;
    drafts_change_nothing((td_logits_options){.kv = TD_KV_BF16, .sampling = &s}, 0);
}

TEST(one_rank_is_the_same_to_the_bit_in_both_moe_modes_and_in_chunks)
{
    text t = read_text();
    t.n = TD_SANITIZED ? 270 : 500;
    td_logits_result a = run(&t, (td_logits_options){.kv = TD_KV_FP8});
    td_logits_result b =
        run(&t, (td_logits_options){.kv = TD_KV_FP8, .moe = TD_MOE_EP, .chunk = 192});
    size_t n = t.n * (size_t)a.config.vocab_size;
    TD_MEM(a.logits, b.logits, n * sizeof(float));
    TD_MEM(a.mtp_logits, b.mtp_logits, (n - (size_t)a.config.vocab_size) * sizeof(float));
    td_logits_free(&a);
    td_logits_free(&b);
    free(t.ids);
}
