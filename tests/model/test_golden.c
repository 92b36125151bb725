/* The model against what independent implementations computed (tests/golden/README.md). */
#include "tests/model/golden_set.h"

TD_TEST_MAIN

static void precise_on_ranks(const char *name, td_cp_split split, td_moe_mode moe)
{
    static const uint32_t ranks[] = {1, 2, 4};
    td_golden_set s = td_golden_open(name);
    for (size_t i = TD_SANITIZED ? 2 : 0; i < 3; i++) {
        char what[100];
        td_logits_options o = td_golden_precise();
        o.n_ranks = ranks[i];
        o.split = split;
        o.moe = moe;
        o.drafts = (uint32_t)i + 1;
        td_logits_result r = td_golden_run(&s, o);
        snprintf(what, sizeof(what), "%s, %u ranks, %s, %s", name, ranks[i],
                 td_cp_split_name(split), td_moe_mode_name(moe));
        td_golden_check_precise(&s, &r, what);
        td_logits_free(&r);
    }
    td_golden_close(&s);
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
    td_golden_set s = td_golden_open(name);
    for (uint32_t k = 0; k <= 4; k += TD_SANITIZED ? 4 : 1) {
        char what[64];
        td_logits_options o = td_golden_precise();
        o.drafts = k;
        o.chunk = k % 2 == 0 ? 64 : 128;
        td_logits_result r = td_golden_run(&s, o);
        snprintf(what, sizeof(what), "%s, %u drafts", name, k);
        td_golden_check_precise(&s, &r, what);
        td_logits_free(&r);
    }
    td_golden_close(&s);
}

TEST(precise_bf16_continues_alike_with_0_to_4_drafts_and_in_chunks)
{
    precise_with_drafts("v32-bf16");
}

TEST(precise_fp8_continues_alike_with_0_to_4_drafts_and_in_chunks)
{
    precise_with_drafts("v32-fp8");
}

TEST(precise_layers_and_selected_positions_are_the_golden_ones)
{
    static const char *const names[] = {"v32-bf16", "v32-fp8"};
    for (size_t i = 0; i < 2; i++) {
        td_golden_set s = td_golden_open(names[i]);
        td_logits_options o = td_golden_precise();
        o.dump_layers = 1;
        td_logits_result r = td_golden_run(&s, o);
        td_golden_check_last_row(&s, &r);
        td_logits_free(&r);
        o.n_ranks = 2;
        o.split = TD_CP_IN_SEQ;
        r = td_golden_run(&s, o);
        td_golden_check_last_row(&s, &r);
        td_logits_free(&r);
        td_golden_close(&s);
    }
}

TEST(precise_draft_layer_can_be_fed_the_state_before_the_final_norm)
{
    static const char *const names[] = {"v32-bf16", "v32-fp8"};
    for (size_t i = 0; i < 2; i++) {
        td_golden_set s = td_golden_open(names[i]);
        td_logits_options o = td_golden_precise();
        o.draft_prenorm = 1;
        o.drafts = 2;
        td_logits_result r = td_golden_run(&s, o);
        TD_TRUE(td_max_difference(td_golden_floats(s.golden, "mtp_logits_prenorm_state"),
                                  r.mtp_logits + (s.n_ids - 5) * s.vocab,
                                  4 * s.vocab) <= TD_GOLDEN_PRECISE_BOUND);
        TD_MEM(td_need(s.golden, "greedy_ids")->data, r.generated,
               TD_GOLDEN_N_GREEDY * sizeof(int32_t));
        td_logits_free(&r);
        td_golden_close(&s);
    }
}

static void quantised(const char *name)
{
    td_golden_set s = td_golden_open(name);
    td_logits_result r = td_golden_run(&s, (td_logits_options){.kv = TD_KV_FP8, .dump_layers = 1});
    td_golden_check_quantised(&s, &r, 4);
    td_logits_free(&r);
    r = td_golden_run(
        &s, (td_logits_options){.kv = TD_KV_FP8, .dump_layers = 1, .chunk = 64, .n_ranks = 2});
    td_golden_check_quantised(&s, &r, 4);
    td_logits_free(&r);
    td_golden_close(&s);
}

TEST(quantised_bf16_is_within_the_golden_bounds)
{
    quantised("v32-bf16");
}

TEST(quantised_fp8_is_within_the_golden_bounds)
{
    quantised("v32-fp8");
}
