/* The bundled model is what the documents promise, so that a retrained one cannot break it: the
 * published layout, the real model's geometry per token, small. */
#include "common/base/conf.h"
#include "model/checkpoint.h"
#include "model/weights.h"
#include "tests/model/compare.h"
#include "tests/td_test.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <math.h>
#include <sys/stat.h>

TD_TEST_MAIN

#define MODEL "models/tiny-v32"
#define MAX_BYTES 16000000

static cJSON *read_json(const char *name)
{
    char path[200], *text = NULL;
    size_t n_bytes = 0;
    snprintf(path, sizeof(path), MODEL "/%s", name);
    if (td_read_file(td_source_path(path), 1 << 20, &text, &n_bytes, NULL) != TD_OK)
        fprintf(stderr, "no %s\n", path);
    TD_TRUE(text != NULL);
    cJSON *json = cJSON_ParseWithLength(text, n_bytes);
    TD_TRUE(json != NULL);
    free(text);
    return json;
}

TEST(the_folder_has_the_published_files_in_16_mb)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json", "model.safetensors.index.json"};
    char path[1400];
    struct dirent *entry;
    struct stat info;
    int64_t n_bytes = 0, n_shards = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        cJSON_Delete(read_json(names[i]));
    DIR *dir = opendir(td_source_path(MODEL));
    TD_TRUE(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        snprintf(path, sizeof(path), "%s/%s", td_source_path(MODEL), entry->d_name);
        TD_EQ(0, stat(path, &info));
        n_bytes += S_ISREG(info.st_mode) ? info.st_size : 0;
        n_shards +=
            strstr(entry->d_name, ".safetensors") != NULL && strstr(entry->d_name, "-of-") != NULL;
    }
    closedir(dir);
    TD_TRUE(n_shards > 1);
    TD_TRUE(n_bytes <= MAX_BYTES);
}

TEST(config_json_has_every_published_key)
{
    static const char *const keys[] = {"architectures",
                                       "attention_bias",
                                       "bos_token_id",
                                       "eos_token_id",
                                       "first_k_dense_replace",
                                       "hidden_act",
                                       "hidden_size",
                                       "index_head_dim",
                                       "index_n_heads",
                                       "index_topk",
                                       "intermediate_size",
                                       "kv_lora_rank",
                                       "max_position_embeddings",
                                       "model_type",
                                       "moe_intermediate_size",
                                       "moe_layer_freq",
                                       "n_group",
                                       "n_routed_experts",
                                       "n_shared_experts",
                                       "norm_topk_prob",
                                       "num_attention_heads",
                                       "num_experts_per_tok",
                                       "num_hidden_layers",
                                       "num_key_value_heads",
                                       "num_nextn_predict_layers",
                                       "q_lora_rank",
                                       "qk_nope_head_dim",
                                       "qk_rope_head_dim",
                                       "quantization_config",
                                       "rms_norm_eps",
                                       "rope_scaling",
                                       "rope_theta",
                                       "routed_scaling_factor",
                                       "scoring_func",
                                       "tie_word_embeddings",
                                       "topk_group",
                                       "topk_method",
                                       "torch_dtype",
                                       "v_head_dim",
                                       "vocab_size"};
    cJSON *config = read_json("config.json");
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        if (cJSON_GetObjectItemCaseSensitive(config, keys[i]) == NULL)
            fprintf(stderr, "config.json has no %s\n", keys[i]);
        TD_TRUE(cJSON_HasObjectItem(config, keys[i]));
    }
    cJSON_Delete(config);
}

