/* A folder's tensors: whole or in shards, and what an index may not claim. */
#include "model/checkpoint.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

TD_TEST_MAIN

#define ONE "one.safetensors"
#define TWO "two.safetensors"

static void write_one(const char *dir, const char *file, const char *a, const char *b)
{
    float numbers[2] = {1, 2};
    const unsigned char *data = (const unsigned char *)numbers;
    td_tensor t[2] = {
        {.name = a, .dtype = TD_ST_F32, .n_dims = 1, .shape = {2}, .data = data, .n_bytes = 8},
        {.name = b, .dtype = TD_ST_F32, .n_dims = 1, .shape = {1}, .data = data, .n_bytes = 4}};
    TD_EQ(TD_OK, td_safetensors_write(td_scratch_path(dir, file), t, 2, NULL));
}

static const char *folder(const char *index)
{
    const char *dir = td_scratch_dir();
    write_one(dir, ONE, "a", "c");
    write_one(dir, TWO, "b", "d");
    td_scratch_write(td_scratch_path(dir, "model.safetensors.index.json"), index, strlen(index));
    return dir;
}

static void refuse(const char *index, td_status want, const char *text)
{
    td_checkpoint *ckpt = NULL;
    td_err err = {0};
    TD_EQ(want, td_checkpoint_open(folder(index), &ckpt, &err));
    if (strstr(err.text, text) == NULL) {
        fprintf(stderr, "'%s' does not say '%s'\n", err.text, text);
        TD_TRUE(0);
    }
}

static const char good[] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{"
                           "\"a\":\"" ONE "\",\"b\":\"" TWO "\",\"d\":\"" TWO "\"}}";

TEST(shards_are_one_name_space)
{
    td_checkpoint *ckpt = NULL;
    TD_EQ(TD_OK, td_checkpoint_open(folder(good), &ckpt, NULL));
    TD_EQ(4, td_checkpoint_count(ckpt));
    for (int i = 0; i < 4; i++)
        TD_EQ("abcd"[i], td_checkpoint_at(ckpt, (size_t)i) -> name[0]);
    TD_EQ(8, td_checkpoint_find(ckpt, "b")->n_bytes);
    TD_TRUE(td_checkpoint_find(ckpt, "e") == NULL);
    TD_TRUE(td_checkpoint_find(ckpt, "") == NULL);
    TD_TRUE(td_checkpoint_has_prefix(ckpt, "b"));
    TD_TRUE(!td_checkpoint_has_prefix(ckpt, "bb"));
    TD_TRUE(!td_checkpoint_has_prefix(ckpt, "x"));
    td_checkpoint_close(ckpt);
    td_checkpoint_close(NULL);
}

TEST(refuses_an_index_that_is_not_one)
{
    refuse("{\"weight_map\":", TD_DATA_LOSS, "not JSON");
    refuse("[]", TD_DATA_LOSS, "weight_map");
    refuse("{\"weight_map\":[1]}", TD_DATA_LOSS, "weight_map");
    refuse("{\"weight_map\":{}}", TD_DATA_LOSS, "0 shards");
    refuse("{\"weight_map\":{\"a\":7}}", TD_DATA_LOSS, "not a string");
    refuse("{\"weight_map\":{\"a\":\"../" ONE "\"}}", TD_DATA_LOSS, "no name for a shard");
    refuse("{\"weight_map\":{\"a\":\"\"}}", TD_DATA_LOSS, "no name for a shard");
}

TEST(refuses_tensors_and_shards_that_are_not_there)
{
    refuse("{\"weight_map\":{\"a\":\"three.safetensors\"}}", TD_NOT_FOUND, "three.safetensors");
    refuse("{\"weight_map\":{\"b\":\"" ONE "\"}}", TD_DATA_LOSS,
           "tensor b is not in " ONE ", as the index says");
}

TEST(refuses_a_tensor_that_stands_in_two_shards)
{
    const char *dir = folder(good);
    td_checkpoint *ckpt = NULL;
    td_err err;
    write_one(dir, ONE, "a", "b");
    TD_EQ(TD_DATA_LOSS, td_checkpoint_open(dir, &ckpt, &err));
    TD_TRUE(strstr(err.text, "tensor b stands in two shards") != NULL);
}

TEST(a_folder_without_weights_says_what_was_looked_for)
{
    td_checkpoint *ckpt = NULL;
    td_err err;
    TD_EQ(TD_NOT_FOUND, td_checkpoint_open(td_scratch_dir(), &ckpt, &err));
    TD_TRUE(strstr(err.text, "model.safetensors.index.json") != NULL);
}

TEST(every_failed_allocation_is_reported)
{
    const char *dir = folder(good);
    td_checkpoint *ckpt = NULL;
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_checkpoint_open(dir, &ckpt, NULL), td_checkpoint_close(ckpt));
    write_one(dir, "model.safetensors", "a", "b");
    remove(td_scratch_path(dir, "model.safetensors.index.json"));
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_checkpoint_open(dir, &ckpt, NULL), td_checkpoint_close(ckpt));
}

TEST(a_damaged_index_is_refused_or_read_but_never_overrun)
{
    uint64_t seed = 5;
    const char *dir = folder(good), *path = td_scratch_path(dir, "model.safetensors.index.json");
    char copy[sizeof(good)];
    for (int i = 0; i < 2000; i++) {
        td_checkpoint *ckpt = NULL;
        memcpy(copy, good, sizeof(good));
        td_mutate((unsigned char *)copy, sizeof(good) - 1, &seed);
        td_scratch_write(path, copy, sizeof(good) - 1);
        td_status st = td_checkpoint_open(dir, &ckpt, NULL);
        TD_TRUE(st == TD_OK || st == TD_DATA_LOSS || st == TD_NOT_FOUND || st == TD_IO);
        td_checkpoint_close(ckpt);
    }
}

TEST(a_made_model_in_three_shards_has_the_tensors_of_one_in_a_single_file)
{
    td_made_model m = td_made_model_odd();
    const char *whole = td_scratch_dir(), *cut = td_scratch_dir();
    td_checkpoint *a = NULL, *b = NULL;
    td_make_model(whole, &m);
    m.shards = 3;
    td_make_model(cut, &m);
    TD_EQ(TD_OK, td_checkpoint_open(whole, &a, NULL));
    TD_EQ(TD_OK, td_checkpoint_open(cut, &b, NULL));
    TD_EQ(td_checkpoint_count(a), td_checkpoint_count(b));
    for (size_t i = 0; i < td_checkpoint_count(a); i++) {
        const td_tensor *x = td_checkpoint_at(a, i), *y = td_checkpoint_at(b, i);
        TD_STR(x->name, y->name);
        TD_EQ(x->n_bytes, y->n_bytes);
        TD_MEM(x->data, y->data, x->n_bytes);
    }
    td_checkpoint_close(a);
    td_checkpoint_close(b);
}
