/* Kinds of checkpoints that neither the goldens nor the bundled model are, through the whole
 * forward pass: the CPU's operations against the plain judges, and against checkpoints that say the
 * same in another way. */
#include "tests/model/compare.h"
#include "tests/model/harness.h"
#include "tests/model/made_model.h"
#include "tests/model/plain_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

TD_TEST_MAIN

#define N_TOKENS 70 /* three times index_topk, two pages */
#define N_LAYERS 2
#define STRIDE (TD_SANITIZED ? 12 : 1) /* the judges are slow: every twelfth kind then */

typedef struct {
    const char *name;
    td_made_model m;
    uint32_t n_ranks;
    td_moe_mode moe;
} variant;

typedef struct {
    td_model_config config;
    float *logits, *mtp_logits, *layer_out[N_LAYERS]; /* [N_TOKENS, ..] */
    int32_t *selected[N_LAYERS], first;
} result;

static void *zeros(size_t n)
{
    void *p = calloc(n, 4);
    if (p == NULL)
        abort();
    return p;
}

static const int32_t *prompt(int vocab)
{
    static int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * i * 31 + i * 7) % vocab;
    return tokens;
}

static result forward(const char *dir, const variant *v, int precise, const td_ops *ops)
{
    td_harness_options o = {.precise = precise,
                            .kv = precise ? TD_KV_F32 : TD_KV_FP8,
                            .n_ranks = v->n_ranks,
                            .moe = v->moe,
                            .max_tokens = N_TOKENS,
                            .max_seqs = 1,
                            .n_pages = 3,
                            .ops = ops};
    static const uint32_t pages[] = {2, 0};
    td_sampling greedy;
    td_harness h;
    result r = {.first = -2};
    td_harness_open(&h, dir, &o);
    size_t vocab = (size_t)h.config.vocab_size, d = (size_t)h.config.hidden_size;
    r.config = h.config;
    r.logits = zeros(N_TOKENS * vocab);
    r.mtp_logits = zeros(N_TOKENS * vocab);
    for (int i = 0; i < N_LAYERS; i++) {
        r.layer_out[i] = zeros(N_TOKENS * d);
        r.selected[i] = zeros(N_TOKENS * (size_t)h.config.index_topk);
    }
    td_sampling_init(&greedy);
    td_prefill_seq seq = {.n_tokens = N_TOKENS,
                          .tokens = prompt((int)vocab),
                          .next_token = -1,
                          .pages = pages,
                          .n_pages = 2,
                          .sampling = &greedy};
    td_prefill_dump dump = {.logits = r.logits,
                            .mtp_logits = r.mtp_logits,
                            .layer_out = r.layer_out,
                            .selected = r.selected};
    r.first = td_harness_prompt(&h, &seq, 0, &dump);
    td_harness_close(&h);
    return r;
}

static void drop(result *r)
{
    free(r->logits);
    free(r->mtp_logits);
    for (int i = 0; i < N_LAYERS; i++) {
        free(r->layer_out[i]);
        free(r->selected[i]);
    }
}

/* With these seeds precise mode meets no tie: no row's expert or position on either side of a cut
 * is nearer to the other than f32 can tell. */
static td_made_model base(int fp8)
{
    td_made_model m = td_made_model_odd();
    m.fp8 = fp8;
    m.seed = fp8 ? 1 : 2;
    return m;
}

#define MOST_VARIANTS 32