TEST(shapes_per_token_are_the_real_models_and_the_rest_is_small)
{
    td_model_config c;
    TD_EQ(TD_OK, td_model_config_load(td_source_path(MODEL), &c, NULL));
    TD_TRUE(c.kv_lora_rank == 512 && c.qk_rope_dim == 64 && c.qk_nope_dim == 128);
    TD_TRUE(c.v_dim == 128 && c.index_dim == 128);
    TD_TRUE(c.fp8 && c.ue8m0 && c.rope.yarn && !c.rope.indexer_interleaved);
    TD_EQ(1, c.n_draft_layers);
    TD_TRUE(!c.layer_is_moe[0] && c.layer_is_moe[1] && c.n_layers > 1);
    TD_TRUE(c.n_group > 1 && c.topk_group < c.n_group && c.n_shared_experts == 1);
    TD_EQ(0, c.intermediate_size % 512); /* 4 ranks own whole blocks of 128 */
    TD_EQ(0, c.moe_intermediate_size % 512);
    TD_EQ(8192, c.max_positions);
    TD_TRUE(c.index_topk <= 512); /* far below the 1,024 of a training context */
    TD_TRUE(c.vocab_size >= 4096 && c.vocab_size <= 8192);
}

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* What the published checkpoints keep in bf16; every other matrix is e4m3. */
static int is_bf16(const char *name)
{
    static const char *const ends[] = {"embed_tokens.weight", "lm_head.weight",
                                       "eh_proj.weight",      "shared_head.head.weight",
                                       "mlp.gate.weight",     "indexer.weights_proj.weight"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        if (ends_with(name, ends[i]))
            return 1;
    return 0;
}

static void check_scales(const td_tensor *w, const td_tensor *s)
{
    if (s == NULL || s->dtype != TD_ST_F32)
        fprintf(stderr, "no f32 scales for %s\n", w->name);
    TD_TRUE(s != NULL && s->dtype == TD_ST_F32 && s->n_dims == 2);
    TD_EQ((w->shape[0] + 127) / 128, s->shape[0]);
    TD_EQ((w->shape[1] + 127) / 128, s->shape[1]);
    for (uint64_t i = 0; i < s->n_bytes / 4; i++) {
        float v;
        int e;
        memcpy(&v, s->data + 4 * i, 4);
        TD_TRUE(v > 0 && frexpf(v, &e) == 0.5f);
    }
}

TEST(matrices_are_e4m3_with_128x128_scales_that_are_powers_of_two)
{
    td_checkpoint *ckpt = NULL;
    int n_fp8 = 0;
    TD_EQ(TD_OK, td_checkpoint_open(td_source_path(MODEL), &ckpt, NULL));
    for (size_t i = 0; i < td_checkpoint_count(ckpt); i++) {
        char name[300];
        const td_tensor *t = td_checkpoint_at(ckpt, i);
        if (t->n_dims != 2 || ends_with(t->name, "_scale_inv"))
            continue;
        TD_EQ(is_bf16(t->name) ? TD_ST_BF16 : TD_ST_F8_E4M3, t->dtype);
        snprintf(name, sizeof(name), "%s_scale_inv", t->name);
        if (t->dtype == TD_ST_F8_E4M3)
            check_scales(t, td_checkpoint_find(ckpt, name));
        n_fp8 += t->dtype == TD_ST_F8_E4M3;
    }
    TD_TRUE(n_fp8 > 40);
    td_checkpoint_close(ckpt);
}

TEST(all_tensors_of_the_model_and_one_draft_layer_are_there)
{
    td_model_config c;
    td_checkpoint *ckpt = NULL;
    td_device *device = NULL;
    td_weights *w = NULL;
    td_weights_options o = {.n_ranks = 1};
    TD_EQ(TD_OK, td_model_config_load(td_source_path(MODEL), &c, NULL));
    TD_EQ(TD_OK, td_checkpoint_open(td_source_path(MODEL), &ckpt, NULL));
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    TD_EQ(TD_OK, td_weights_load(ckpt, &c, &o, device, &w, NULL));
    TD_TRUE(w->has_draft);
    td_weights_destroy(w);
    td_device_close(device);
    td_checkpoint_close(ckpt);
}
