/* Tensor-parallel decoding: the tokens of one rank on any number of them, up to the rounding of a
 * sum that is cut in parts; and, to the bit, whatever the batch and the drafts. */
#include "tests/model/golden_set.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/model/tensor_world.h"

TD_TEST_MAIN

static void golden_on(const char *name, const uint32_t *ranks, size_t n)
{
    td_golden_set s = td_golden_open(name);
    for (size_t i = 0; i < n; i++)
        for (uint32_t k = TD_SANITIZED ? 2 : 0; k <= 4; k += TD_SANITIZED ? 4 : 2) {
            char what[64];
            td_logits_options o = td_golden_precise();
            o.tensor = ranks[i];
            o.drafts = k;
            o.n_ranks = k == 2 ? 2 : 1;
            td_logits_result r = td_golden_run(&s, o);
            snprintf(what, sizeof(what), "%s, %u ranks, %u drafts", name, ranks[i], k);
            td_golden_check_precise(&s, &r, what);
            td_logits_free(&r);
        }
    td_golden_close(&s);
}

TEST(precise_bf16_continues_as_the_golden_set_on_2_and_4_ranks)
{
    golden_on("v32-bf16", (const uint32_t[]){2, 4}, 2); /* 2 heads: two ranks have none */
}

TEST(precise_fp8_continues_as_the_golden_set_on_2_3_and_4_ranks)
{
    golden_on("v32-fp8", (const uint32_t[]){2, 3, 4}, 3);
}

#define N_PROMPT (TD_SANITIZED ? 200 : 400)
#define N_MORE (TD_SANITIZED ? 32 : 64)

/* A prompt of the bundled model: ids from a fixed walk over its vocabulary. */
static td_golden_set bundled(int32_t *ids)
{
    td_golden_set s = {.ids = ids, .n_ids = N_PROMPT};
    snprintf(s.dir, sizeof(s.dir), "%s", td_source_path("models/tiny-v32"));
    for (uint32_t i = 0; i < N_PROMPT; i++)
        ids[i] = i == 0 ? 0 : (int32_t)(256 + (uint64_t)i * i * 2654435761u % 3800);
    return s;
}

TEST(precise_text_of_the_bundled_model_is_that_of_one_rank)
{
    int32_t ids[N_PROMPT];
    td_golden_set s = bundled(ids);
    td_logits_options o = {.precise = 1, .kv = TD_KV_F32, .generate = N_MORE, .no_logits = 1};
    td_logits_result one = td_golden_run(&s, o);
    for (uint32_t n = TD_SANITIZED ? 4 : 2; n <= 4; n += 2) {
        o.tensor = n;
        o.drafts = n - 1;
        td_logits_result r = td_golden_run(&s, o);
        TD_MEM(one.generated, r.generated, N_MORE * sizeof(int32_t));
        td_logits_free(&r);
    }
    td_logits_free(&one);
}

/* Quantised, heads in pairs (a head has one and a half blocks of rows), so that 4 ranks leave two
 * without any. */
TEST(text_is_the_same_with_0_to_4_drafts_on_2_and_4_ranks)
{
    int32_t ids[N_PROMPT];
    td_golden_set s = bundled(ids);
    td_sampling sampled;
    td_sampling_init(&sampled);
    sampled.temperature = 0.9f;
    sampled.top_p = 0.95f;
    sampled.seed = 42;
    for (int i = TD_SANITIZED; i < 3; i++) {
        td_logits_options o = {.kv = i == 0 ? TD_KV_FP8 : TD_KV_BF16,
                               .tensor = i == 2 ? 4 : 2,
                               .sampling = i == 1 ? &sampled : NULL,
                               .generate = N_MORE,
                               .no_logits = 1};
        td_logits_result want = td_golden_run(&s, o);
        for (uint32_t k = TD_SANITIZED ? 3 : 1; k <= 4; k += TD_SANITIZED ? 4 : 1) {
            o.drafts = k;
            td_logits_result r = td_golden_run(&s, o);
            TD_MEM(want.generated, r.generated, N_MORE * sizeof(int32_t));
            td_logits_free(&r);
        }
        td_logits_free(&want);
    }
}

/* ---- a crowd ---- */

#define N_SEQS 8

