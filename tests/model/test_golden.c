/* The model against what independent implementations computed (tests/golden/README.md). */
#include "model/safetensors.h"
#include "tests/model/compare.h"
#include "tests/td_test.h"
#include "tools/tandem-logits/run.h"

TD_TEST_MAIN

#define PRECISE_BOUND 2e-3
#define QUANTISED_MEDIAN 1e-3
#define QUANTISED_KL 0.3
#define QUANTISED_TOP1 0.70
#define N_GREEDY 32

typedef struct {
    char dir[1024];
    td_safetensors *golden, *quantised;
    const int32_t *ids;
    uint32_t n_ids;
    size_t vocab, hidden;
} set;

static set open_set(const char *name)
{
    set s = {0};
    char path[1200];
    snprintf(path, sizeof(path), "tests/golden/%s", name);
    snprintf(s.dir, sizeof(s.dir), "%s", td_source_path(path));
    snprintf(path, sizeof(path), "%s/golden.safetensors", s.dir);
    TD_EQ(TD_OK, td_safetensors_open(path, &s.golden, NULL));
    snprintf(path, sizeof(path), "%s/quantised.safetensors", s.dir);
    TD_EQ(TD_OK, td_safetensors_open(path, &s.quantised, NULL));
    const td_tensor *ids = td_need(s.golden, "input_ids"), *logits = td_need(s.golden, "logits");
    s.ids = (const int32_t *)(const void *)ids->data;
    s.n_ids = (uint32_t)ids->shape[0];
    s.vocab = (size_t)logits->shape[1];
    s.hidden = (size_t)td_need(s.golden, "hidden_final_norm")->shape[0];
    return s;
}

static void close_set(set *s)
{
    td_safetensors_close(s->golden);
    td_safetensors_close(s->quantised);
}

static const float *floats(const td_safetensors *file, const char *name)
{
    return (const float *)(const void *)td_need(file, name)->data;
}

static td_logits_result run(const set *s, td_logits_options o)
{
    td_logits_result r;
    td_err err = {0};
    o.model = s->dir;
    if (o.n_ranks == 0)
        o.n_ranks = 1;
    td_status st = td_logits_run(&o, s->ids, s->n_ids, &r, &err);
    if (st != TD_OK)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return r;
}

static td_logits_options precise(void)
{
    return (td_logits_options){.precise = 1, .kv = TD_KV_F32, .generate = N_GREEDY};
}

static void check_precise(const set *s, const td_logits_result *r, const char *what)
{
    size_t n = s->n_ids;
    double main = td_max_difference(floats(s->golden, "logits"), r->logits, n * s->vocab);
    double mtp =
        td_max_difference(floats(s->golden, "mtp_logits"), r->mtp_logits, (n - 1) * s->vocab);
    printf("%s: logits %.2e, mtp_logits %.2e\n", what, main, mtp);
    TD_TRUE(main <= PRECISE_BOUND);
    TD_TRUE(mtp <= PRECISE_BOUND);
    TD_EQ(N_GREEDY, r->n_generated);
    TD_MEM(td_need(s->golden, "greedy_ids")->data, r->generated, N_GREEDY * sizeof(int32_t));
}

static void precise_on_ranks(const char *name, td_cp_split split, td_moe_mode moe)
{
    static const uint32_t ranks[] = {1, 2, 4};
    set s = open_set(name);
    for (size_t i = 0; i < 3; i++) {
        char what[100];
        td_logits_options o = precise();
        o.n_ranks = ranks[i];
        o.split = split;
        o.moe = moe;
        o.drafts = (uint32_t)i + 1;
        td_logits_result r = run(&s, o);
        snprintf(what, sizeof(what), "%s, %u ranks, %s, %s", name, ranks[i],
                 td_cp_split_name(split), td_moe_mode_name(moe));
        check_precise(&s, &r, what);
        td_logits_free(&r);
    }
    close_set(&s);
}

TEST(precise_bf16_on_1_2_4_ranks_round_robin_fused)
{
    precise_on_ranks("v32-bf16", TD_CP_ROUND_ROBIN, TD_MOE_FUSED);
}

TEST(precise_bf16_on_1_2_4_ranks_round_robin_ep)
{
    precise_on_ranks("v32-bf16", TD_CP_ROUND_ROBIN, TD_MOE_EP);
}

TEST(precise_bf16_on_1_2_4_ranks_in_seq_fused)
{
    precise_on_ranks("v32-bf16", TD_CP_IN_SEQ, TD_MOE_FUSED);
}

TEST(precise_bf16_on_1_2_4_ranks_in_seq_ep)
{
    precise_on_ranks("v32-bf16", TD_CP_IN_SEQ, TD_MOE_EP);
}

TEST(precise_fp8_on_1_2_4_ranks_round_robin_fused)
{
    precise_on_ranks("v32-fp8", TD_CP_ROUND_ROBIN, TD_MOE_FUSED);
}

TEST(precise_fp8_on_1_2_4_ranks_round_robin_ep)
{
    precise_on_ranks("v32-fp8", TD_CP_ROUND_ROBIN, TD_MOE_EP);
}

TEST(precise_fp8_on_1_2_4_ranks_in_seq_fused)
{
    precise_on_ranks("v32-fp8", TD_CP_IN_SEQ, TD_MOE_FUSED);
}

TEST(precise_fp8_on_1_2_4_ranks_in_seq_ep)
{
    precise_on_ranks("v32-fp8", TD_CP_IN_SEQ, TD_MOE_EP);
}

