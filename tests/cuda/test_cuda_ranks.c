/* Several ranks on one GPU, or on as many as TANDEM_TEST_GPUS says: the goldens, and the CPU's
 * numbers with the same ranks; context-parallel prefill with both splits and both MoE modes,
 * tensor-parallel decoding in crowds with drafts. */
#include "tests/cuda/cuda_test.h"
#include "tests/model/golden_set.h"
#include "tests/model/tensor_world.h"

TD_TEST_MAIN

static td_logits_options on_cuda(td_logits_options o)
{
    o.backend = TD_BACKEND_CUDA;
    o.ranks_per_gpu = td_harness_ranks_per_gpu(o.n_ranks > o.tensor ? o.n_ranks : o.tensor);
    return o;
}

static void golden_on_ranks(const char *name, td_moe_mode moe)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open(name);
    for (uint32_t n = 2; n <= 3; n++)
        for (int split = 0; split < 2; split++) {
            char what[100];
            td_logits_options o = td_golden_precise();
            o.n_ranks = n;
            o.split = split == 0 ? TD_CP_ROUND_ROBIN : TD_CP_IN_SEQ;
            o.moe = moe;
            o.drafts = n - 1;
            o.chunk = split == 0 ? 0 : 64;
            o.dump_layers = 1;
            td_logits_result gpu = td_golden_run(&s, on_cuda(o)), cpu = td_golden_run(&s, o);
            snprintf(what, sizeof(what), "%s, %u ranks, %s, %s", name, n, td_cp_split_name(o.split),
                     td_moe_mode_name(moe));
            td_golden_check_precise(&s, &gpu, what);
            td_golden_check_last_row(&s, &gpu);
            double most = td_max_difference(cpu.logits, gpu.logits, s.n_ids * s.vocab);
            printf("  from the CPU with as many ranks: %.2e\n", most);
            TD_TRUE(most <= TD_GOLDEN_PRECISE_BOUND);
            TD_MEM(cpu.generated, gpu.generated, TD_GOLDEN_N_GREEDY * sizeof(int32_t));
            td_logits_free(&gpu);
            td_logits_free(&cpu);
        }
    td_golden_close(&s);
}

TEST(precise_bf16_on_2_and_3_ranks_with_both_splits_fused)
{
    golden_on_ranks("v32-bf16", TD_MOE_FUSED);
}

TEST(precise_bf16_on_2_and_3_ranks_with_both_splits_ep)
{
    golden_on_ranks("v32-bf16", TD_MOE_EP);
}

TEST(precise_fp8_on_2_and_3_ranks_with_both_splits_fused)
{
    golden_on_ranks("v32-fp8", TD_MOE_FUSED);
}

TEST(precise_fp8_on_2_and_3_ranks_with_both_splits_ep)
{
    golden_on_ranks("v32-fp8", TD_MOE_EP);
}

TEST(quantised_on_2_and_3_ranks_is_within_the_golden_bounds)
{
    ct_need_gpu();
    static const char *const names[] = {"v32-bf16", "v32-fp8"};
    for (int i = 0; i < 2; i++) {
        td_golden_set s = td_golden_open(names[i]);
        for (uint32_t n = 2; n <= 3; n++) {
            td_logits_options o = {.kv = TD_KV_FP8, .dump_layers = 1, .chunk = 64, .n_ranks = n};
            o.moe = n == 2 ? TD_MOE_FUSED : TD_MOE_EP;
            td_logits_result r = td_golden_run(&s, on_cuda(o));
            td_golden_check_quantised(&s, &r, 0);
            td_logits_free(&r);
        }
        td_golden_close(&s);
    }
}

/* A prompt's bits depend neither on the split nor on chunks; two runs have the same. */
TEST(quantised_bits_are_the_same_for_both_splits_in_chunks_and_again)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open("v32-fp8");
    for (int moe = 0; moe < 2; moe++) {
        td_logits_options o = {.kv = TD_KV_FP8, .n_ranks = 3, .generate = 32};
        o.moe = moe == 0 ? TD_MOE_FUSED : TD_MOE_EP;
        td_logits_result want = td_golden_run(&s, on_cuda(o));
        for (int i = 0; i < 3; i++) {
            o.split = i == 1 ? TD_CP_IN_SEQ : TD_CP_ROUND_ROBIN;
            o.chunk = i == 2 ? 64 : 0;
            td_logits_result r = td_golden_run(&s, on_cuda(o));
            TD_MEM(want.logits, r.logits, s.n_ids * s.vocab * sizeof(float));
            TD_MEM(want.generated, r.generated, 32 * sizeof(int32_t));
            td_logits_free(&r);
        }
        td_logits_free(&want);
    }
    td_golden_close(&s);
}

