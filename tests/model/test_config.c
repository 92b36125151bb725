/* config.json: what is read, and that whatever we cannot compute faithfully is refused by name. */
#include "model/config.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

#include <math.h>

TD_TEST_MAIN

/* The published file, without what differs between cases. */
#define COMMON                                                                                     \
    "\"vocab_size\":129280,\"hidden_size\":7168,\"intermediate_size\":18432,"                      \
    "\"moe_intermediate_size\":2048,\"num_hidden_layers\":61,\"num_attention_heads\":128,"         \
    "\"num_key_value_heads\":128,\"n_routed_experts\":256,\"n_shared_experts\":1,"                 \
    "\"num_experts_per_tok\":8,\"n_group\":8,\"topk_group\":4,\"routed_scaling_factor\":2.5,"      \
    "\"norm_topk_prob\":true,\"hidden_act\":\"silu\",\"q_lora_rank\":1536,\"kv_lora_rank\":512,"   \
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"index_n_heads\":64,"    \
    "\"index_head_dim\":128,\"index_topk\":2048,\"rms_norm_eps\":1e-06,"                           \
    "\"max_position_embeddings\":163840,\"num_nextn_predict_layers\":1,\"moe_layer_freq\":1,"      \
    "\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\",\"attention_bias\":false,"          \
    "\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1"
#define TYPE "\"model_type\":\"deepseek_v32\""
#define YARN                                                                                       \
    "{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,"                  \
    "\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":1.0}"
#define FP8                                                                                        \
    "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"scale_fmt\":\"ue8m0\","                          \
    "\"weight_block_size\":[128,128],\"activation_scheme\":\"dynamic\"}"
#define DENSE "\"first_k_dense_replace\":3"
#define THETA "\"rope_theta\":10000"
#define V32                                                                                        \
    "{" TYPE "," COMMON "," DENSE "," THETA ",\"rope_scaling\":" YARN                              \
    ",\"quantization_config\":" FP8 "}"

static td_status parse(const char *text, td_model_config *c, td_err *err)
{
    size_t n = strlen(text);
    void *guarded = td_guard_alloc(text, n); /* not even a NUL behind it */
    td_status st = td_model_config_parse(guarded, n, c, err);
    td_guard_free(guarded, n);
    return st;
}

/* V32 with its first `from` replaced by `to`. */
static void refuse(const char *from, const char *to, td_status want, const char *text)
{
    char json[8192];
    td_model_config c;
    td_err err = {0};
    const char *at = strstr(V32, from);
    TD_TRUE(at != NULL);
    snprintf(json, sizeof(json), "%.*s%s%s", (int)(at - V32), V32, to, at + strlen(from));
    td_status st = parse(json, &c, &err);
    if (st != want || strstr(err.text, text) == NULL)
        fprintf(stderr, "%s -> %s: '%s', not '%s'\n", from, to, err.text, text);
    TD_EQ(want, st);
    TD_TRUE(strstr(err.text, text) != NULL);
}

TEST(the_published_file_is_read_whole)
{
    td_model_config c;
    td_err err;
    TD_EQ(TD_OK, parse(V32, &c, &err));
    TD_EQ(7168, c.hidden_size);
    TD_EQ(61, c.n_layers);
    TD_EQ(128, c.n_heads);
    TD_EQ(2048, c.index_topk);
    TD_EQ(163840, c.max_positions);
    TD_TRUE(c.rope.yarn && c.rope.factor == 40 && c.rope.theta == 10000);
    TD_EQ(4096, c.rope.original_max_positions);
    TD_TRUE(c.fp8 && c.ue8m0 && c.norm_topk_prob && !c.rope.indexer_interleaved);
    TD_TRUE(!c.layer_is_moe[2] && c.layer_is_moe[3] && c.layer_is_moe[60] && c.layer_is_moe[61]);
    TD_EQ(14336, td_model_hidden_bytes(&c, 0));
    TD_EQ(28672, td_model_hidden_bytes(&c, 1));
}

