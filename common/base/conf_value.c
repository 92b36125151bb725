#include "common/base/conf_value.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *suffix;
    uint64_t factor;
} unit;

static const unit time_units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
static const unit size_units[] = {
    {"B", 1}, {"KiB", 1ULL << 10}, {"MiB", 1ULL << 20}, {"GiB", 1ULL << 30}, {"TiB", 1ULL << 40}};

/* A knob's value before it is stored; pointers are malloc'ed and the holder's. */
typedef union {
    uint64_t u;
    double f;
    char *str;
    td_conf_list list;
} value;

bool td_conf_is_number(td_conf_type type)
{
    return type == TD_CONF_U32 || type == TD_CONF_U64 || type == TD_CONF_MS ||
           type == TD_CONF_BYTES || type == TD_CONF_F64;
}

bool td_conf_is_required(const td_conf_field *field)
{
    return field->def == NULL &&
           (field->type == TD_CONF_STR || (field->type == TD_CONF_LIST && field->min != NULL));
}

static const char *wanted(td_conf_type type)
{
    switch (type) {
    case TD_CONF_U32:
    case TD_CONF_U64: return "a whole number";
    case TD_CONF_MS: return "a time such as 250ms, 30s, 10m, 2h or a number of milliseconds";
    case TD_CONF_BYTES: return "a size such as 4096, 64KiB, 64MiB or 1GiB";
    case TD_CONF_F64: return "a number";
    case TD_CONF_BOOL: return "true or false";
    case TD_CONF_STR: return "a string";
    case TD_CONF_ENUM: return "one of its names";
    case TD_CONF_LIST: return "a list of strings";
    }
    return "a value";
}

/* Digits, then one of the units or nothing (factor 1). */
static bool parse_whole(const char *text, const unit *units, size_t n_units, uint64_t *out)
{
    const char *p = text;
    uint64_t v = 0;
    if (!isdigit((unsigned char)*p))
        return false;
    for (; isdigit((unsigned char)*p); p++)
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            return false;
    if (*p != '\0') {
        size_t i = 0;
        while (i < n_units && strcmp(p, units[i].suffix) != 0)
            i++;
        if (i == n_units || __builtin_mul_overflow(v, units[i].factor, &v))
            return false;
    }
    *out = v;
    return true;
}

bool td_conf_parse_whole(const char *text, uint64_t *out)
{
    return parse_whole(text, NULL, 0, out);
}

static bool parse_number(td_conf_type type, const char *text, value *out)
{
    const size_t n_time = sizeof(time_units) / sizeof(time_units[0]);
    const size_t n_size = sizeof(size_units) / sizeof(size_units[0]);
    switch (type) {
    case TD_CONF_U32: return parse_whole(text, NULL, 0, &out->u) && out->u <= UINT32_MAX;
    case TD_CONF_U64: return parse_whole(text, NULL, 0, &out->u);
    case TD_CONF_MS:
        return parse_whole(text, time_units, n_time, &out->u) && out->u <= (uint64_t)INT64_MAX;
    case TD_CONF_BYTES: return parse_whole(text, size_units, n_size, &out->u);
    default: break;
    }
    char *end;
    if (text[0] == '\0' || isspace((unsigned char)text[0]))
        return false;
    out->f = strtod(text, &end);
    return *end == '\0' && isfinite(out->f);
}

static bool parse_bool(const char *text, uint64_t *out)
{
    if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
        return false;
    *out = text[0] == 't';
    return true;
}

/* The place of text among the names "a|b|c". */
static bool parse_enum(const char *names, const char *text, uint64_t *out)
{
    size_t n = strlen(text);
    uint64_t index = 0;
    for (const char *p = names; n > 0; index++) {
        size_t len = strcspn(p, "|");
        if (len == n && memcmp(p, text, n) == 0) {
            *out = index;
            return true;
        }
        if (p[len] == '\0')
            return false;
        p += len + 1;
    }
    return false;
}

static void list_free(td_conf_list *list)
{
    for (uint32_t i = 0; i < list->n; i++)
        free(list->items[i]);
    free(list->items);
    list->items = NULL;
    list->n = 0;
}

/* Splits "a,b,c"; blanks around an item are dropped, empty items refused by the caller's check of
 * n. */
static td_status parse_list(const char *text, td_conf_list *out, td_err *err)
{
    td_conf_list list = {NULL, 0};
    size_t n = text[0] != '\0';
    for (const char *p = text; *p != '\0'; p++)
        n += *p == ',';
    if (n > 0) {
        list.items = calloc(n, sizeof(*list.items));
        if (list.items == NULL)
            goto no_memory;
    }
    for (const char *p = text; list.n < n;) {
        size_t len = strcspn(p, ","), skip = strspn(p, " ");
        const char *next = p + len + 1;
        for (p += skip < len ? skip : len, len = (size_t)(next - 1 - p);
             len > 0 && p[len - 1] == ' ';)
            len--;
        if (len == 0) {
            list_free(&list);
            return td_fail(err, TD_CONFIG, "an item of the list is empty");
        }
        list.items[list.n] = strndup(p, len);
        if (list.items[list.n] == NULL)
            goto no_memory;
        list.n++;
        p = next;
    }
    *out = list;
    return TD_OK;
no_memory:
    list_free(&list);
    return td_fail(err, TD_NOMEM, "out of memory");
}

