/* A slice written as a folder and the same slice made where it is loaded: one model. */
#include "common/base/fingerprint.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/fingerprint.h"
#include "model/model_file.h"
#include "model/slice.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"
#include "tools/tandem-logits/run.h"

#include <math.h>
#include <sys/wait.h>

TD_TEST_MAIN

#define SMALL                                                                                      \
    "slice:layers=2,dense=1,drafts=1,hidden=256,inter=384,moe-inter=128,experts=16,heads=4,"       \
    "q-lora=128,index-heads=4,topk=64,vocab=512,positions=1024,seed=7"

/* tandem-slice with the same keys; its exit status. */
static int run_tool(const char *dir, const char *more)
{
    char command[4096];
    snprintf(command, sizeof(command),
             "'%s' --out '%s' --layers 2 --dense 1 --hidden 256 --inter 384 --moe-inter 128 "
             "--experts 16 --heads 4 --q-lora 128 --index-heads 4 --topk 64 --vocab 512 "
             "--positions 1024 --seed 7 --shard-bytes 1MiB %s 2>/dev/null",
             getenv("TANDEM_SLICE"), dir, more);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(made_and_written_tensors_have_the_same_bytes)
{
    const char *dir = td_scratch_path(td_scratch_dir(), "new");
    td_checkpoint *made = NULL, *written = NULL;
    TD_EQ(0, run_tool(dir, ""));
    TD_EQ(TD_OK, td_checkpoint_open(dir, &written, NULL));
    TD_EQ(TD_OK, td_checkpoint_open(SMALL, &made, NULL));
    TD_EQ(td_checkpoint_count(made), td_checkpoint_count(written));
    for (size_t i = 0; i < td_checkpoint_count(made); i++) {
        const td_tensor *a = td_checkpoint_at(made, i), *b = td_checkpoint_at(written, i);
        TD_STR(a->name, b->name);
        TD_EQ(a->dtype, b->dtype);
        TD_EQ(a->n_dims, b->n_dims);
        TD_EQ(a->n_bytes, b->n_bytes);
        unsigned char *bytes = malloc(a->n_bytes + 1);
        /* In two parts that meet at an odd byte. */
        uint64_t first = a->n_bytes / 3 | 1;
        TD_EQ(TD_OK, td_tensor_read(a, first, a->n_bytes - first, bytes + first, NULL));
        TD_EQ(TD_OK, td_tensor_read(a, 0, first, bytes, NULL));
        TD_MEM(bytes, b->data, a->n_bytes);
        free(bytes);
    }
    td_checkpoint_close(made);
    td_checkpoint_close(written);
}

static void run_model(const char *model, uint32_t n_ranks, td_moe_mode moe, td_logits_result *out)
{
    int32_t ids[100];
    td_err err = {0};
    td_logits_options o = {.model = model,
                           .kv = TD_KV_FP8,
                           .n_ranks = n_ranks,
                           .moe = moe,
                           .chunk = 64,
                           .n_threads = 2,
                           .generate = 4,
                           .drafts = 2};
    for (int i = 0; i < 100; i++)
        ids[i] = i * 37 % 512;
    td_status st = td_logits_run(&o, ids, 100, out, &err);
    if (st < 0)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
}

TEST(made_and_written_slices_compute_the_same)
{
    const char *dir = td_scratch_path(td_scratch_dir(), "new");
    td_logits_result a, b;
    TD_EQ(0, run_tool(dir, ""));
    for (int i = 0; i < 2; i++) {
        run_model(dir, 1 + (uint32_t)i, i == 0 ? TD_MOE_FUSED : TD_MOE_EP, &a);
        run_model(SMALL, 1 + (uint32_t)i, i == 0 ? TD_MOE_FUSED : TD_MOE_EP, &b);
        TD_EQ(1, a.has_draft);
        TD_MEM(a.logits, b.logits, 100 * 512 * sizeof(float));
        TD_MEM(a.mtp_logits, b.mtp_logits, 99 * 512 * sizeof(float));
        TD_MEM(a.generated, b.generated, 4 * sizeof(int32_t));
        td_logits_free(&a);
        td_logits_free(&b);
    }
}

TEST(activations_stay_sane_through_many_layers)
{
    td_logits_result r;
    double sum = 0;
    run_model("slice:layers=12,hidden=256,inter=384,moe-inter=128,experts=16,heads=4,q-lora=128,"
              "index-heads=4,topk=64,vocab=512,positions=1024",
              1, TD_MOE_FUSED, &r);
    for (size_t i = 0; i < (size_t)100 * 512; i++)
        sum += (double)r.logits[i] * (double)r.logits[i];
    double deviation = sqrt(sum / (100 * 512));
    TD_TRUE(deviation > 0.1 && deviation < 10); /* false for NaN */
    td_logits_free(&r);
}

TEST(the_defaults_are_the_published_shapes)
{
    td_model_config c;
    td_checkpoint *ckpt = NULL;
    TD_EQ(TD_OK, td_model_config_load("slice:layers=61,dense=3", &c, NULL));
    TD_EQ(7168, c.hidden_size);
    TD_EQ(129280, c.vocab_size);
    TD_EQ(256, c.n_experts);
    TD_EQ(2048, c.index_topk);
    TD_EQ(1, c.n_draft_layers);
    TD_TRUE(c.fp8 && c.ue8m0 && c.rope.yarn);
    /* model-spec A.2: 92425 tensors are published, 46600 of them scales */
    TD_EQ(TD_OK, td_checkpoint_open("slice:layers=61,dense=3", &ckpt, NULL));
    TD_EQ(92425, td_checkpoint_count(ckpt));
    const td_tensor *t =
        td_checkpoint_find(ckpt, "model.layers.60.self_attn.kv_a_proj_with_mqa.weight_scale_inv");
    TD_TRUE(t != NULL && t->shape[0] == 5 && t->shape[1] == 56);
    td_checkpoint_close(ckpt);
}

static void refuse(const char *model, const char *text)
{
    td_model_config c;
    td_checkpoint *ckpt = NULL;
    td_err err = {0};
    TD_EQ(TD_CONFIG, td_model_config_load(model, &c, &err));
    if (strstr(err.text, text) == NULL)
        fprintf(stderr, "'%s', not '%s'\n", err.text, text);
    TD_TRUE(strstr(err.text, text) != NULL);
    TD_EQ(TD_CONFIG, td_checkpoint_open(model, &ckpt, &err));
    TD_TRUE(strstr(err.text, text) != NULL);
}

TEST(bad_descriptions_are_refused_by_key)
{
    refuse("slice:layers=0", "'layers=0': layers must be 1 to 254");
    refuse("slice:layers=", "'layers=': layers must be");
    refuse("slice:layers", "'layers': layers must be");
    refuse("slice:layers=4x", "'layers=4x'");
    refuse("slice:layers=-1", "'layers=-1'");
    refuse("slice:seed=99999999999999999999", "seed must be 0 to 4294967295");
    refuse("slice:depth=4", "'depth=4' is none of its keys: layers dense");
    refuse("slice:layers=2,dense=3", "3 dense layers of 2");
    refuse("slice:experts=20", "multiples of 8");
    refuse("slice:hidden=100", "multiples of 8");
    refuse("slice:layers=4,,dense=1", "''");
}

TEST(the_tool_leaves_alone_what_is_there)
{
    const char *dir = td_scratch_path(td_scratch_dir(), "new");
    TD_EQ(2, run_tool(dir, "--dense 5"));
    TD_EQ(2, run_tool(dir, "--experts 4"));
    TD_EQ(2, run_tool(dir, "--depth 4"));
    TD_EQ(0, run_tool(dir, "--drafts 0"));
    TD_EQ(2, run_tool(dir, "--drafts 0"));
    TD_EQ(1, run_tool("/nowhere/at/all", ""));
}

TEST(config_only_writes_the_config_that_is_made_and_nothing_else)
{
    const char *dir = td_scratch_path(td_scratch_dir(), "new");
    char *made = NULL, *written = NULL;
    size_t n_made = 0, n_written = 0;
    TD_EQ(0, run_tool(dir, "--config-only"));
    TD_EQ(TD_OK, td_model_file_read(SMALL, "config.json", 8192, &made, &n_made, NULL));
    TD_EQ(TD_OK, td_model_file_read(dir, "config.json", 8192, &written, &n_written, NULL));
    TD_EQ(n_made, n_written);
    TD_MEM(made, written, n_made);
    free(made);
    free(written);
    TD_EQ(TD_NOT_FOUND, td_model_file_read(SMALL, "tokenizer.json", 8192, &made, &n_made, NULL));
    td_checkpoint *ckpt = NULL;
    TD_TRUE(td_checkpoint_open(dir, &ckpt, NULL) < 0);
    TD_EQ(2, run_tool(dir, "--config-only"));
}

TEST(two_daemons_tell_slices_apart)
{
    td_checkpoint *ckpt = NULL;
    td_fingerprint a = {0}, b = {0}, c = {0};
    char text[256];
    const char *dir = td_scratch_path(td_scratch_dir(), "new");
    TD_EQ(0, run_tool(dir, ""));
    TD_EQ(TD_OK, td_checkpoint_open(SMALL, &ckpt, NULL));
    TD_EQ(TD_OK, td_fingerprint_model(&a, SMALL, ckpt, NULL));
    td_checkpoint_close(ckpt);
    TD_EQ(TD_OK, td_checkpoint_open(dir, &ckpt, NULL));
    TD_EQ(TD_OK, td_fingerprint_model(&b, dir, ckpt, NULL));
    td_checkpoint_close(ckpt);
    TD_EQ(TD_OK, td_checkpoint_open(SMALL ",seed=8", &ckpt, NULL));
    TD_EQ(TD_OK, td_fingerprint_model(&c, SMALL ",seed=8", ckpt, NULL));
    td_checkpoint_close(ckpt);
    TD_EQ(0, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_EQ(1, td_fingerprint_diff(&a, &c, text, sizeof(text)));
}
