/* Two checkpoints that differ anywhere that matters differ in a field that says so. */
#include "model/fingerprint.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

TD_TEST_MAIN

static td_fingerprint of(const td_made_model *m, const char *tokenizer)
{
    td_fingerprint fp = {0};
    td_checkpoint *ckpt = NULL;
    const char *dir = td_scratch_dir();
    td_make_model(dir, m);
    if (tokenizer != NULL)
        td_scratch_write(td_scratch_path(dir, "tokenizer.json"), tokenizer, strlen(tokenizer));
    TD_EQ(TD_OK, td_checkpoint_open(dir, &ckpt, NULL));
    TD_EQ(TD_OK, td_fingerprint_model(&fp, dir, ckpt, NULL));
    td_checkpoint_close(ckpt);
    return fp;
}

TEST(the_same_checkpoint_is_equal_however_it_is_cut)
{
    char text[200];
    td_made_model m = td_made_model_odd();
    td_fingerprint a = of(&m, "{}");
    m.shards = 4;
    td_fingerprint b = of(&m, "{}");
    TD_EQ(0, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_STR("", text);
}

TEST(other_weights_shapes_and_tokenizers_show_in_their_fields)
{
    char text[400];
    td_made_model m = td_made_model_odd();
    td_fingerprint a = of(&m, "{}"), b = of(&m, "{ }"), c = of(&m, NULL);
    TD_EQ(1, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_TRUE(strncmp(text, "tokenizer: ours ", 16) == 0);
    TD_EQ(1, td_fingerprint_diff(&a, &c, text, sizeof(text)));
    TD_TRUE(strstr(text, "theirs none") != NULL);
    m.seed = 2;
    b = of(&m, "{}");
    TD_EQ(1, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_TRUE(strncmp(text, "tensor-samples: ", 16) == 0);
    m = td_made_model_odd();
    m.f32_norms = 1;
    b = of(&m, "{}");
    td_fingerprint_diff(&a, &b, text, sizeof(text));
    TD_TRUE(strstr(text, "tensor-shapes") != NULL && strstr(text, "config") == NULL);
    m = td_made_model_odd();
    m.max_positions = 2048;
    b = of(&m, "{}");
    TD_EQ(1, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_TRUE(strncmp(text, "config: ", 8) == 0);
}

TEST(the_run_is_part_of_it)
{
    char text[400];
    td_kv_layout fp8, bf16;
    td_fingerprint a = {0}, b = {0};
    TD_EQ(TD_OK, td_kv_layout_init(&fp8, TD_KV_FP8, 3, 1, 512, 64, 128, NULL));
    TD_EQ(TD_OK, td_kv_layout_init(&bf16, TD_KV_BF16, 3, 1, 512, 64, 128, NULL));
    td_fingerprint_run(&a, &fp8, 0, 0);
    td_fingerprint_run(&b, &fp8, 0, 0);
    TD_EQ(0, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    td_fingerprint_run(&b, &bf16, 0, 1);
    TD_EQ(4, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_TRUE(strstr(text, "kv-dtype: ours fp8, theirs bf16") != NULL);
    TD_TRUE(strstr(text, "draft-state: ours post-norm, theirs pre-norm") != NULL);
}

TEST(fields_are_set_replaced_and_found_and_missing_ones_count)
{
    char text[64], little[10];
    td_fingerprint a = {0}, b = {0};
    td_fingerprint_set(&a, "protocol", "%d", 1);
    td_fingerprint_set(&a, "protocol", "%d", 2);
    TD_EQ(1, a.n);
    TD_STR("2", td_fingerprint_get(&a, "protocol"));
    TD_TRUE(td_fingerprint_get(&a, "x") == NULL);
    TD_EQ(1, td_fingerprint_diff(&a, &b, text, sizeof(text)));
    TD_STR("protocol: ours 2, theirs (none)", text);
    TD_EQ(1, td_fingerprint_diff(&b, &a, text, sizeof(text)));
    TD_STR("protocol: ours (none), theirs 2", text);
    TD_EQ(1, td_fingerprint_diff(&a, &b, little, sizeof(little)));
    TD_STR("protocol:", little);
    TD_EQ(1, td_fingerprint_diff(&a, &b, NULL, 0));
}
