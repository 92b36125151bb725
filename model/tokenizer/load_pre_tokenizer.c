/* "pre_tokenizer": a Sequence of Splits that ends with ByteLevel, or ByteLevel alone. */
#include "model/tokenizer/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The "type" of a part; NULL: it has none. */
static const char *type_of(const cJSON *json)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(json, "type");
    return cJSON_IsString(type) ? type->valuestring : NULL;
}

static td_status load_byte_level(const cJSON *json, const char *where, td_err *err)
{
    const cJSON *type, *prefix, *trim, *regex;
    const td_tok_member members[] = {{"type", &type},
                                     {"add_prefix_space", &prefix},
                                     {"trim_offsets", &trim},
                                     {"use_regex", &regex}};
    bool add_prefix_space, use_regex;
    td_status st = td_tok_members(json, where, members, 4, err);
    if (st != TD_OK ||
        (st = td_tok_bool(prefix, where, "add_prefix_space", true, &add_prefix_space, err)) !=
            TD_OK ||
        (st = td_tok_bool(regex, where, "use_regex", true, &use_regex, err)) != TD_OK)
        return st;
    if (add_prefix_space || use_regex)
        return td_fail(err, TD_UNSUPPORTED, "%s: ByteLevel with \"%s\" is not supported", where,
                       add_prefix_space ? "add_prefix_space" : "use_regex");
    return TD_OK;
}

/* "pattern": {"Regex": ".."} or {"String": ".."}; the latter is escaped to a regex. */
static td_status read_pattern(const cJSON *pattern, const char *where, char **out, td_err *err)
{
    const cJSON *regex, *string;
    const td_tok_member members[] = {{"Regex", &regex}, {"String", &string}};
    td_status st = td_tok_members(pattern, where, members, 2, err);
    if (st != TD_OK)
        return st;
    const cJSON *text = regex != NULL ? regex : string;
    if (!cJSON_IsString(text) || (regex != NULL && string != NULL))
        return td_fail(err, TD_INVALID, "%s: \"pattern\" is neither a Regex nor a String", where);
    if (regex != NULL)
        return td_tok_pattern_translate(text->valuestring, where, out, err);
    char *escaped = malloc(2 * strlen(text->valuestring) + 1), *w = escaped;
    if (escaped == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory", where);
    for (const char *p = text->valuestring; *p != '\0'; p++) {
        if (strchr("\\[](){}|*+?.^$", *p) != NULL)
            *w++ = '\\';
        *w++ = *p;
    }
    *w = '\0';
    st = td_tok_pattern_translate(escaped, where, out, err);
    free(escaped);
    return st;
}

static td_status load_split(td_tokenizer *tok, const cJSON *json, const char *where, td_err *err)
{
    const cJSON *type, *pattern, *behavior, *json_invert;
    const td_tok_member members[] = {
        {"type", &type}, {"pattern", &pattern}, {"behavior", &behavior}, {"invert", &json_invert}};
    bool invert;
    char *translated = NULL, quoted[80];
    td_status st = td_tok_members(json, where, members, 4, err);
    if (st != TD_OK ||
        (st = td_tok_bool(json_invert, where, "invert", false, &invert, err)) != TD_OK)
        return st;
    if (!cJSON_IsString(behavior))
        return td_fail(err, TD_INVALID, "%s: no \"behavior\"", where);
    if (strcmp(behavior->valuestring, "Isolated") != 0)
        return td_fail(err, TD_UNSUPPORTED, "%s: Split behavior %s is not supported", where,
                       td_tok_quote(behavior->valuestring, quoted));
    if (invert)
        return td_fail(err, TD_UNSUPPORTED, "%s: Split with \"invert\" is not supported", where);
    if (tok->n_patterns == TD_TOK_MAX_PATTERNS)
        return td_fail(err, TD_UNSUPPORTED, "%s: more than %d Splits", where, TD_TOK_MAX_PATTERNS);
    if ((st = read_pattern(pattern, where, &translated, err)) != TD_OK)
        return st;
    st = td_tok_pattern_compile(tok, translated, where, &tok->patterns[tok->n_patterns], err);
    free(translated);
    tok->n_patterns += st == TD_OK;
    return st;
}

static td_status load_part(td_tokenizer *tok, const cJSON *json, const char *where, bool *ends,
                           td_err *err)
{
    char quoted[80];
    const char *type = type_of(json);
    if (type == NULL)
        return td_fail(err, TD_INVALID, "%s: no \"type\"", where);
    *ends = strcmp(type, "ByteLevel") == 0;
    if (*ends)
        return load_byte_level(json, where, err);
    if (strcmp(type, "Split") == 0)
        return load_split(tok, json, where, err);
    return td_fail(err, TD_UNSUPPORTED, "%s: type %s is not supported", where,
                   td_tok_quote(type, quoted));
}

static td_status load_sequence(td_tokenizer *tok, const cJSON *json, bool *ends, td_err *err)
{
    const cJSON *type, *parts;
    const td_tok_member members[] = {{"type", &type}, {"pretokenizers", &parts}};
    td_status st = td_tok_members(json, "pre_tokenizer", members, 2, err);
    if (st != TD_OK)
        return st;
    if (!cJSON_IsArray(parts))
        return td_fail(err, TD_INVALID, "pre_tokenizer: no \"pretokenizers\"");
    unsigned i = 0;
    for (const cJSON *part = parts->child; part != NULL; part = part->next, i++) {
        char where[64];
        snprintf(where, sizeof(where), "pre_tokenizer.pretokenizers[%u]", i);
        if (*ends)
            return td_fail(err, TD_UNSUPPORTED, "%s: something after ByteLevel", where);
        if ((st = load_part(tok, part, where, ends, err)) != TD_OK)
            return st;
    }
    return TD_OK;
}

td_status td_tok_load_pre_tokenizer(td_tokenizer *tok, const cJSON *json, td_err *err)
{
    bool ends = false;
    td_status st = TD_OK;
    const char *type = json == NULL ? NULL : type_of(json);
    if (type != NULL && strcmp(type, "Sequence") == 0)
        st = load_sequence(tok, json, &ends, err);
    else if (json != NULL)
        st = load_part(tok, json, "pre_tokenizer", &ends, err);
    if (st == TD_OK && !ends)
        st = td_fail(err, TD_UNSUPPORTED, "pre_tokenizer: does not end with ByteLevel");
    return st;
}