/* Every row differs from the odd model in one thing. */
static int variants(variant *v)
{
    int n = 0;
#define ADD(text, fp8, ...)                                                                        \
    do {                                                                                           \
        v[n] = (variant){.name = text, .m = base(fp8), .n_ranks = 1};                              \
        __VA_ARGS__;                                                                               \
        n++;                                                                                       \
    } while (0)
    ADD("bf16", 0, (void)0);
    ADD("FP8, scales powers of two", 1, (void)0);
    ADD("FP8, plain f32 scales", 1, v[n].m.plain_scales = 1);
    ADD("FP8, bf16 scales", 1, v[n].m.bf16_scales = 1);
    ADD("FP8, plain bf16 scales", 1, v[n].m.plain_scales = v[n].m.bf16_scales = 1);
    ADD("f32 norms", 1, v[n].m.f32_norms = 1);
    ADD("f32 gate, indexer weights and head", 1, v[n].m.f32_gates = 1);
    ADD("plain RoPE", 0, v[n].m.yarn = 0);
    ADD("no shared expert", 1, v[n].m.shared = 0);
    ADD("two shared experts", 1, v[n].m.shared = 2);
    ADD("weights of experts not normed", 1, v[n].m.not_normed = 1);
    ADD("indexer interleaved", 1, v[n].m.indexer_interleaved = 1);
    ADD("tied embeddings", 1, v[n].m.tied = 1);
    ADD("no dense layer", 1, v[n].m.dense_layers = 0);
    ADD("dense layers only", 1, v[n].m.dense_layers = 2);
    ADD("no draft layer", 1, v[n].m.draft = 0);
    ADD("copies in the draft layer", 1, v[n].m.draft_copies = 1);
    ADD("one expert per token", 1, v[n].m.per_token = 1);
    ADD("one group of experts", 0, v[n].m.groups = v[n].m.topk_groups = 1);
    ADD("a rank without a block", 1, v[n].n_ranks = 4);
    ADD("a rank without a block of bf16", 0, v[n].n_ranks = 4; v[n].m.moe_intermediate = 24);
    ADD("shared experts, ranks without a block", 1, v[n].n_ranks = 4; v[n].m.shared = 2;
        v[n].m.intermediate = 128);
    ADD("ranks without an expert", 1, v[n].n_ranks = 4; v[n].moe = TD_MOE_EP; v[n].m.experts = 3;
        v[n].m.per_token = 2);
    ADD("ranks without an expert, bf16", 0, v[n].n_ranks = 4; v[n].moe = TD_MOE_EP;
        v[n].m.experts = 3; v[n].m.per_token = 2);
    ADD("unequal numbers of experts", 1, v[n].n_ranks = 4; v[n].moe = TD_MOE_EP);
    ADD("ep without shared experts", 1, v[n].n_ranks = 3; v[n].moe = TD_MOE_EP; v[n].m.shared = 0);
#undef ADD
    td_assert(n <= MOST_VARIANTS);
    return n;
}

/* Logits have a deviation of 1; f32 sums of up to 800 terms in 3 layers leave 1e-5 (measured), ten
 * times that is allowed. */
#define PRECISE_BOUND 1e-4

static void check_precise(const variant *v, const float *logits, const float *mtp_logits,
                          const result *r)
{
    size_t vocab = (size_t)v->m.vocab;
    double main = td_max_difference(logits, r->logits, N_TOKENS * vocab), draft = 0;
    if (v->m.draft)
        draft = td_max_difference(mtp_logits, r->mtp_logits, (N_TOKENS - 1) * vocab);
    printf("%s: logits %.1e, mtp_logits %.1e\n", v->name, main, draft);
    TD_TRUE(main <= PRECISE_BOUND && draft <= PRECISE_BOUND);
}

TEST(precise_mode_is_a_plain_double_precision_forward_pass)
{
    variant v[MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = variants(v); i < n; i += STRIDE) {
        td_make_model(dir, &v[i].m);
        size_t size = N_TOKENS * (size_t)v[i].m.vocab;
        float *logits = zeros(size), *mtp_logits = zeros(size);
        td_plain_model(dir, &v[i].m, prompt(v[i].m.vocab), N_TOKENS, logits, mtp_logits);
        result r = forward(dir, &v[i], 1, NULL);
        check_precise(&v[i], logits, mtp_logits, &r);
        drop(&r);
        free(logits);
        free(mtp_logits);
    }
}

TEST(precise_mode_agrees_with_the_judges)
{
    variant v[MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = variants(v); i < n; i += STRIDE) {
        td_make_model(dir, &v[i].m);
        result want = forward(dir, &v[i], 1, td_ops_ref()), got = forward(dir, &v[i], 1, NULL);
        check_precise(&v[i], want.logits, want.mtp_logits, &got);
        TD_EQ(want.first, got.first);
        drop(&want);
        drop(&got);
    }
}

/* The judges sum in another order: now and then a bf16 falls the other way, by which an expert or a
 * position may be another one from there on. The bounds are those of tests/golden/README.md: layer
 * 0's median (measured: 0, most of it has the same bits), and for two right runs that differ in the
 * order of sums KL about 0.1 and 80 to 90 % of top-1. The first rows, before anything fell
 * otherwise, are equal. */