static td_status check_bounds(const td_conf_field *field, const value *v, const char *text,
                              td_err *err)
{
    value bound = {0};
    for (int upper = 0; upper < 2; upper++) {
        const char *limit = upper ? field->max : field->min;
        if (limit == NULL)
            continue;
        bool good = parse_number(field->type, limit, &bound);
        td_assert(good);
        bool beyond = field->type == TD_CONF_F64 ? (upper ? v->f > bound.f : v->f < bound.f)
                                                 : (upper ? v->u > bound.u : v->u < bound.u);
        if (beyond)
            return td_fail(err, TD_CONFIG, "%s is %s %s", text, upper ? "above" : "below", limit);
    }
    return TD_OK;
}

static td_status check_list(const td_conf_field *field, const td_conf_list *list, td_err *err)
{
    value limit = {0};
    if (field->max == NULL)
        return TD_OK;
    bool good = parse_number(TD_CONF_U32, field->max, &limit);
    td_assert(good);
    if (list->n > limit.u)
        return td_fail(err, TD_CONFIG, "has %u items, at most %s are allowed", list->n, field->max);
    return TD_OK;
}

void *td_conf_member(const td_conf_field *field, void *conf)
{
    return (char *)conf + field->offset;
}

/* Takes over v's memory. */
static void store(const td_conf_field *field, const value *v, void *conf)
{
    void *at = td_conf_member(field, conf);
    switch (field->type) {
    case TD_CONF_U32: *(uint32_t *)at = (uint32_t)v->u; break;
    case TD_CONF_U64:
    case TD_CONF_BYTES: *(uint64_t *)at = v->u; break;
    case TD_CONF_MS: *(int64_t *)at = (int64_t)v->u; break;
    case TD_CONF_F64: *(double *)at = v->f; break;
    case TD_CONF_BOOL: *(bool *)at = v->u != 0; break;
    case TD_CONF_ENUM: *(int *)at = (int)v->u; break;
    case TD_CONF_STR:
        free(*(char **)at);
        *(char **)at = v->str;
        break;
    case TD_CONF_LIST:
        list_free(at);
        *(td_conf_list *)at = v->list;
        break;
    }
}

td_status td_conf_set_text(const td_conf_field *field, const char *text, void *conf, td_err *err)
{
    value v;
    td_status st;
    if (td_conf_is_number(field->type)) {
        if (!parse_number(field->type, text, &v))
            return td_fail(err, TD_CONFIG, "\"%s\" is not %s", text, wanted(field->type));
        st = check_bounds(field, &v, text, err);
    } else if (field->type == TD_CONF_BOOL) {
        if (!parse_bool(text, &v.u))
            return td_fail(err, TD_CONFIG, "\"%s\" is not true or false", text);
        st = TD_OK;
    } else if (field->type == TD_CONF_ENUM) {
        if (!parse_enum(field->min, text, &v.u))
            return td_fail(err, TD_CONFIG, "\"%s\" is not one of %s", text, field->min);
        st = TD_OK;
    } else if (field->type == TD_CONF_STR) {
        v.str = strdup(text);
        st = v.str == NULL ? td_fail(err, TD_NOMEM, "out of memory") : TD_OK;
    } else {
        st = parse_list(text, &v.list, err);
        if (st == TD_OK && (st = check_list(field, &v.list, err)) != TD_OK)
            list_free(&v.list);
    }
    if (st == TD_OK)
        store(field, &v, conf);
    return st;
}

static td_status set_json_list(const td_conf_field *field, const cJSON *array, void *conf,
                               td_err *err)
{
    value v = {.list = {NULL, 0}};
    uint32_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
            return td_fail(err, TD_CONFIG, "item %u is not a string, or empty", n);
        n++;
    }
    if (n > 0 && (v.list.items = calloc(n, sizeof(char *))) == NULL)
        return td_fail(err, TD_NOMEM, "out of memory");
    cJSON_ArrayForEach(item, array)
    {
        if ((v.list.items[v.list.n] = strdup(item->valuestring)) == NULL) {
            list_free(&v.list);
            return td_fail(err, TD_NOMEM, "out of memory");
        }
        v.list.n++;
    }
    td_status st = check_list(field, &v.list, err);
    if (st != TD_OK)
        list_free(&v.list);
    else
        store(field, &v, conf);
    return st;
}

td_status td_conf_set_json(const td_conf_field *field, const cJSON *item, void *conf, td_err *err)
{
    char text[32];
    if (field->type == TD_CONF_LIST && cJSON_IsArray(item))
        return set_json_list(field, item, conf, err);
    if (field->type == TD_CONF_BOOL && cJSON_IsBool(item))
        return td_conf_set_text(field, cJSON_IsTrue(item) ? "true" : "false", conf, err);
    if (td_conf_is_number(field->type) && cJSON_IsNumber(item)) {
        double d = item->valuedouble;
        if (field->type == TD_CONF_F64)
            snprintf(text, sizeof(text), "%.17g", d);
        else if (d >= 0 && d <= TD_CONF_EXACT_MAX && d == floor(d))
            snprintf(text, sizeof(text), "%.0f", d);
        else
            return td_fail(err, TD_CONFIG, "%.17g is not a whole number from 0 to 2^53", d);
        return td_conf_set_text(field, text, conf, err);
    }
    if (field->type != TD_CONF_BOOL && field->type != TD_CONF_LIST && cJSON_IsString(item))
        return td_conf_set_text(field, item->valuestring, conf, err);
    return td_fail(err, TD_CONFIG, "wants %s", wanted(field->type));
}

void td_conf_free(const td_conf_spec *spec, void *conf)
{
    for (size_t i = 0; i < spec->n_fields; i++) {
        const td_conf_field *field = &spec->fields[i];
        if (field->type == TD_CONF_STR) {
            char **str = td_conf_member(field, conf);
            free(*str);
            *str = NULL;
        } else if (field->type == TD_CONF_LIST) {
            list_free(td_conf_member(field, conf));
        }
    }
}