static void crowd_equals_alone(int precise, uint32_t n_ranks)
{
    static td_tensor_world w;
    static td_tensor_request alone[N_SEQS];
    td_made_model m = td_made_model_odd();
    const char *dir = td_scratch_dir();
    m.fp8 = 1;
    m.nope = 112; /* with 16 rotated dims a head is whole blocks of q_b, and of o */
    m.v = 128;
    td_make_model(dir, &m);
    td_tensor_world_open(&w, dir, TD_BACKEND_CPU, precise, n_ranks);
    for (int i = 0; i < N_SEQS; i++) {
        td_tensor_world_run(&w, i, 1, 0);
        alone[i] = w.r[i];
    }
    for (uint32_t k = 0; k <= 4; k += TD_SANITIZED ? 3 : 1)
        for (int n = 2; n <= N_SEQS; n += TD_SANITIZED ? 6 : 3) {
            td_tensor_world_run(&w, 0, n, k);
            for (int i = 0; i < n; i++)
                TD_MEM(alone[i].tokens[0], w.r[i].tokens[0],
                       (size_t)alone[i].n_tokens[0] * sizeof(int32_t));
        }
    td_tensor_world_close(&w);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_on_2_ranks_quantised)
{
    crowd_equals_alone(0, 2);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_on_3_ranks_precise)
{
    crowd_equals_alone(1, 3);
}

/* ---- cuts and refusals ---- */

static void must(td_status st, const td_err *err)
{
    if (st < 0)
        fprintf(stderr, "%s\n", err->text);
    TD_EQ(TD_OK, st);
}

static td_status open_rank(const char *dir, int precise, td_moe_mode moe, uint32_t rank,
                           uint32_t n_ranks, td_rank *out, td_err *err)
{
    td_checkpoint *ckpt = NULL;
    static td_model_config config;
    static td_kv_layout layout;
    must(td_model_config_load(dir, &config, err), err);
    must(td_checkpoint_open(dir, &ckpt, err), err);
    must(td_model_kv_layout(&config, precise, precise ? TD_KV_F32 : TD_KV_FP8, 1, &layout, err),
         err);
    td_rank_options o = {.ckpt = ckpt,
                         .config = &config,
                         .layout = &layout,
                         .precise = precise,
                         .moe = moe,
                         .tensor = 1,
                         .rank = rank,
                         .n_ranks = n_ranks,
                         .n_threads = 1,
                         .n_pages = 4};
    td_status st = td_rank_open(out, &o, err);
    td_checkpoint_close(ckpt);
    return st;
}

/* v32-fp8: 4 heads of 192 rows of q_b and 128 columns of o. */
TEST(heads_are_cut_in_whole_blocks_of_what_is_stored)
{
    const char *dir = td_source_path("tests/golden/v32-fp8");
    for (int precise = 0; precise < 2; precise++)
        for (uint32_t r = 0; r < 4; r++) {
            td_rank rank = {0};
            td_err err = {0};
            must(open_rank(dir, precise, TD_MOE_FUSED, r, 4, &rank, &err), &err);
            int32_t lo = precise ? (int32_t)r : r == 0 ? 0 : r <= 2 ? 2 : 4;
            int32_t hi = precise ? lo + 1 : r <= 1 ? 2 : 4;
            const td_layer_weights *l = &rank.weights->layers[0];
            TD_EQ(lo, rank.weights->head_lo);
            TD_EQ(hi, rank.weights->head_hi);
            TD_EQ((hi - lo) * 192, l->q_b.N);
            TD_EQ((hi - lo) * 128, l->o.K);
            td_rank_close(&rank);
        }
}

TEST(what_tensor_parallel_ranks_cannot_do_is_refused)
{
    const char *dir = td_source_path("tests/golden/v32-fp8");
    td_rank rank = {0};
    td_err err = {0};
    td_prefill *prefill = NULL;
    td_decode *decode = NULL;
    TD_EQ(TD_CONFIG, open_rank(dir, 0, TD_MOE_EP, 0, 2, &rank, &err));
    TD_TRUE(strstr(err.text, "whole experts") != NULL);
    must(open_rank(dir, 0, TD_MOE_FUSED, 0, 2, &rank, &err), &err);
    td_kv_layout layout;
    must(td_model_kv_layout(&rank.weights->config, 0, TD_KV_FP8, 1, &layout, &err), &err);
    td_engine_config config = td_rank_engine(&rank, &layout, NULL);
    TD_EQ(TD_CONFIG, td_prefill_create(&config, 64, 1, &prefill, &err));
    TD_TRUE(strstr(err.text, "tensor-parallel") != NULL);
    TD_EQ(TD_CONFIG, td_decode_create(&config, 1, 0, 0, &decode, &err)); /* no collectives */
    td_comm_group *group = NULL;
    must(td_comm_group_create(2, 20, 60000, &group, &err), &err);
    config = td_rank_engine(&rank, &layout, td_comm_group_rank(group, 0));
    TD_EQ(0, config.graphs);
    config.graphs = 1;
    TD_EQ(TD_CONFIG, td_decode_create(&config, 1, 0, 0, &decode, &err));
    TD_TRUE(strstr(err.text, "cannot be recorded: the CPU's steps are not recorded") != NULL);
    td_comm_group_destroy(group);
    td_rank_close(&rank);
}