static void check_quantised(const variant *v, const result *want, const result *got)
{
    size_t vocab = (size_t)v->m.vocab, d = (size_t)v->m.hidden;
    double median = td_median_error(want->layer_out[0], got->layer_out[0], N_TOKENS * d);
    td_closeness main = td_compare_logits(want->logits, got->logits, N_TOKENS, vocab);
    td_closeness draft = td_compare_logits(want->mtp_logits, got->mtp_logits, N_TOKENS - 1, vocab);
    size_t rows = td_equal_rows(want->logits, got->logits, N_TOKENS, vocab, 1e-3);
    printf("%s: layer 0 median %.1e, first %zu rows equal; KL %.4f, top-1 %.2f; draft layer KL "
           "%.4f, top-1 %.2f\n",
           v->name, median, rows, main.kl, main.top1, draft.kl, draft.top1);
    TD_TRUE(median < 1e-3 && rows >= 4);
    TD_TRUE(main.kl < 0.1 && main.top1 >= 0.8);
    TD_TRUE(draft.kl < 0.1 && draft.top1 >= 0.8);
}

static void quantised_agrees(int first, int stride)
{
    variant v[MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = first, n = variants(v); i < n; i += stride) {
        if (v[i].n_ranks > 1) /* ranks_of_any_share_agree_with_one; the judges are slow */
            continue;
        td_make_model(dir, &v[i].m);
        result want = forward(dir, &v[i], 0, td_ops_ref()), got = forward(dir, &v[i], 0, NULL);
        check_quantised(&v[i], &want, &got);
        drop(&want);
        drop(&got);
    }
}

TEST(quantised_mode_agrees_with_the_judges)
{
    quantised_agrees(0, TD_SANITIZED ? 9 : 3);
}

TEST(quantised_mode_agrees_with_the_judges_in_all_other_kinds)
{
    quantised_agrees(1, 3);
    quantised_agrees(2, 3);
}

TEST(ranks_of_any_share_agree_with_one)
{
    variant v[MOST_VARIANTS];
    const char *dir = td_scratch_dir();
    for (int i = 0, n = variants(v); i < n; i++) {
        variant one = v[i];
        one.n_ranks = 1;
        for (int precise = 0; precise < 2 && v[i].n_ranks > 1; precise++) {
            td_make_model(dir, &v[i].m);
            result want = forward(dir, &one, precise, NULL);
            result got = forward(dir, &v[i], precise, NULL);
            if (precise)
                check_precise(&v[i], want.logits, want.mtp_logits, &got);
            else
                check_quantised(&v[i], &want, &got);
            drop(&want);
            drop(&got);
        }
    }
}

/* Two checkpoints that say the same give the same bits. */
static void check_same(const td_made_model *a, const td_made_model *b)
{
    const char *dir = td_scratch_dir();
    for (int precise = 0; precise < 2; precise++) {
        variant va = {"", *a, 1, TD_MOE_FUSED}, vb = {"", *b, 1, TD_MOE_FUSED};
        td_make_model(dir, a);
        result ra = forward(dir, &va, precise, NULL);
        td_make_model(dir, b);
        result rb = forward(dir, &vb, precise, NULL);
        size_t size = N_TOKENS * (size_t)a->vocab * sizeof(float);
        TD_MEM(ra.logits, rb.logits, size);
        TD_MEM(ra.mtp_logits, rb.mtp_logits, size);
        TD_EQ(ra.first, rb.first);
        drop(&ra);
        drop(&rb);
    }
}

TEST(scales_in_bf16_are_the_same_scales_in_f32)
{
    td_made_model a = base(1), b;
    a.plain_scales = 1;
    a.bf16_scales = 1;
    b = a;
    b.bf16_scales = 2;
    check_same(&a, &b);
}

TEST(tied_embeddings_are_a_head_with_the_same_numbers)
{
    td_made_model a = base(1), b = a;
    a.tied = 1;
    b.tied = 2;
    check_same(&a, &b);
}

/* The published files have copies of the target's there, whose storage is shared. */
TEST(an_embedding_and_a_head_in_the_draft_layer_are_not_used)
{
    td_made_model a = base(1), b = a;
    b.draft_copies = 1;
    check_same(&a, &b);
}

/* Products of two bf16 numbers are exact in f32, and the order of sums is the same. */
TEST(weights_used_as_f32_may_be_stored_so)
{
    td_made_model a = base(1), b = a;
    b.f32_gates = 2;
    check_same(&a, &b);
}