TEST(synonyms_and_absent_keys_mean_what_the_specification_says)
{
    td_model_config c;
    TD_EQ(TD_OK, parse("{" TYPE "," COMMON "," DENSE "," THETA "}", &c, NULL));
    TD_TRUE(!c.fp8 && !c.rope.yarn);
    TD_EQ(TD_OK, parse("{" TYPE "," COMMON "," DENSE ",\"rope_scaling\":null,"
                       "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":50000,"
                       "\"factor\":4,\"original_max_position_embeddings\":2048},"
                       "\"quantization_config\":{\"quant_method\":\"fp8\","
                       "\"weight_block_size\":[128,128]}}",
                       &c, NULL));
    TD_TRUE(c.rope.yarn && c.rope.theta == 50000 && c.rope.factor == 4 && c.rope.beta_fast == 32 &&
            c.rope.mscale_all_dim == 1);
    TD_TRUE(c.fp8 && !c.ue8m0);
    TD_EQ(TD_OK, parse("{" TYPE "," COMMON "," DENSE "," THETA
                       ",\"rope_parameters\":{\"rope_type\":\"default\"},"
                       "\"indexer_rope_interleave\":true}",
                       &c, NULL));
    TD_TRUE(!c.rope.yarn && c.rope.indexer_interleaved);
}

TEST(layer_kinds_may_be_listed_instead)
{
    char json[8192], list[2048] = "";
    td_model_config c;
    for (int i = 0; i < 61; i++)
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s\"%s\"", i == 0 ? "" : ",",
                 i % 2 == 0 ? "dense" : "sparse");
    snprintf(json, sizeof(json), "{" TYPE "," COMMON "," THETA ",\"mlp_layer_types\":[%s]}", list);
    TD_EQ(TD_OK, parse(json, &c, NULL));
    TD_TRUE(!c.layer_is_moe[0] && c.layer_is_moe[1] && !c.layer_is_moe[60] && c.layer_is_moe[61]);
    refuse(DENSE, "\"mlp_layer_types\":[\"dense\"]", TD_CONFIG, "mlp_layer_types");
    refuse(DENSE, "\"x\":1", TD_CONFIG, "first_k_dense_replace");
    refuse(DENSE, "\"first_k_dense_replace\":62", TD_CONFIG, "first_k_dense_replace 62");
}

TEST(refuses_other_models_by_name)
{
    refuse("deepseek_v32", "deepseek_v3", TD_UNSUPPORTED, "model_type 'deepseek_v3'");
    refuse("deepseek_v32", "deepseek_v4", TD_UNSUPPORTED, "model_type 'deepseek_v4'");
    refuse(TYPE, "\"dspark_block_size\":5," TYPE, TD_UNSUPPORTED, "dspark_block_size");
    refuse(TYPE, "\"model_type\":3", TD_CONFIG, "model_type");
    refuse(TYPE, "\"architectures\":[]", TD_CONFIG, "model_type");
}

