/* "model"."vocab" and "added_tokens". Ids are dense: a file in which they are not would get other
 * ids from Hugging Face tokenizers than it says. */
#include "model/tokenizer/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* json is an id below n; false: it is not. */
static bool read_id(const cJSON *json, uint32_t n, uint32_t *id)
{
    if (!cJSON_IsNumber(json) || !(json->valuedouble >= 0 && json->valuedouble < n))
        return false;
    *id = (uint32_t)json->valuedouble;
    return (double)*id == json->valuedouble;
}

/* A token's content joins the tables; by_content already knows that it is new. */
static void add_token(td_tokenizer *tok, const char *content, uint8_t *buffer)
{
    size_t n = strlen(content), n_text;
    uint32_t id = tok->contents.n;
    bool mapped = td_tok_to_bytes((const uint8_t *)content, n, buffer, &n_text);
    td_tok_strings_add(&tok->contents, content, n);
    td_tok_strings_add(&tok->texts, mapped ? buffer : (const uint8_t *)content,
                       mapped ? n_text : n);
    tok->marks[id] = mapped ? 0 : TD_TOK_UNMAPPED;
    uint32_t bytes = (uint32_t)(mapped ? n_text : n);
    if (tok->info.max_text_bytes < 3 * (bytes + 3))
        tok->info.max_text_bytes = 3 * (bytes + 3); /* each byte, and each of 3 held: a U+FFFD */
}

static td_status check_content(const char *content, const char *where, td_err *err)
{
    size_t n = strlen(content);
    if (n == 0)
        return td_fail(err, TD_INVALID, "%s: an empty token", where);
    if (n > TD_TOKENIZER_MAX_TOKEN_BYTES)
        return td_fail(err, TD_UNSUPPORTED, "%s: a token of %zu bytes, at most %u are taken", where,
                       n, TD_TOKENIZER_MAX_TOKEN_BYTES);
    return TD_OK;
}

/* Puts the vocabulary's members in the order of their ids. */
static td_status order_vocab(const cJSON *vocab, const cJSON **by_id, uint32_t n, td_err *err)
{
    char quoted[80];
    for (const cJSON *child = vocab->child; child != NULL; child = child->next) {
        uint32_t id;
        td_status st = check_content(child->string, "model.vocab", err);
        if (st != TD_OK)
            return st;
        if (!read_id(child, n, &id))
            return td_fail(err, TD_INVALID, "model.vocab: token %s: the id is not one of 0..%u",
                           td_tok_quote(child->string, quoted), n - 1);
        if (by_id[id] != NULL)
            return td_fail(err, TD_INVALID, "model.vocab: token %s: id %u is another token's too",
                           td_tok_quote(child->string, quoted), id);
        by_id[id] = child;
    }
    return TD_OK;
}

/* Room for the vocabulary and for all added tokens, were they all new. */
static td_status make_tables(td_tokenizer *tok, const cJSON *vocab, const cJSON *added,
                             uint32_t *n_vocab, td_err *err)
{
    size_t n = 0, n_bytes = 0;
    for (const cJSON *child = vocab->child; child != NULL; child = child->next, n++)
        n_bytes += strlen(child->string);
    *n_vocab = (uint32_t)n;
    for (const cJSON *child = added == NULL ? NULL : added->child; child != NULL;
         child = child->next, n++) {
        const cJSON *content = cJSON_GetObjectItemCaseSensitive(child, "content");
        n_bytes += cJSON_IsString(content) ? strlen(content->valuestring) : 0;
    }
    if (n > TD_TOKENIZER_MAX_TOKENS || n_bytes > UINT32_MAX / 2)
        return td_fail(err, TD_TOO_LARGE, "model.vocab: %zu tokens, at most %u are taken", n,
                       TD_TOKENIZER_MAX_TOKENS);
    tok->marks = calloc(n + 1, sizeof(*tok->marks));
    if (tok->marks == NULL || td_tok_strings_init(&tok->contents, (uint32_t)n, n_bytes) != TD_OK ||
        td_tok_strings_init(&tok->texts, (uint32_t)n, n_bytes) != TD_OK ||
        td_tok_index_init(&tok->by_content, (uint32_t)n) != TD_OK)
        return td_fail(err, TD_NOMEM, "model.vocab: no memory for %zu tokens", n);
    return TD_OK;
}

