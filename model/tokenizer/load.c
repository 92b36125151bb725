/* tokenizer.json as a whole, and tokenizer_config.json. */
#include "common/base/conf.h"
#include "model/tokenizer/internal.h"
#include "model/tokenizer/unicode_added.h"
#include "model/tokenizer/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rust's \w: what single_word looks for next to a token */
#define WORD_CHAR                                                                                  \
    "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}" TD_UNICODE_ADDED_L TD_UNICODE_ADDED_M \
        TD_UNICODE_ADDED_Nd "]"

static uint64_t fnv1a(const char *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)bytes[i]) * 0x100000001b3u;
    return h;
}

/* cJSON ends a string at \u0000, so that what stands behind it would be lost. */
static bool has_nul_escape(const char *text, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++) {
        if (text[i] != '\\')
            continue;
        if (n - i >= 6 && memcmp(text + i + 1, "u0000", 5) == 0)
            return true;
        i++; /* the escaped character, which may be a backslash */
    }
    return false;
}

static td_status parse_json(const char *what, const char *text, size_t n, cJSON **out, td_err *err)
{
    const char *end = NULL;
    if (n > TD_TOKENIZER_MAX_FILE_BYTES)
        return td_fail(err, TD_TOO_LARGE, "%s: more than %u bytes", what,
                       TD_TOKENIZER_MAX_FILE_BYTES);
    if (!td_utf8_valid((const uint8_t *)text, n))
        return td_fail(err, TD_INVALID, "%s: not UTF-8", what);
    if (has_nul_escape(text, n))
        return td_fail(err, TD_UNSUPPORTED, "%s: \\u0000 in a string", what);
    cJSON *json = cJSON_ParseWithLengthOpts(text, n, &end, false);
    if (json == NULL)
        return td_fail(err, TD_INVALID, "%s: not JSON (or out of memory) near byte %zu", what,
                       end == NULL ? 0 : (size_t)(end - text));
    while (end < text + n && strchr(" \t\r\n", *end) != NULL && *end != '\0')
        end++;
    if (end < text + n) {
        cJSON_Delete(json);
        return td_fail(err, TD_INVALID, "%s: more after the end at byte %zu", what,
                       (size_t)(end - text));
    }
    *out = json;
    return TD_OK;
}

/* json must be NULL, or an object of this type. */
static td_status want_type(const cJSON *json, const char *where, const char *type, td_err *err)
{
    char quoted[80];
    if (json == NULL)
        return TD_OK;
    const cJSON *got = cJSON_GetObjectItemCaseSensitive(json, "type");
    if (!cJSON_IsString(got))
        return td_fail(err, TD_INVALID, "%s: no \"type\"", where);
    if (strcmp(got->valuestring, type) != 0)
        return td_fail(err, TD_UNSUPPORTED, "%s: type %s is not supported", where,
                       td_tok_quote(got->valuestring, quoted));
    return TD_OK;
}

static td_status check_normalizer(const cJSON *json, td_err *err)
{
    td_status st = want_type(json, "normalizer", "Sequence", err);
    if (st != TD_OK || json == NULL)
        return st;
    const cJSON *parts = cJSON_GetObjectItemCaseSensitive(json, "normalizers");
    if (!cJSON_IsArray(parts))
        return td_fail(err, TD_INVALID, "normalizer: no \"normalizers\"");
    if (parts->child != NULL)
        return td_fail(err, TD_UNSUPPORTED, "normalizer: only an empty Sequence is supported");
    return TD_OK;
}

static td_status load_parts(td_tokenizer *tok, const cJSON *root, td_err *err)
{
    const cJSON *version, *truncation, *padding, *added, *normalizer, *pre, *post, *decoder, *model;
    const td_tok_member members[] = {
        {"version", &version},     {"truncation", &truncation}, {"padding", &padding},
        {"added_tokens", &added},  {"normalizer", &normalizer}, {"pre_tokenizer", &pre},
        {"post_processor", &post}, {"decoder", &decoder},       {"model", &model}};
    td_status st =
        td_tok_members(root, "tokenizer.json", members, sizeof(members) / sizeof(members[0]), err);
    if (st != TD_OK)
        return st;
    if (version != NULL && (!cJSON_IsString(version) || strcmp(version->valuestring, "1.0") != 0))
        return td_fail(err, TD_UNSUPPORTED, "version: only \"1.0\" is supported");
    if (truncation != NULL || padding != NULL)
        return td_fail(err, TD_UNSUPPORTED, "%s is not supported",
                       truncation != NULL ? "truncation" : "padding");
    if (model == NULL || decoder == NULL)
        return td_fail(err, TD_INVALID, "no \"%s\"", model == NULL ? "model" : "decoder");
    /* ByteLevel as post-processor moves offsets, which we do not have */
    if ((st = check_normalizer(normalizer, err)) != TD_OK ||
        (st = want_type(post, "post_processor", "ByteLevel", err)) != TD_OK ||
        (st = want_type(decoder, "decoder", "ByteLevel", err)) != TD_OK ||
        (st = td_tok_load_pre_tokenizer(tok, pre, err)) != TD_OK ||
        (st = td_tok_load_model(tok, model, added, err)) != TD_OK ||
        (st = td_tok_load_added(tok, added, err)) != TD_OK)
        return st;
    if (td_tok_tries_build(tok) != TD_OK)
        return td_fail(err, TD_NOMEM, "added_tokens: no memory");
    for (uint32_t i = 0; i < tok->n_added; i++)
        if (tok->added[i].single_word && tok->word_char == NULL &&
            (st = td_tok_pattern_compile(tok, WORD_CHAR, "added_tokens", &tok->word_char, err)) !=
                TD_OK)
            return st;
    return TD_OK;
}