static void golden_tensor(const char *name, uint32_t most)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open(name);
    for (uint32_t n = 2; n <= most; n++)
        for (uint32_t k = 0; k <= 4; k++) {
            char what[64];
            td_logits_options o = td_golden_precise();
            o.tensor = n;
            o.drafts = k;
            o.n_ranks = k == 2 ? 2 : 1;
            td_logits_result r = td_golden_run(&s, on_cuda(o));
            snprintf(what, sizeof(what), "%s, decoded on %u ranks, %u drafts", name, n, k);
            td_golden_check_precise(&s, &r, what);
            td_logits_free(&r);
        }
    td_golden_close(&s);
}

TEST(precise_bf16_is_decoded_alike_on_2_and_3_ranks_with_0_to_4_drafts)
{
    golden_tensor("v32-bf16", 3); /* 2 heads: the third rank has none */
}

TEST(precise_fp8_is_decoded_alike_on_2_3_and_4_ranks_with_0_to_4_drafts)
{
    golden_tensor("v32-fp8", 4);
}

static void crowd_equals_alone(int precise)
{
    static const int sizes[] = {1, 2, 7, 32};
    static td_tensor_world w;
    static td_tensor_request alone[TD_TENSOR_MAX_SEQS];
    ct_need_gpu();
    td_tensor_world_open(&w, td_source_path("models/tiny-v32"), TD_BACKEND_CUDA, precise, 2);
    for (int i = 0; i < TD_TENSOR_MAX_SEQS; i++) {
        td_tensor_world_run(&w, i, 1, 0);
        alone[i] = w.r[i];
    }
    for (uint32_t k = 0; k <= 4; k++)
        for (int s = 0; s < 4; s++) {
            td_tensor_world_run(&w, 0, sizes[s], k);
            for (int i = 0; i < sizes[s]; i++)
                TD_MEM(alone[i].tokens[0], w.r[i].tokens[0],
                       (size_t)alone[i].n_tokens[0] * sizeof(int32_t));
        }
    td_tensor_world_close(&w);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_on_2_ranks_quantised)
{
    crowd_equals_alone(0);
}

TEST(a_sequence_in_a_crowd_with_0_to_4_drafts_is_the_same_alone_on_2_ranks_precise)
{
    crowd_equals_alone(1);
}

/* Recorded or enqueued, alone or in a crowd, whatever the drafts: the same tokens. */
TEST(steps_recorded_on_two_gpus_equal_those_enqueued_in_crowds_with_0_to_4_drafts)
{
    static const int sizes[] = {1, 6, 32};
    static td_tensor_world w;
    static td_tensor_request alone[TD_TENSOR_MAX_SEQS];
    ct_need_gpu();
    if (td_harness_ranks_per_gpu(2) > 1)
        td_skip("ranks that share a GPU do not record: needs two, and TANDEM_TEST_GPUS=2");
    for (int precise = 0; precise < 2; precise++) {
        td_tensor_world_open(&w, td_source_path("models/tiny-v32"), TD_BACKEND_CUDA, precise, 2);
        w.enqueued = 1;
        for (int i = 0; i < TD_TENSOR_MAX_SEQS; i++) {
            td_tensor_world_run(&w, i, 1, 0);
            alone[i] = w.r[i];
        }
        TD_EQ(0, w.n_graphs);
        for (uint32_t k = 0; k <= 4; k++)
            for (int i = 0; i < 6; i++) {
                const int n = sizes[i / 2];
                w.enqueued = i % 2;
                td_tensor_world_run(&w, 0, n, k);
                TD_EQ(w.enqueued ? 0 : 6, w.n_graphs);
                for (int j = 0; j < n; j++)
                    TD_MEM(alone[j].tokens[0], w.r[j].tokens[0],
                           (size_t)alone[j].n_tokens[0] * sizeof(int32_t));
            }
        td_tensor_world_close(&w);
    }
}

TEST(ranks_that_find_no_gpu_are_refused_by_name)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open("v32-fp8");
    td_logits_result r;
    td_err err = {0};
    td_logits_options o = {.model = s.dir,
                           .kv = TD_KV_FP8,
                           .n_ranks = 2,
                           .backend = TD_BACKEND_CUDA,
                           .gpu = 62,
                           .ranks_per_gpu = 1};
    TD_EQ(TD_UNSUPPORTED, td_logits_run(&o, s.ids, s.n_ids, &r, &err));
    TD_TRUE(strstr(err.text, "GPU 62 was asked for") != NULL);
    td_logits_free(&r);
    td_golden_close(&s);
}