td_status td_tok_load_vocab(td_tokenizer *tok, const cJSON *vocab, const cJSON *added, td_err *err)
{
    char quoted[80];
    uint32_t n = 0;
    const cJSON **by_id = NULL;
    uint8_t *buffer = NULL;
    if (!cJSON_IsObject(vocab))
        return td_fail(err, TD_INVALID, "model.vocab: not an object");
    td_status st = make_tables(tok, vocab, added, &n, err);
    if (st != TD_OK)
        return st;
    by_id = calloc((size_t)n + 1, sizeof(*by_id));
    buffer = malloc(TD_TOKENIZER_MAX_TOKEN_BYTES);
    if (by_id == NULL || buffer == NULL) {
        st = td_fail(err, TD_NOMEM, "model.vocab: no memory for %u tokens", n);
        goto out;
    }
    if ((st = order_vocab(vocab, by_id, n, err)) != TD_OK)
        goto out;
    for (uint32_t id = 0; id < n; id++) {
        td_assert(by_id[id] != NULL); /* n different ids below n */
        add_token(tok, by_id[id]->string, buffer);
        if (td_tok_index_add(&tok->by_content, &tok->contents, id) != TD_TOK_NONE) {
            st = td_fail(err, TD_INVALID, "model.vocab: token %s twice",
                         td_tok_quote(by_id[id]->string, quoted));
            goto out;
        }
    }
    tok->n_vocab = tok->info.n_tokens = n;
out:
    free(by_id);
    free(buffer);
    return st;
}

/* {"id": 3, "content": "<think>", "special": true, ...}: all members must be there. */
static td_status read_added(const cJSON *json, const char *where, td_tok_added *added,
                            const cJSON **id, const char **content, td_err *err)
{
    static const char *const names[] = {"single_word", "lstrip", "rstrip", "normalized", "special"};
    bool *const flags[] = {&added->single_word, &added->lstrip, &added->rstrip, &added->normalized,
                           &added->special};
    const cJSON *text, *values[5];
    const td_tok_member members[] = {{"id", id},
                                     {"content", &text},
                                     {names[0], &values[0]},
                                     {names[1], &values[1]},
                                     {names[2], &values[2]},
                                     {names[3], &values[3]},
                                     {names[4], &values[4]}};
    td_status st = td_tok_members(json, where, members, 7, err);
    for (int i = 0; st == TD_OK && i < 5; i++) {
        if (values[i] == NULL)
            return td_fail(err, TD_INVALID, "%s: no \"%s\"", where, names[i]);
        st = td_tok_bool(values[i], where, names[i], false, flags[i], err);
    }
    if (st != TD_OK)
        return st;
    if (!cJSON_IsString(text))
        return td_fail(err, TD_INVALID, "%s: \"content\" is not a string", where);
    *content = text->valuestring;
    return check_content(*content, where, err);
}

static td_status load_added(td_tokenizer *tok, const cJSON *json, uint8_t *buffer, td_err *err)
{
    char where[40], quoted[80];
    const cJSON *json_id;
    const char *content = "";
    td_tok_added *added = &tok->added[tok->n_added];
    snprintf(where, sizeof(where), "added_tokens[%u]", tok->n_added);
    td_status st = read_added(json, where, added, &json_id, &content, err);
    if (st != TD_OK)
        return st;
    uint32_t got,
        want = td_tok_index_find(&tok->by_content, &tok->contents, content, strlen(content));
    bool is_new = want == TD_TOK_NONE;
    if (is_new)
        want = tok->info.n_tokens; /* Hugging Face numbers them so, whatever the file says */
    if (!read_id(json_id, TD_TOKENIZER_MAX_TOKENS, &got) || got != want)
        return td_fail(err, TD_INVALID, "%s: token %s: the id is not %u", where,
                       td_tok_quote(content, quoted), want);
    if (is_new) {
        add_token(tok, content, buffer);
        td_tok_index_add(&tok->by_content, &tok->contents, want);
        tok->info.n_tokens++;
    }
    if ((tok->marks[want] & TD_TOK_ADDED) != 0)
        return td_fail(err, TD_INVALID, "%s: token %s was added before", where,
                       td_tok_quote(content, quoted));
    tok->marks[want] |= TD_TOK_ADDED | (added->special ? TD_TOK_SPECIAL : 0);
    added->id = (int32_t)want;
    tok->n_added++;
    return TD_OK;
}

td_status td_tok_load_added(td_tokenizer *tok, const cJSON *json, td_err *err)
{
    if (json != NULL && !cJSON_IsArray(json))
        return td_fail(err, TD_INVALID, "added_tokens: not an array");
    size_t n = 0;
    for (const cJSON *child = json == NULL ? NULL : json->child; child != NULL; child = child->next)
        n++;
    uint8_t *buffer = malloc(TD_TOKENIZER_MAX_TOKEN_BYTES);
    tok->added = calloc(n + 1, sizeof(*tok->added));
    td_status st = TD_OK;
    if (buffer == NULL || tok->added == NULL)
        st = td_fail(err, TD_NOMEM, "added_tokens: no memory for %zu tokens", n);
    for (const cJSON *child = n == 0 ? NULL : json->child; child != NULL && st == TD_OK;
         child = child->next)
        st = load_added(tok, child, buffer, err);
    free(buffer);
    return st;
}