/* "bos_token": "<s>", {"content": "<s>"} or null. */
static td_status read_config_token(const td_tokenizer *tok, const cJSON *config, const char *name,
                                   int32_t *id, td_err *err)
{
    char quoted[80];
    const cJSON *json = cJSON_GetObjectItemCaseSensitive(config, name);
    if (cJSON_IsObject(json))
        json = cJSON_GetObjectItemCaseSensitive(json, "content");
    else if (json == NULL || cJSON_IsNull(json))
        return TD_OK;
    if (!cJSON_IsString(json))
        return td_fail(err, TD_INVALID, "tokenizer_config.json: \"%s\" is not a token", name);
    *id = td_tokenizer_find(tok, json->valuestring);
    if (*id < 0)
        return td_fail(err, TD_INVALID, "tokenizer_config.json: \"%s\": no token %s", name,
                       td_tok_quote(json->valuestring, quoted));
    return TD_OK;
}

static td_status read_config_flag(const cJSON *config, const char *name, int32_t id, bool *out,
                                  td_err *err)
{
    const cJSON *json = cJSON_GetObjectItemCaseSensitive(config, name);
    td_status st = td_tok_bool(cJSON_IsNull(json) ? NULL : json, "tokenizer_config.json", name,
                               false, out, err);
    if (st == TD_OK && *out && id < 0)
        return td_fail(err, TD_INVALID, "tokenizer_config.json: \"%s\" without such a token", name);
    return st;
}

static td_status load_config(td_tokenizer *tok, const char *text, size_t n, td_err *err)
{
    cJSON *config = NULL;
    td_tokenizer_info *info = &tok->info;
    info->bos_id = info->eos_id = -1;
    if (text == NULL)
        return TD_OK;
    td_status st = parse_json("tokenizer_config.json", text, n, &config, err);
    if (st != TD_OK)
        return st;
    if (!cJSON_IsObject(config))
        st = td_fail(err, TD_INVALID, "tokenizer_config.json: not an object");
    else if ((st = read_config_token(tok, config, "bos_token", &info->bos_id, err)) == TD_OK &&
             (st = read_config_token(tok, config, "eos_token", &info->eos_id, err)) == TD_OK &&
             (st = read_config_flag(config, "add_bos_token", info->bos_id, &info->add_bos, err)) ==
                 TD_OK)
        st = read_config_flag(config, "add_eos_token", info->eos_id, &info->add_eos, err);
    cJSON_Delete(config);
    return st;
}

/* Memory comes from malloc() by name, so that tests can make it fail. */
static void *pcre_malloc(size_t n, void *arg)
{
    (void)arg;
    return malloc(n);
}

static void pcre_free(void *p, void *arg)
{
    (void)arg;
    free(p);
}

td_status td_tokenizer_parse(const char *json, size_t n_json, const char *config, size_t n_config,
                             td_tokenizer **out, td_err *err)
{
    cJSON *root = NULL;
    td_tokenizer *tok = NULL;
    td_status st = parse_json("tokenizer.json", json, n_json, &root, err);
    if (st != TD_OK)
        return st;
    tok = calloc(1, sizeof(*tok));
    if (tok != NULL)
        tok->pcre = pcre2_general_context_create(pcre_malloc, pcre_free, NULL);
    if (tok == NULL || tok->pcre == NULL) {
        st = td_fail(err, TD_NOMEM, "tokenizer: no memory");
        goto fail;
    }
    if ((st = load_parts(tok, root, err)) != TD_OK ||
        (st = load_config(tok, config, n_config, err)) != TD_OK)
        goto fail;
    tok->info.fingerprint = fnv1a(json, n_json);
    cJSON_Delete(root);
    *out = tok;
    return TD_OK;
fail:
    cJSON_Delete(root);
    td_tokenizer_destroy(tok);
    return st;
}

td_status td_tokenizer_open(const char *dir, td_tokenizer **out, td_err *err)
{
    char path[4096];
    char *json = NULL, *config = NULL;
    size_t n_json = 0, n_config = 0;
    if (strlen(dir) + sizeof("/tokenizer_config.json") > sizeof(path))
        return td_fail(err, TD_INVALID, "tokenizer: the path is too long");
    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    td_status st = td_read_file(path, TD_TOKENIZER_MAX_FILE_BYTES, &json, &n_json, err);
    if (st != TD_OK)
        return st;
    snprintf(path, sizeof(path), "%s/tokenizer_config.json", dir);
    st = td_read_file(path, TD_TOKENIZER_MAX_FILE_BYTES, &config, &n_config, err);
    if (st == TD_OK || st == TD_NOT_FOUND) {
        st = td_tokenizer_parse(json, n_json, config, n_config, out, err);
        if (st != TD_OK && err != NULL)
            td_fail_prefix(err, "%s", dir);
    }
    free(json);
    free(config);
    return st;
}

void td_tokenizer_destroy(td_tokenizer *tok)
{
    if (tok == NULL)
        return;
    td_tok_strings_fini(&tok->contents);
    td_tok_strings_fini(&tok->texts);
    free(tok->by_content.slots);
    free(tok->words.slots);
    free(tok->marks);
    td_tok_merges_fini(&tok->merges);
    free(tok->added);
    for (int i = 0; i < 2; i++)
        free(tok->tries[i].nodes);
    for (uint32_t i = 0; i < tok->n_patterns; i++)
        pcre2_code_free(tok->patterns[i]);
    pcre2_code_free(tok->word_char);
    pcre2_general_context_free(tok->pcre);
    free(tok);
}

const td_tokenizer_info *td_tokenizer_describe(const td_tokenizer *tok)
{
    return &tok->info;
}
