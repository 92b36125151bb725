/* The whole model on CUDA: the golden sets, the CPU backend's text, drafts on and off. */
#include "tests/cuda/cuda_test.h"
#include "tests/model/golden_set.h"

TD_TEST_MAIN

static td_logits_options on_cuda(td_logits_options o)
{
    o.backend = TD_BACKEND_CUDA;
    return o;
}

static void precise(const char *name)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open(name);
    for (uint32_t k = 0; k <= 4; k++) {
        char what[64];
        td_logits_options o = on_cuda(td_golden_precise());
        o.drafts = k;
        o.chunk = k == 1 ? 64 : k == 2 ? 128 : 0;
        o.dump_layers = 1;
        td_logits_result r = td_golden_run(&s, o);
        snprintf(what, sizeof(what), "%s, %u drafts", name, k);
        td_golden_check_precise(&s, &r, what);
        td_golden_check_last_row(&s, &r);
        td_logits_free(&r);
    }
    td_golden_close(&s);
}

TEST(precise_bf16_equals_the_golden_set_with_0_to_4_drafts_and_in_chunks)
{
    precise("v32-bf16");
}

TEST(precise_fp8_equals_the_golden_set_with_0_to_4_drafts_and_in_chunks)
{
    precise("v32-fp8");
}

static void quantised(const char *name)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open(name);
    for (uint32_t chunk = 0; chunk <= 64; chunk += 64) {
        td_logits_options o = {.kv = TD_KV_FP8, .dump_layers = 1, .chunk = chunk};
        td_logits_result r = td_golden_run(&s, on_cuda(o));
        td_golden_check_quantised(&s, &r, 0);
        td_logits_free(&r);
    }
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

/* A prompt of the bundled model: ids from a fixed walk over its vocabulary. */
static td_golden_set bundled(int32_t *ids, uint32_t n)
{
    td_golden_set s = {.ids = ids, .n_ids = n};
    snprintf(s.dir, sizeof(s.dir), "%s", td_source_path("models/tiny-v32"));
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i == 0 ? 0 : (int32_t)(256 + (uint64_t)i * i * 2654435761u % 3800);
    return s;
}

TEST(a_recorded_step_gives_what_its_operations_give_one_by_one)
{
    ct_need_gpu();
    td_golden_set s = td_golden_open("v32-fp8");
    for (uint32_t k = 0; k <= 4; k += 2) {
        td_logits_options o = on_cuda((td_logits_options){.kv = TD_KV_FP8, .generate = 64});
        o.drafts = k;
        td_logits_result recorded = td_golden_run(&s, o);
        o.no_graphs = 1;
        td_logits_result eager = td_golden_run(&s, o);
        TD_TRUE(recorded.graphs.n_graphs > 0 && recorded.graphs.n_nodes > 0);
        TD_EQ(0, eager.graphs.n_graphs);
        TD_MEM(eager.generated, recorded.generated, 64 * sizeof(int32_t));
        TD_EQ(eager.n_accepted, recorded.n_accepted);
        td_logits_free(&recorded);
        td_logits_free(&eager);
    }
    td_golden_close(&s);
}

#define N_PROMPT 700
#define N_MORE 200

TEST(precise_text_of_the_bundled_model_equals_the_cpus)
{
    ct_need_gpu();
    int32_t ids[N_PROMPT];
    td_golden_set s = bundled(ids, N_PROMPT);
    td_logits_options o = {.precise = 1, .kv = TD_KV_F32, .generate = N_MORE, .chunk = 256};
    td_logits_result cpu = td_golden_run(&s, o), gpu = td_golden_run(&s, on_cuda(o));
    double most =
        td_max_difference(cpu.logits, gpu.logits, (size_t)N_PROMPT * (size_t)cpu.config.vocab_size);
    printf("largest difference of a logit: %.2e\n", most);
    TD_TRUE(most <= 2e-3);
    TD_MEM(cpu.generated, gpu.generated, N_MORE * sizeof(int32_t));
    td_logits_free(&cpu);
    td_logits_free(&gpu);
}

TEST(quantised_text_is_the_same_with_0_to_4_drafts_and_both_caches)
{
    ct_need_gpu();
    int32_t ids[N_PROMPT];
    td_golden_set s = bundled(ids, N_PROMPT);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        td_logits_options o = {.kv = bf16 ? TD_KV_BF16 : TD_KV_FP8, .generate = N_MORE};
        td_logits_result want = td_golden_run(&s, on_cuda(o));
        for (uint32_t k = 1; k <= 4; k++) {
            o.drafts = k;
            o.chunk = 64 * k;
            td_logits_result got = td_golden_run(&s, on_cuda(o));
            printf("%u drafts: %llu of %llu accepted\n", k, (unsigned long long)got.n_accepted,
                   (unsigned long long)got.n_drafted);
            TD_MEM(want.generated, got.generated, N_MORE * sizeof(int32_t));
            TD_MEM(want.logits, got.logits,
                   (size_t)N_PROMPT * (size_t)want.config.vocab_size * sizeof(float));
            td_logits_free(&got);
        }
        td_logits_free(&want);
    }
}