TEST(refuses_arithmetic_that_it_does_not_do)
{
    refuse("silu", "gelu", TD_UNSUPPORTED, "hidden_act 'gelu': only 'silu'");
    refuse("\"sigmoid\"", "\"softmax\"", TD_UNSUPPORTED, "scoring_func");
    refuse("noaux_tc", "greedy", TD_UNSUPPORTED, "topk_method");
    refuse("\"moe_layer_freq\":1", "\"moe_layer_freq\":2", TD_UNSUPPORTED, "moe_layer_freq");
    refuse("\"attention_bias\":false", "\"attention_bias\":true", TD_UNSUPPORTED, "attention_bias");
    refuse("\"num_key_value_heads\":128", "\"num_key_value_heads\":8", TD_UNSUPPORTED,
           "num_key_value_heads 8");
    refuse("\"num_nextn_predict_layers\":1", "\"num_nextn_predict_layers\":2", TD_UNSUPPORTED,
           "num_nextn_predict_layers 2");
    refuse("\"num_nextn_predict_layers\":1", "\"num_nextn_predict_layers\":255", TD_UNSUPPORTED,
           "num_nextn_predict_layers 255");
    refuse("\"type\":\"yarn\"", "\"type\":\"linear\"", TD_UNSUPPORTED,
           "rope_scaling: type 'linear'");
    refuse("\"mscale\":1.0", "\"mscale\":0.7", TD_UNSUPPORTED, "mscale 0.7 differs");
    refuse("\"quant_method\":\"fp8\"", "\"quant_method\":\"awq\"", TD_UNSUPPORTED, "quant_method");
    refuse("\"fmt\":\"e4m3\"", "\"fmt\":\"e5m2\"", TD_UNSUPPORTED, "fmt");
    refuse("[128,128]", "[32,32]", TD_UNSUPPORTED, "weight_block_size");
    refuse("[128,128]", "[128]", TD_UNSUPPORTED, "weight_block_size");
    refuse("\"dynamic\"", "\"static\"", TD_UNSUPPORTED, "activation_scheme");
    refuse("\"ue8m0\"", "\"e5m3\"", TD_UNSUPPORTED, "scale_fmt");
    refuse("\"kv_lora_rank\":512", "\"kv_lora_rank\":500", TD_UNSUPPORTED, "kv_lora_rank 500");
    refuse("\"qk_rope_head_dim\":64", "\"qk_rope_head_dim\":130", TD_UNSUPPORTED,
           "qk_rope_head_dim 130");
}

TEST(refuses_constants_of_another_type)
{
    refuse("\"attention_bias\":false", "\"attention_bias\":\"yes\"", TD_CONFIG, "attention_bias");
    refuse("\"attention_bias\":false", "\"attention_bias\":[]", TD_CONFIG, "attention_bias");
    refuse("\"moe_layer_freq\":1", "\"moe_layer_freq\":\"1\"", TD_CONFIG, "moe_layer_freq");
    refuse("\"hidden_act\":\"silu\"", "\"hidden_act\":1", TD_UNSUPPORTED, "hidden_act");
}

/* Every key whose value is an object, given something else; and objects' keys given objects. */
TEST(refuses_arrays_and_nested_values_where_objects_stand)
{
    static const char *const odd[] = {
        "[]", "[1]", "[\"yarn\",{\"type\":\"yarn\"}]", "[[]]", "7", "true", "\"yarn\""};
    static const char *const keys[] = {"rope_scaling", "rope_parameters", "quantization_config"};
    for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++)
        for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
            char json[8192], text[64];
            td_model_config c;
            td_err err = {0};
            snprintf(json, sizeof(json), "{" TYPE "," COMMON "," DENSE "," THETA ",\"%s\":%s}",
                     keys[k], odd[i]);
            snprintf(text, sizeof(text), "%s: not an object", keys[k]);
            TD_EQ(TD_CONFIG, parse(json, &c, &err));
            TD_STR(text, err.text);
        }
    refuse("\"type\":\"yarn\"", "\"type\":[\"yarn\"]", TD_UNSUPPORTED, "rope_scaling: type");
    refuse("\"type\":\"yarn\"", "\"type\":{\"type\":\"yarn\"}", TD_UNSUPPORTED, "rope_scaling");
    refuse("\"factor\":40", "\"factor\":[40]", TD_CONFIG, "rope_scaling: factor");
    refuse("\"fp8\"", "[\"fp8\"]", TD_UNSUPPORTED, "quant_method");
    refuse("[128,128]", "[[128],128]", TD_UNSUPPORTED, "weight_block_size");
    refuse("[128,128]", "{\"a\":128,\"b\":128}", TD_UNSUPPORTED, "weight_block_size");
    refuse(DENSE, "\"mlp_layer_types\":{}", TD_CONFIG, "mlp_layer_types");
    refuse("\"hidden_size\":7168", "\"hidden_size\":[7168]", TD_CONFIG, "hidden_size");
}