static void precise_with_drafts(const char *name)
{
    set s = open_set(name);
    for (uint32_t k = 0; k <= 4; k++) {
        char what[64];
        td_logits_options o = precise();
        o.drafts = k;
        o.chunk = k % 2 == 0 ? 64 : 128;
        td_logits_result r = run(&s, o);
        snprintf(what, sizeof(what), "%s, %u drafts", name, k);
        check_precise(&s, &r, what);
        td_logits_free(&r);
    }
    close_set(&s);
}

TEST(precise_bf16_continues_alike_with_0_to_4_drafts_and_in_chunks)
{
    precise_with_drafts("v32-bf16");
}

TEST(precise_fp8_continues_alike_with_0_to_4_drafts_and_in_chunks)
{
    precise_with_drafts("v32-fp8");
}

static int contains(const int32_t *set_of, size_t n, int32_t x)
{
    for (size_t i = 0; i < n; i++)
        if (set_of[i] == x)
            return 1;
    return 0;
}

/* What the golden file says of the last row, layer by layer. */
static void check_last_row(const set *s, const td_logits_result *r)
{
    size_t last = s->n_ids - 1, k = (size_t)r->config.index_topk;
    for (int32_t i = 0; i < r->config.n_layers; i++) {
        char name[64];
        snprintf(name, sizeof(name), "layer%d_out_last", i);
        TD_TRUE(td_max_difference(floats(s->golden, name), r->layer_out[i] + last * s->hidden,
                                  s->hidden) <= 1e-3);
        snprintf(name, sizeof(name), "layer%d_selected_last", i);
        const int32_t *want = (const int32_t *)(const void *)td_need(s->golden, name)->data;
        const int32_t *got = r->selected[i] + last * k;
        for (size_t j = 0; j < k; j++) {
            TD_TRUE(contains(want, k, got[j]));
            TD_TRUE(j == 0 || got[j] > got[j - 1]);
        }
    }
    TD_TRUE(td_max_difference(floats(s->golden, "hidden_final_norm"), r->hidden + last * s->hidden,
                              s->hidden) <= 1e-3);
    TD_TRUE(td_max_difference(floats(s->golden, "mtp_hidden"),
                              r->mtp_hidden + (last - 1) * s->hidden, s->hidden) <= 1e-3);
}

TEST(precise_layers_and_selected_positions_are_the_golden_ones)
{
    static const char *const names[] = {"v32-bf16", "v32-fp8"};
    for (size_t i = 0; i < 2; i++) {
        set s = open_set(names[i]);
        td_logits_options o = precise();
        o.dump_layers = 1;
        td_logits_result r = run(&s, o);
        check_last_row(&s, &r);
        td_logits_free(&r);
        o.n_ranks = 2;
        o.split = TD_CP_IN_SEQ;
        r = run(&s, o);
        check_last_row(&s, &r);
        td_logits_free(&r);
        close_set(&s);
    }
}

TEST(precise_draft_layer_can_be_fed_the_state_before_the_final_norm)
{
    static const char *const names[] = {"v32-bf16", "v32-fp8"};
    for (size_t i = 0; i < 2; i++) {
        set s = open_set(names[i]);
        td_logits_options o = precise();
        o.draft_prenorm = 1;
        o.drafts = 2;
        td_logits_result r = run(&s, o);
        TD_TRUE(td_max_difference(floats(s.golden, "mtp_logits_prenorm_state"),
                                  r.mtp_logits + (s.n_ids - 5) * s.vocab,
                                  4 * s.vocab) <= PRECISE_BOUND);
        TD_MEM(td_need(s.golden, "greedy_ids")->data, r.generated, N_GREEDY * sizeof(int32_t));
        td_logits_free(&r);
        close_set(&s);
    }
}

static void check_quantised(const set *s, const td_logits_result *r)
{
    size_t n = s->n_ids;
    const float *layer0 = floats(s->quantised, "layer0_out");
    const float *want = floats(s->quantised, "logits");
    const float *want_mtp = floats(s->quantised, "mtp_logits");
    double median = td_median_error(layer0, r->layer_out[0], n * s->hidden);
    td_closeness main = td_compare_logits(want, r->logits, n, s->vocab);
    td_closeness mtp = td_compare_logits(want_mtp, r->mtp_logits, n - 1, s->vocab);
    size_t rows = td_equal_rows(want, r->logits, n, s->vocab, 1e-3);
    size_t mtp_rows = td_equal_rows(want_mtp, r->mtp_logits, n - 1, s->vocab, 1e-3);
    printf("layer 0 median %.1e; logits KL %.3f, top-1 %.3f, first %zu rows equal; mtp_logits KL "
           "%.3f, top-1 %.3f, first %zu rows equal\n",
           median, main.kl, main.top1, rows, mtp.kl, mtp.top1, mtp_rows);
    TD_TRUE(median < QUANTISED_MEDIAN);
    TD_TRUE(main.kl < QUANTISED_KL && main.top1 > QUANTISED_TOP1);
    TD_TRUE(mtp.kl < QUANTISED_KL && mtp.top1 > QUANTISED_TOP1);
    /* Until a rounding first falls the other way, everything is equal: no formula differs. */
    TD_TRUE(rows >= 4 && mtp_rows >= 4);
}

static void quantised(const char *name)
{
    set s = open_set(name);
    td_logits_result r = run(&s, (td_logits_options){.kv = TD_KV_FP8, .dump_layers = 1});
    check_quantised(&s, &r);
    td_logits_free(&r);
    r = run(&s, (td_logits_options){.kv = TD_KV_FP8, .dump_layers = 1, .chunk = 64, .n_ranks = 2});
    check_quantised(&s, &r);
    td_logits_free(&r);
    close_set(&s);
}

TEST(quantised_bf16_is_within_the_golden_bounds)
{
    quantised("v32-bf16");
}

TEST(quantised_fp8_is_within_the_golden_bounds)
{
    quantised("v32-fp8");
}
