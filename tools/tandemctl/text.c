/* tandemctl tokenize, detokenize, model. */
#include "tools/tandemctl/ctl.h"
#include "tools/tandemctl/input.h"
#include "tools/tandemctl/json.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *model;
    bool no_special, keep_special;
} text_options;

static const ctl_option tokenize_options[] = {
    {"model", CTL_STRING, offsetof(text_options, model), "NAME", "must be the one that is served"},
    {"no-special", CTL_FLAG, offsetof(text_options, no_special), NULL,
     "without the beginning-of-sequence token"},
};
static const ctl_option detokenize_options[] = {
    {"model", CTL_STRING, offsetof(text_options, model), "NAME", "must be the one that is served"},
    {"keep-special", CTL_FLAG, offsetof(text_options, keep_special), NULL,
     "special tokens leave their text"},
};
static const ctl_option model_options[] = {
    {"model", CTL_STRING, offsetof(text_options, model), "NAME", "must be the one that is served"},
};

static void print_ids(const ctl *c, const uint32_t *ids, size_t n)
{
    if (c->json) {
        cJSON *json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "token_ids", ctl_json_ids(ids, n));
        ctl_json_print(json);
        return;
    }
    printf("[");
    for (size_t i = 0; i < n; i++)
        printf("%s%u", i > 0 ? ", " : "", ids[i]);
    printf("]\n");
}

static int tokenize(ctl *c)
{
    const text_options *o = c->options;
    if (c->args.n != 1)
        return ctl_usage("tokenize: a text is needed (- reads it from stdin)");
    char *text;
    size_t n_bytes, n_ids;
    uint32_t *ids;
    td_client_error err;
    if (!ctl_read_text(c->args.items[0], &text, &n_bytes))
        return CTL_USAGE;
    td_client_text input = {o->model, {text, n_bytes}, o->no_special};
    int code = ctl_connect(c);
    if (code == CTL_OK) {
        if (td_client_tokenize(c->client, &input, &ids, &n_ids, &err) == TD_CLIENT_OK) {
            print_ids(c, ids, n_ids);
            free(ids);
            code = ctl_flush();
        } else {
            code = ctl_fail(c, &err);
        }
    }
    free(text);
    return code;
}

static void print_text(const ctl *c, const char *text, size_t n_bytes)
{
    if (!c->json) {
        fwrite(text, 1, n_bytes, stdout);
        return;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "text", ctl_json_text(text, n_bytes));
    ctl_json_print(json);
}

static int detokenize(ctl *c)
{
    const text_options *o = c->options;
    if (c->args.n != 1)
        return ctl_usage("detokenize: token ids are needed: a JSON array, its file, or -");
    char *text;
    size_t n_bytes, n_ids;
    uint32_t *ids;
    td_client_error err;
    if (!ctl_read_ids(c->args.items[0], &ids, &n_ids))
        return CTL_USAGE;
    td_client_ids input = {o->model, ids, n_ids, o->keep_special};
    int code = ctl_connect(c);
    if (code == CTL_OK) {
        if (td_client_detokenize(c->client, &input, &text, &n_bytes, &err) == TD_CLIENT_OK) {
            print_text(c, text, n_bytes);
            free(text);
            code = ctl_flush();
        } else {
            code = ctl_fail(c, &err);
        }
    }
    free(ids);
    return code;
}

static void print_model_json(const td_client_model *m)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "model", ctl_json_text(m->name, strlen(m->name)));
    cJSON_AddItemToObject(json, "vocab_size", cJSON_CreateNumber(m->vocab_size));
    cJSON_AddItemToObject(json, "context_length", cJSON_CreateNumber(m->context_length));
    cJSON_AddItemToObject(json, "eos_token_ids", ctl_json_ids(m->eos_ids, m->n_eos));
    cJSON_AddItemToObject(json, "bos_token_id", cJSON_CreateNumber(m->bos_id));
    cJSON_AddItemToObject(json, "has_tokenizer", cJSON_CreateBool(m->has_tokenizer));
    cJSON_AddItemToObject(json, "default_max_tokens", cJSON_CreateNumber(m->default_max_tokens));
    ctl_json_print(json);
}

static int model(ctl *c)
{
    const text_options *o = c->options;
    td_client_model m;
    td_client_error err;
    int code = ctl_connect(c);
    if (code != CTL_OK)
        return code;
    if (td_client_get_model(c->client, o->model, &m, &err) != TD_CLIENT_OK)
        return ctl_fail(c, &err);
    if (c->json) {
        print_model_json(&m);
        return ctl_flush();
    }
    printf("model               %s\n", m.name);
    printf("context             %u tokens\n", m.context_length);
    printf("vocabulary          %u tokens\n", m.vocab_size);
    printf("tokenizer           %s\n", m.has_tokenizer ? "yes" : "none: token ids only");
    printf("default max tokens  %u\n", m.default_max_tokens);
    printf("begins with         %u\n", m.bos_id);
    printf("ends with          ");
    for (uint32_t i = 0; i < m.n_eos; i++)
        printf(" %u", m.eos_ids[i]);
    printf("%s\n", m.n_eos == 0 ? " no token" : "");
    return ctl_flush();
}

#define COMMAND(list)                                                                              \
    .options = list, .n_options = sizeof(list) / sizeof(list[0]),                                  \
    .options_bytes = sizeof(text_options), .timeout_ms = 10000

const ctl_command ctl_tokenize = {
    .name = "tokenize",
    .arguments = "[TEXT | -]",
    .about = "the token ids of a text",
    .max_args = 1,
    .run = tokenize,
    COMMAND(tokenize_options),
};
const ctl_command ctl_detokenize = {
    .name = "detokenize",
    .arguments = "[FILE | JSON | -]",
    .about = "the text of token ids (a JSON array)",
    .max_args = 1,
    .run = detokenize,
    COMMAND(detokenize_options),
};
const ctl_command ctl_model = {
    .name = "model",
    .arguments = "",
    .about = "the served model and its limits",
    .run = model,
    COMMAND(model_options),
};