TEST(refuses_rope_keys_that_it_does_not_understand)
{
    refuse("\"type\":\"yarn\",", "", TD_CONFIG, "rope_scaling: factor without a type");
    refuse(YARN, "{\"mscale\":1.0}", TD_CONFIG, "rope_scaling: mscale without a type");
    refuse("\"mscale\":1.0", "\"attention_factor\":1.2", TD_UNSUPPORTED,
           "rope_scaling: unknown key 'attention_factor'");
    refuse(YARN, "{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}", TD_UNSUPPORTED,
           "rope_scaling: unknown key 'partial_rotary_factor'");
    refuse("\"type\":\"yarn\"", "\"type\":\"yarn\",\"rope_type\":\"default\"", TD_CONFIG,
           "rope_scaling: type and rope_type differ");
}

/* Theta may stand at the top, in rope_parameters and in rope_scaling. */
TEST(theta_is_compared_where_it_was_given)
{
    td_model_config c;
    td_err err = {0};
#define ROPE "\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":2048"
#define HEAD "{" TYPE "," COMMON "," DENSE
    TD_EQ(TD_OK, parse(HEAD ",\"rope_scaling\":{" ROPE "},\"rope_parameters\":{" ROPE
                            ",\"rope_theta\":50000}}",
                       &c, &err));
    TD_TRUE(c.rope.theta == 50000 && c.rope.yarn && c.rope.factor == 4);
    TD_EQ(TD_OK, parse(HEAD ",\"rope_scaling\":{" ROPE
                            ",\"rope_theta\":50000},\"rope_parameters\":{" ROPE "}}",
                       &c, &err));
    TD_TRUE(c.rope.theta == 50000 && c.rope.yarn);
    TD_EQ(TD_OK,
          parse(HEAD "," THETA ",\"rope_parameters\":{" ROPE ",\"rope_theta\":10000}}", &c, &err));
    TD_EQ(TD_CONFIG,
          parse(HEAD "," THETA ",\"rope_parameters\":{" ROPE ",\"rope_theta\":50000}}", &c, &err));
    TD_STR("rope_parameters: rope_theta 50000: elsewhere 10000", err.text);
    TD_EQ(TD_CONFIG,
          parse(HEAD ",\"rope_scaling\":{" ROPE ",\"rope_theta\":10000},\"rope_parameters\":{" ROPE
                     ",\"rope_theta\":50000}}",
                &c, &err));
    TD_EQ(TD_CONFIG,
          parse(HEAD ",\"rope_scaling\":{" ROPE "},\"rope_parameters\":{" ROPE "}}", &c, &err));
    TD_STR("rope_theta: missing", err.text);
#undef ROPE
#undef HEAD
}

