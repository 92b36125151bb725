/* "model": the vocabulary's loader stands in load_vocab.c; here its options, the merges, and the
 * words that need none. */
#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

#define N_BYTES 256

static td_status find_bytes(td_tokenizer *tok, td_err *err)
{
    for (unsigned byte = 0; byte < N_BYTES; byte++) {
        uint8_t content[4];
        size_t n = td_utf8_put(td_tok_char_of((uint8_t)byte), content);
        tok->byte_ids[byte] = td_tok_index_find(&tok->by_content, &tok->contents, content, n);
        if (tok->byte_ids[byte] == TD_TOK_NONE)
            return td_fail(err, TD_INVALID, "model.vocab: no token for the single byte 0x%02x",
                           byte);
    }
    return TD_OK;
}

/* "left right" in one string, or the two in an array. */
static bool cut_merge(const cJSON *json, const char **left, size_t *n_left, const char **right)
{
    if (cJSON_IsString(json)) {
        const char *space = strchr(json->valuestring, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL)
            return false;
        *left = json->valuestring;
        *n_left = (size_t)(space - json->valuestring);
        *right = space + 1;
        return true;
    }
    if (!cJSON_IsArray(json) || !cJSON_IsString(json->child) ||
        !cJSON_IsString(json->child->next) || json->child->next->next != NULL)
        return false;
    *left = json->child->valuestring;
    *n_left = strlen(*left);
    *right = json->child->next->valuestring;
    return true;
}

static td_status load_merge(td_tokenizer *tok, const cJSON *json, char *joined, td_err *err)
{
    const char *left, *right;
    char quoted[80];
    size_t n_left, n_right;
    uint32_t rank = tok->merges.n;
    if (!cut_merge(json, &left, &n_left, &right))
        return td_fail(err, TD_INVALID, "model.merges[%u]: not two tokens", rank);
    n_right = strlen(right);
    if (n_left + n_right > TD_TOKENIZER_MAX_TOKEN_BYTES)
        return td_fail(err, TD_UNSUPPORTED, "model.merges[%u]: more than %u bytes", rank,
                       TD_TOKENIZER_MAX_TOKEN_BYTES);
    memcpy(joined, left, n_left);
    memcpy(joined + n_left, right, n_right + 1);
    const struct {
        const char *bytes;
        size_t n;
    } parts[3] = {{joined, n_left}, {joined + n_left, n_right}, {joined, n_left + n_right}};
    uint32_t ids[3];
    for (int i = 0; i < 3; i++) {
        ids[i] = td_tok_index_find(&tok->by_content, &tok->contents, parts[i].bytes, parts[i].n);
        if (ids[i] == TD_TOK_NONE) {
            joined[parts[i].n + (size_t)(parts[i].bytes - joined)] = '\0';
            return td_fail(err, TD_INVALID, "model.merges[%u]: unknown token %s", rank,
                           td_tok_quote(parts[i].bytes, quoted));
        }
    }
    if (td_tok_merges_add(&tok->merges, ids[0], ids[1], ids[2]) != TD_OK)
        return td_fail(err, TD_INVALID, "model.merges[%u]: this pair was there before", rank);
    return TD_OK;
}

static void find_byte_pairs(td_tokenizer *tok)
{
    for (unsigned a = 0; a < N_BYTES; a++)
        for (unsigned b = 0; b < N_BYTES; b++)
            tok->merges.byte_pairs[a << 8 | b] =
                td_tok_merges_rank(&tok->merges, tok->byte_ids[a], tok->byte_ids[b]);
}

static td_status load_merges(td_tokenizer *tok, const cJSON *merges, td_err *err)
{
    if (!cJSON_IsArray(merges))
        return td_fail(err, TD_INVALID, "model.merges: not an array");
    size_t n = 0;
    for (const cJSON *child = merges->child; child != NULL; child = child->next)
        n++;
    if (n > TD_TOKENIZER_MAX_TOKENS)
        return td_fail(err, TD_TOO_LARGE, "model.merges: %zu merges, at most %u are taken", n,
                       TD_TOKENIZER_MAX_TOKENS);
    char *joined = malloc(TD_TOKENIZER_MAX_TOKEN_BYTES + 1);
    if (joined == NULL || td_tok_merges_init(&tok->merges, (uint32_t)n) != TD_OK) {
        free(joined);
        return td_fail(err, TD_NOMEM, "model.merges: no memory for %zu merges", n);
    }
    td_status st = TD_OK;
    for (const cJSON *child = merges->child; child != NULL && st == TD_OK; child = child->next)
        st = load_merge(tok, child, joined, err);
    free(joined);
    if (st == TD_OK)
        find_byte_pairs(tok);
    return st;
}

