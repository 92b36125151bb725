/* What the router reads of a checkpoint, and what it refuses. */
#include "router/model_info.h"
#include "tests/td_test.h"

#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

TD_TEST_MAIN

static char dir[] = "/tmp/td-model-XXXXXX";

static void put(const char *name, const char *text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    TD_TRUE(f != NULL);
    TD_EQ(strlen(text), fwrite(text, 1, strlen(text), f));
    fclose(f);
}

static void drop(void)
{
    const char *names[] = {"config.json", "generation_config.json", "tokenizer.json"};
    char path[PATH_MAX];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void refused(const char *says)
{
    td_model_info info;
    td_err err = {.text = "loaded"};
    TD_TRUE(td_model_info_load(&info, dir, NULL, &err) < 0);
    if (strstr(err.text, says) == NULL)
        fail_msg("want \"%s\", got \"%s\"", says, err.text);
    TD_TRUE(info.name == NULL && info.tokenizer == NULL);
}

#define GOOD "{\"vocab_size\":100,\"max_position_embeddings\":64,\"bos_token_id\":3"

TEST(the_bundled_model_loads)
{
    td_model_info info;
    td_err err;
    TD_EQ(TD_OK, td_model_info_load(&info, TD_TEST_MODEL "/", NULL, &err));
    TD_STR("tiny-v32", info.name);
    TD_EQ(8192, info.context_length);
    TD_TRUE(info.tokenizer != NULL && info.n_eos >= 1);
    td_model_info_fini(&info);
    TD_EQ(TD_OK, td_model_info_load(&info, TD_TEST_MODEL, "my-name", &err));
    TD_STR("my-name", info.name);
    td_model_info_fini(&info);
}

TEST(a_model_without_tokenizer_serves_ids)
{
    td_model_info info;
    td_err err;
    TD_TRUE(mkdtemp(strcpy(dir, "/tmp/td-model-XXXXXX")) != NULL);
    put("config.json", GOOD ",\"eos_token_id\":[5,6]}");
    TD_EQ(TD_OK, td_model_info_load(&info, dir, NULL, &err));
    TD_TRUE(info.tokenizer == NULL);
    TD_EQ(2, info.n_eos);
    TD_EQ(6, info.eos_ids[1]);
    TD_EQ(3, info.bos_id);
    td_model_info_fini(&info);
    drop();
}

TEST(both_files_eos_ids_count_and_none_twice)
{
    static const uint32_t want[] = {5, 6, 9};
    td_model_info info;
    TD_TRUE(mkdtemp(strcpy(dir, "/tmp/td-model-XXXXXX")) != NULL);
    put("config.json", GOOD ",\"eos_token_id\":[5,6,5]}");
    put("generation_config.json", "{\"eos_token_id\":[6,9]}");
    TD_EQ(TD_OK, td_model_info_load(&info, dir, NULL, NULL));
    TD_EQ(3, info.n_eos);
    TD_MEM(want, info.eos_ids, sizeof(want));
    td_model_info_fini(&info);
    put("generation_config.json", "{\"eos_token_id\":9}");
    TD_EQ(TD_OK, td_model_info_load(&info, dir, NULL, NULL));
    TD_EQ(3, info.n_eos);
    td_model_info_fini(&info);
    put("generation_config.json", "{}");
    TD_EQ(TD_OK, td_model_info_load(&info, dir, NULL, NULL));
    TD_EQ(2, info.n_eos);
    td_model_info_fini(&info);
    put("generation_config.json", "{\"eos_token_id\":[100]}");
    refused("generation_config.json: eos_token_id");
    drop();
}

TEST(what_is_missing_or_malformed_is_named)
{
    TD_TRUE(mkdtemp(strcpy(dir, "/tmp/td-model-XXXXXX")) != NULL);
    refused("config.json");
    put("config.json", "[1]");
    refused("not a JSON object");
    put("config.json", "{\"vocab_size\":100");
    refused("not a JSON object");
    put("config.json", "{\"max_position_embeddings\":64}");
    refused("vocab_size is missing");
    put("config.json", "{\"vocab_size\":100,\"max_position_embeddings\":-1}");
    refused("max_position_embeddings is missing or not a positive integer");
    put("config.json", "{\"vocab_size\":1e300,\"max_position_embeddings\":64}");
    refused("vocab_size");
    put("config.json", GOOD ",\"eos_token_id\":100}"); /* not in the vocabulary */
    refused("eos_token_id");
    put("config.json", GOOD ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}");
    refused("up to 16");
    put("config.json", GOOD "}");
    put("tokenizer.json", "{\"model\":3}");
    refused("no \"decoder\"");
    drop();
}