TEST(refuses_values_that_cannot_be)
{
    refuse("\"hidden_size\":7168,", "", TD_CONFIG, "hidden_size: missing");
    refuse("\"hidden_size\":7168", "\"hidden_size\":null", TD_CONFIG, "hidden_size: missing");
    refuse("\"hidden_size\":7168", "\"hidden_size\":\"7168\"", TD_CONFIG, "hidden_size");
    refuse("\"hidden_size\":7168", "\"hidden_size\":7168.5", TD_CONFIG, "hidden_size 7168.5");
    refuse("\"hidden_size\":7168", "\"hidden_size\":0", TD_CONFIG, "hidden_size 0: must be");
    refuse("\"hidden_size\":7168", "\"hidden_size\":-5", TD_CONFIG, "hidden_size -5");
    refuse("\"hidden_size\":7168", "\"hidden_size\":1e30", TD_CONFIG, "hidden_size");
    refuse("\"hidden_size\":7168", "\"hidden_size\":7164", TD_UNSUPPORTED, "multiples of 8");
    refuse("\"hidden_size\":7168", "\"hidden_size\":7168,\"hidden_size\":7168", TD_CONFIG,
           "hidden_size stands twice");
    refuse("\"num_hidden_layers\":61", "\"num_hidden_layers\":400", TD_CONFIG, "num_hidden_layers");
    refuse("\"n_group\":8", "\"n_group\":7", TD_CONFIG, "7 groups");
    refuse("\"topk_group\":4", "\"topk_group\":9", TD_CONFIG, "9 of them");
    refuse("\"num_experts_per_tok\":8", "\"num_experts_per_tok\":129", TD_CONFIG,
           "num_experts_per_tok 129");
    refuse("\"norm_topk_prob\":true", "\"norm_topk_prob\":1", TD_CONFIG, "norm_topk_prob");
    refuse("\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":0", TD_CONFIG, "rms_norm_eps");
    refuse(THETA, "\"rope_theta\":1", TD_CONFIG, "rope_theta");
    refuse(THETA, "\"x\":1", TD_CONFIG, "rope_theta: missing");
    refuse("\"factor\":40", "\"factor\":\"40\"", TD_CONFIG, "rope_scaling: factor");
    refuse("\"factor\":40,", "", TD_CONFIG, "rope_scaling: factor");
    refuse(YARN, "7", TD_CONFIG, "rope_scaling");
    refuse(YARN, YARN ",\"rope_parameters\":{\"rope_type\":\"default\"}", TD_CONFIG,
           "rope_scaling and rope_parameters differ");
    refuse(FP8, "[]", TD_CONFIG, "quantization_config");
}

TEST(refuses_what_is_not_json)
{
    td_model_config c;
    td_err err;
    TD_EQ(TD_CONFIG, parse("", &c, &err));
    TD_EQ(TD_CONFIG, parse("[1]", &c, &err));
    TD_EQ(TD_CONFIG, parse("{\"model_type\":", &c, &err));
    TD_TRUE(strstr(err.text, "not a JSON object") != NULL);
}

TEST(files_cut_off_anywhere_and_damaged_files_are_refused_or_read)
{
    td_model_config c;
    uint64_t seed = 3;
    size_t n = strlen(V32);
    char copy[sizeof(V32)];
    for (size_t i = 0; i < n; i++) {
        memcpy(copy, V32, n);
        copy[i] = '\0';
        TD_EQ(TD_CONFIG, parse(copy, &c, NULL));
    }
    for (int i = 0; i < 5000; i++) {
        memcpy(copy, V32, n);
        td_mutate((unsigned char *)copy, n, &seed);
        td_status st = td_model_config_parse(copy, n, &c, NULL);
        TD_TRUE(st == TD_OK || st == TD_CONFIG || st == TD_UNSUPPORTED);
    }
}

TEST(loading_names_the_file)
{
    const char *dir = td_scratch_dir();
    td_model_config c;
    td_err err;
    TD_EQ(TD_NOT_FOUND, td_model_config_load(dir, &c, &err));
    TD_TRUE(strstr(err.text, "config.json") != NULL);
    td_scratch_write(td_scratch_path(dir, "config.json"), V32, strlen(V32));
    TD_EQ(TD_OK, td_model_config_load(dir, &c, &err));
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_model_config_load(dir, &c, &err), (void)0);
    td_scratch_write(td_scratch_path(dir, "config.json"), "nonsense", 8);
    TD_EQ(TD_CONFIG, td_model_config_load(dir, &c, &err));
    TD_TRUE(strstr(err.text, "/config.json: not a JSON object") != NULL);
}

TEST(a_cache_format_goes_with_its_mode_only)
{
    td_model_config c;
    td_kv_layout layout;
    td_err err;
    TD_EQ(TD_OK, parse(V32, &c, NULL));
    TD_EQ(TD_OK, td_model_kv_layout(&c, 0, TD_KV_FP8, 1, &layout, &err));
    TD_EQ(3126784, layout.page_stride); /* model-spec B.4 */
    TD_EQ(TD_OK, td_model_kv_layout(&c, 0, TD_KV_BF16, 0, &layout, &err));
    TD_EQ(TD_OK, td_model_kv_layout(&c, 1, TD_KV_F32, 1, &layout, &err));
    TD_EQ(TD_CONFIG, td_model_kv_layout(&c, 1, TD_KV_FP8, 1, &layout, &err));
    TD_EQ(TD_CONFIG, td_model_kv_layout(&c, 1, TD_KV_BF16, 1, &layout, &err));
    TD_EQ(TD_CONFIG, td_model_kv_layout(&c, 0, TD_KV_F32, 1, &layout, &err));
    TD_TRUE(strstr(err.text, "precise mode takes f32") != NULL);
}