/* Most pieces of a text are one token. Which tokens come out whole when their own bytes are encoded
 * is settled here, once, so that encoding may look such a piece up. With ignore_merges every token
 * of the vocabulary is taken whole. */
static td_status find_words(td_tokenizer *tok, td_err *err)
{
    td_tok_encoder enc;
    uint32_t longest = 0;
    if (td_tok_index_init(&tok->words, tok->n_vocab) != TD_OK)
        return td_fail(err, TD_NOMEM, "model.vocab: no memory for %u words", tok->n_vocab);
    td_status st = td_tok_encoder_init(&enc, tok, 0, err);
    for (uint32_t id = 0; st == TD_OK && id < tok->n_vocab; id++) {
        size_t n;
        const uint8_t *bytes = td_tok_string(&tok->texts, id, &n);
        if ((tok->marks[id] & TD_TOK_UNMAPPED) != 0)
            continue;
        enc.n_ids = 0;
        if (!tok->ignore_merges && (st = td_tok_bpe(&enc, bytes, n)) != TD_OK)
            break;
        if (tok->ignore_merges || (enc.n_ids == 1 && enc.ids[0] == (int32_t)id)) {
            td_tok_index_add(&tok->words, &tok->texts, id);
            longest = n > longest ? (uint32_t)n : longest;
        }
    }
    td_tok_encoder_fini(&enc);
    tok->max_word_bytes = longest; /* from here on td_tok_bpe() looks words up */
    return st;
}

/* Options that change ids must be off; those that only matter for characters without a token never
 * apply to us, but a file that sets them was made for something else. */
static td_status check_options(const cJSON *const *off, const char *const *names, size_t n,
                               td_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const cJSON *json = off[i];
        bool is_off = json == NULL || cJSON_IsFalse(json) ||
                      (cJSON_IsNumber(json) && json->valuedouble == 0) ||
                      (cJSON_IsString(json) && json->valuestring[0] == '\0');
        if (!is_off)
            return td_fail(err, TD_UNSUPPORTED, "model: \"%s\" is not supported", names[i]);
    }
    return TD_OK;
}

td_status td_tok_load_model(td_tokenizer *tok, const cJSON *model, const cJSON *added, td_err *err)
{
    static const char *const names[] = {
        "dropout",  "unk_token",    "continuing_subword_prefix", "end_of_word_suffix",
        "fuse_unk", "byte_fallback"};
    const cJSON *type, *vocab, *merges, *ignore, *off[6];
    const td_tok_member members[] = {
        {"type", &type},     {"vocab", &vocab},   {"merges", &merges}, {"ignore_merges", &ignore},
        {names[0], &off[0]}, {names[1], &off[1]}, {names[2], &off[2]}, {names[3], &off[3]},
        {names[4], &off[4]}, {names[5], &off[5]},
    };
    char quoted[80];
    td_status st =
        td_tok_members(model, "model", members, sizeof(members) / sizeof(members[0]), err);
    if (st != TD_OK)
        return st;
    if (!cJSON_IsString(type))
        return td_fail(err, TD_INVALID, "model: no \"type\"");
    if (strcmp(type->valuestring, "BPE") != 0)
        return td_fail(err, TD_UNSUPPORTED, "model: type %s is not supported, only BPE is",
                       td_tok_quote(type->valuestring, quoted));
    if ((st = check_options(off, names, 6, err)) != TD_OK ||
        (st = td_tok_bool(ignore, "model", "ignore_merges", false, &tok->ignore_merges, err)) !=
            TD_OK ||
        (st = td_tok_load_vocab(tok, vocab, added, err)) != TD_OK ||
        (st = find_bytes(tok, err)) != TD_OK || (st = load_merges(tok, merges, err)) != TD_OK)
        return st;
    return find_words(tok, err);
}
