/* tandem-logits as a program: what it writes, what it refuses, and with which exit status. */
#include "model/safetensors.h"
#include "tests/model/compare.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

#include <sys/wait.h>

TD_TEST_MAIN

static const char *dir;

/* Exit status; stderr goes to <dir>/errors. */
static int run(const char *options)
{
    char command[8192];
    if (dir == NULL)
        dir = td_scratch_dir();
    snprintf(command, sizeof(command), "%s %s >%s/output 2>%s/errors",
             getenv("TANDEM_LOGITS") == NULL ? "tandem-logits" : getenv("TANDEM_LOGITS"), options,
             dir, dir);
    int status = system(command);
    TD_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int says(const char *what)
{
    size_t n;
    char *text = td_scratch_read(td_scratch_path(dir, "errors"), &n);
    int found = strstr(text, what) != NULL;
    if (!found)
        fprintf(stderr, "'%s' does not say '%s'\n", text, what);
    free(text);
    return found;
}

static const char *ids_file(const char *text)
{
    if (dir == NULL)
        dir = td_scratch_dir();
    const char *path = td_scratch_path(dir, "ids.json");
    td_scratch_write(path, text, strlen(text));
    return path;
}

/* The golden model with these options. */
static int run_golden(const char *ids, const char *more)
{
    char options[4096];
    const char *path = ids_file(ids);
    snprintf(options, sizeof(options), "--model %s --ids %s --out %s/out.safetensors %s",
             td_source_path("tests/golden/v32-fp8"), path, dir, more);
    return run(options);
}

TEST(writes_what_it_was_asked_for_and_nothing_else)
{
    td_safetensors *file = NULL;
    TD_EQ(0, run_golden("[5, 6, 7, 8, 9]", ""));
    TD_EQ(TD_OK, td_safetensors_open(td_scratch_path(dir, "out.safetensors"), &file, NULL));
    TD_EQ(2, td_safetensors_count(file));
    const td_tensor *logits = td_need(file, "logits"), *mtp = td_need(file, "mtp_logits");
    TD_TRUE(logits->shape[0] == 5 && logits->shape[1] == 512);
    TD_TRUE(mtp->shape[0] == 4 && mtp->shape[1] == 512);
    td_safetensors_close(file);
    TD_EQ(0, run_golden("[5, 6, 7, 8, 9]", "--generate 7 --drafts 2 --dump-layers --ranks 2 "
                                           "--split in-seq --moe ep --kv bf16 --chunk 64"));
    TD_EQ(TD_OK, td_safetensors_open(td_scratch_path(dir, "out.safetensors"), &file, NULL));
    TD_EQ(9, td_safetensors_count(file));
    TD_EQ(7, td_need(file, "generated_ids")->shape[0]);
    TD_TRUE(td_need(file, "layer2_out")->shape[0] == 5 &&
            td_need(file, "layer2_out")->shape[1] == 256);
    TD_EQ(64, td_need(file, "layer0_selected")->shape[1]);
    td_safetensors_close(file);
    TD_EQ(0, run_golden("[5]", "--precise --generate 1"));
    TD_EQ(TD_OK, td_safetensors_open(td_scratch_path(dir, "out.safetensors"), &file, NULL));
    TD_EQ(3, td_safetensors_count(file));
    TD_EQ(0, td_need(file, "mtp_logits")->shape[0]); /* one token: no draft row */
    td_safetensors_close(file);
}

TEST(a_checkpoint_without_draft_layer_has_no_draft_logits_and_takes_no_drafts)
{
    char options[2048];
    td_safetensors *file = NULL;
    td_made_model m = td_made_model_odd();
    const char *model = td_scratch_dir(), *ids = ids_file("[5, 6, 7]");
    m.draft = 0;
    td_make_model(model, &m);
    snprintf(options, sizeof(options), "--model %s --ids %s --out %s/x --generate 3", model, ids,
             dir);
    TD_EQ(0, run(options));
    TD_EQ(TD_OK, td_safetensors_open(td_scratch_path(dir, "x"), &file, NULL));
    TD_EQ(2, td_safetensors_count(file));
    TD_EQ(3, td_need(file, "generated_ids")->shape[0]);
    td_safetensors_close(file);
    strcat(options, " --drafts 1");
    TD_EQ(2, run(options));
    TD_TRUE(says("the checkpoint has no draft layer"));
}

TEST(refuses_bad_prompts_with_status_2)
{
    TD_EQ(2, run_golden("[]", ""));
    TD_TRUE(says("the prompt is empty"));
    TD_EQ(2, run_golden("{\"ids\": [1]}", ""));
    TD_TRUE(says("not a JSON array"));
    TD_EQ(2, run_golden("[1, 2", ""));
    TD_EQ(2, run_golden("[1, \"2\"]", ""));
    TD_TRUE(says("element 1"));
    TD_EQ(2, run_golden("[1, 2.5]", ""));
    TD_EQ(2, run_golden("[1, -2]", ""));
    TD_EQ(2, run_golden("[1, 512]", ""));
    TD_TRUE(says("token id 512 at position 1: the vocabulary has 512"));
    TD_EQ(2, run_golden("[1]", "--generate 5120"));
    TD_TRUE(says("the model's context is 5120"));
}

TEST(refuses_options_that_contradict_each_other_with_status_2)
{
    TD_EQ(2, run_golden("[1]", "--precise --kv fp8"));
    TD_TRUE(says("precise mode takes f32"));
    TD_EQ(2, run_golden("[1]", "--kv f32"));
    TD_TRUE(says("quantised mode fp8 or bf16"));
    TD_EQ(2, run_golden("[1]", "--ranks 0"));
    TD_EQ(2, run_golden("[1]", "--chunk 100"));
    TD_TRUE(says("chunk 100: not a multiple of 64"));
    TD_EQ(2, run_golden("[1]", "--moe dense"));
    TD_EQ(2, run_golden("[1]", "--no-such-option 1"));
    TD_TRUE(says("no-such-option"));
    TD_EQ(2, run(""));
    TD_EQ(0, run("--help"));
}

TEST(says_which_file_is_missing_or_cannot_be_written)
{
    char options[2048];
    const char *ids = ids_file("[1]");
    snprintf(options, sizeof(options), "--model %s --ids %s --out %s/x", "/nonexistent", ids, dir);
    TD_EQ(2, run(options));
    TD_TRUE(says("/nonexistent/config.json"));
    snprintf(options, sizeof(options), "--model %s --ids /nonexistent.json --out x",
             td_source_path("tests/golden/v32-fp8"));
    TD_EQ(2, run(options));
    TD_TRUE(says("/nonexistent.json"));
    snprintf(options, sizeof(options), "--model %s --ids %s --out /nonexistent/x",
             td_source_path("tests/golden/v32-fp8"), ids);
    TD_EQ(1, run(options));
    TD_TRUE(says("/nonexistent/x"));
}
