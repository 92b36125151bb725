/* What every part of the loader needs: members of an object, each at most once, and none unknown.
 */
#include "model/tokenizer/internal.h"

#include <stdio.h>
#include <string.h>

const char *td_tok_quote(const char *text, char buf[80])
{
    size_t n = 0;
    buf[n++] = '"';
    for (; *text != '\0' && n < 70; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c < 0x7f)
            buf[n++] = (char)c;
        else
            n += (size_t)snprintf(buf + n, 80 - n, "\\x%02x", c);
    }
    snprintf(buf + n, 80 - n, *text == '\0' ? "\"" : "...\"");
    return buf;
}

td_status td_tok_members(const cJSON *obj, const char *where, const td_tok_member *members,
                         size_t n, td_err *err)
{
    char quoted[80];
    unsigned seen = 0;
    td_assert(n <= 32);
    for (size_t i = 0; i < n; i++)
        *members[i].out = NULL;
    if (!cJSON_IsObject(obj))
        return td_fail(err, TD_INVALID, "%s: not an object", where);
    for (const cJSON *child = obj->child; child != NULL; child = child->next) {
        size_t i = 0;
        while (i < n && strcmp(members[i].name, child->string) != 0)
            i++;
        if (i == n)
            return td_fail(err, TD_UNSUPPORTED, "%s: unknown member %s", where,
                           td_tok_quote(child->string, quoted));
        if ((seen >> i & 1) != 0)
            return td_fail(err, TD_INVALID, "%s: member \"%s\" twice", where, members[i].name);
        seen |= 1u << i;
        if (!cJSON_IsNull(child))
            *members[i].out = child;
    }
    return TD_OK;
}

td_status td_tok_bool(const cJSON *json, const char *where, const char *name, bool def, bool *out,
                      td_err *err)
{
    if (json != NULL && !cJSON_IsBool(json))
        return td_fail(err, TD_INVALID, "%s: \"%s\" is neither true nor false", where, name);
    *out = json == NULL ? def : cJSON_IsTrue(json);
    return TD_OK;
}
