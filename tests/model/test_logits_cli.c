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

static const float *floats(const td_safetensors *file, const char *name)
{
    return (const float *)(const void *)td_need(file, name)->data;
}

static const int32_t *ints(const td_safetensors *file, const char *name)
{
    return (const int32_t *)(const void *)td_need(file, name)->data;
}

typedef struct {
    td_safetensors *golden, *out;
    size_t n, vocab, hidden, topk;
} compared;

/* The golden prompt through the program, with these options. */
static compared run_golden_prompt(const char *more)
{
    compared c = {0};
    char text[8192] = "[";
    TD_EQ(TD_OK, td_safetensors_open(td_source_path("tests/golden/v32-fp8/golden.safetensors"),
                                     &c.golden, NULL));
    c.n = (size_t)td_need(c.golden, "input_ids")->shape[0];
    c.vocab = (size_t)td_need(c.golden, "logits")->shape[1];
    c.hidden = (size_t)td_need(c.golden, "hidden_final_norm")->shape[0];
    c.topk = (size_t)td_need(c.golden, "layer0_selected_last")->shape[0];
    for (size_t i = 0; i < c.n; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%d", i == 0 ? "" : ",",
                 ints(c.golden, "input_ids")[i]);
    strcat(text, "]");
    TD_EQ(0, run_golden(text, more));
    TD_EQ(TD_OK, td_safetensors_open(td_scratch_path(dir, "out.safetensors"), &c.out, NULL));
    return c;
}

static void close_compared(compared *c)
{
    td_safetensors_close(c->golden);
    td_safetensors_close(c->out);
}

/* Positions in ascending order, all that a row sees while they fit, -1 behind them. */
static void check_selected(const int32_t *selected, size_t n, size_t k, const int32_t *last)
{
    for (size_t t = 0; t < n; t++, selected += k) {
        for (size_t j = 0; j < k; j++) {
            if (t < k)
                TD_EQ(j <= t ? (int)j : -1, selected[j]);
            else
                TD_TRUE(selected[j] >= 0 && selected[j] <= (int)t &&
                        (j == 0 || selected[j] > selected[j - 1]));
        }
    }
    selected -= k;
    for (size_t j = 0; j < k; j++) {
        size_t i = 0;
        while (i < k && last[i] != selected[j])
            i++;
        TD_TRUE(i < k);
    }
}

TEST(every_tensor_it_writes_is_the_golden_one)
{
    compared c = run_golden_prompt("--precise --generate 32 --drafts 2 --dump-layers");
    size_t last = c.n - 1, n_layers = 0;
    TD_TRUE(td_max_difference(floats(c.golden, "logits"), floats(c.out, "logits"), c.n * c.vocab) <=
            2e-3);
    TD_TRUE(td_max_difference(floats(c.golden, "mtp_logits"), floats(c.out, "mtp_logits"),
                              last * c.vocab) <= 2e-3);
    TD_EQ(32, td_need(c.out, "generated_ids")->shape[0]);
    TD_MEM(ints(c.golden, "greedy_ids"), ints(c.out, "generated_ids"), 32 * sizeof(int32_t));
    for (;; n_layers++) {
        char name[64];
        snprintf(name, sizeof(name), "layer%zu_out_last", n_layers);
        if (td_safetensors_find(c.golden, name) == NULL)
            break;
        const float *want = floats(c.golden, name);
        snprintf(name, sizeof(name), "layer%zu_out", n_layers);
        TD_TRUE(td_max_difference(want, floats(c.out, name) + last * c.hidden, c.hidden) <= 1e-3);
        snprintf(name, sizeof(name), "layer%zu_selected_last", n_layers);
        const int32_t *selected = ints(c.golden, name);
        snprintf(name, sizeof(name), "layer%zu_selected", n_layers);
        check_selected(ints(c.out, name), c.n, c.topk, selected);
    }
    TD_EQ(3, n_layers);
    TD_EQ(3 + 2 * n_layers, td_safetensors_count(c.out));
    close_compared(&c);
}

TEST(draft_prenorm_feeds_the_draft_layer_the_state_before_the_final_norm)
{
    compared c = run_golden_prompt("--precise --draft-prenorm --generate 32 --drafts 2");
    TD_TRUE(td_max_difference(floats(c.golden, "mtp_logits_prenorm_state"),
                              floats(c.out, "mtp_logits") + (c.n - 5) * c.vocab,
                              4 * c.vocab) <= 2e-3);
    TD_MEM(ints(c.golden, "greedy_ids"), ints(c.out, "generated_ids"), 32 * sizeof(int32_t));
    close_compared(&c);
    c = run_golden_prompt("--precise");
    TD_TRUE(td_max_difference(floats(c.golden, "mtp_logits_prenorm_state"),
                              floats(c.out, "mtp_logits") + (c.n - 5) * c.vocab,
                              4 * c.vocab) > 0.1);
    close_compared(&c);
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
