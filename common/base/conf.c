#include "common/base/conf.h"

#include "common/base/version.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX_BYTES (1u << 20)
#define EXACT_MAX 9007199254740992.0 /* 2^53: larger integers travel as strings */

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

/* --- text to value
 * ------------------------------------------------------------------------------------------- */

static int is_number(td_conf_type type)
{
    return type == TD_CONF_U32 || type == TD_CONF_U64 || type == TD_CONF_MS ||
           type == TD_CONF_BYTES || type == TD_CONF_F64;
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

/* --- bounds, storing
 * ----------------------------------------------------------------------------------------- */

static td_status check_bounds(const td_conf_field *field, const value *v, const char *text,
                              td_err *err)
{
    value bound;
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
    value limit;
    if (field->max == NULL)
        return TD_OK;
    bool good = parse_number(TD_CONF_U32, field->max, &limit);
    td_assert(good);
    if (list->n > limit.u)
        return td_fail(err, TD_CONFIG, "has %u items, at most %s are allowed", list->n, field->max);
    return TD_OK;
}

static void *member(const td_conf_field *field, void *conf)
{
    return (char *)conf + field->offset;
}

/* Takes over v's memory. */
static void store(const td_conf_field *field, const value *v, void *conf)
{
    void *at = member(field, conf);
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

static td_status set_text(const td_conf_field *field, const char *text, void *conf, td_err *err)
{
    value v;
    td_status st;
    if (is_number(field->type)) {
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

static td_status set_json(const td_conf_field *field, const cJSON *item, void *conf, td_err *err)
{
    char text[32];
    if (field->type == TD_CONF_LIST && cJSON_IsArray(item))
        return set_json_list(field, item, conf, err);
    if (field->type == TD_CONF_BOOL && cJSON_IsBool(item))
        return set_text(field, cJSON_IsTrue(item) ? "true" : "false", conf, err);
    if (is_number(field->type) && cJSON_IsNumber(item)) {
        double d = item->valuedouble;
        if (field->type == TD_CONF_F64)
            snprintf(text, sizeof(text), "%.17g", d);
        else if (d >= 0 && d <= EXACT_MAX && d == floor(d))
            snprintf(text, sizeof(text), "%.0f", d);
        else
            return td_fail(err, TD_CONFIG, "%.17g is not a whole number from 0 to 2^53", d);
        return set_text(field, text, conf, err);
    }
    if (field->type != TD_CONF_BOOL && field->type != TD_CONF_LIST && cJSON_IsString(item))
        return set_text(field, item->valuestring, conf, err);
    return td_fail(err, TD_CONFIG, "wants %s", wanted(field->type));
}

/* --- the file
 * ------------------------------------------------------------------------------------------------
 */

static int line_at(const char *text, size_t offset)
{
    int line = 1;
    for (size_t i = 0; i < offset; i++)
        line += text[i] == '\n';
    return line;
}

/* Past the string that begins at i (on its quote); n if it has no end. */
static size_t skip_string(const char *text, size_t n, size_t i)
{
    for (i++; i < n && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i < n ? i + 1 : n;
}

/* The line of the index-th key of the object that is the whole text: cJSON keeps order, but no
 * positions. */
static int line_of_key(const char *text, size_t n, size_t index)
{
    int depth = 0;
    bool key_next = false;
    for (size_t i = 0; i < n;) {
        char c = text[i];
        if (c == '"') {
            if (depth == 1 && key_next && index-- == 0)
                return line_at(text, i);
            key_next = false;
            i = skip_string(text, n, i);
            continue;
        }
        if (c == '{' || c == '[') {
            key_next = depth == 0 && c == '{';
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',' && depth == 1) {
            key_next = true;
        }
        i++;
    }
    return 0;
}

static const td_conf_field *find_field(const td_conf_spec *spec, const char *name, size_t n)
{
    for (size_t i = 0; i < spec->n_fields; i++)
        if (strlen(spec->fields[i].name) == n && memcmp(spec->fields[i].name, name, n) == 0)
            return &spec->fields[i];
    return NULL;
}

static td_status apply_object(const td_conf_spec *spec, const cJSON *root, const char *path,
                              const char *text, size_t n, void *conf, td_err *err)
{
    size_t index = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        const td_conf_field *field = find_field(spec, item->string, strlen(item->string));
        int line = line_of_key(text, n, index++);
        if (field == NULL)
            return td_fail(err, TD_CONFIG, "%s:%d: unknown key \"%s\" (%s --help lists them)", path,
                           line, item->string, spec->program);
        for (const cJSON *other = root->child; other != item; other = other->next)
            if (strcmp(other->string, item->string) == 0)
                return td_fail(err, TD_CONFIG, "%s:%d: \"%s\" is given twice", path, line,
                               item->string);
        td_status st = set_json(field, item, conf, err);
        if (st != TD_OK) {
            td_fail_prefix(err, "%s:%d: %s", path, line, field->name);
            return st;
        }
    }
    return TD_OK;
}

static td_status load_file(const td_conf_spec *spec, const char *path, void *conf, td_err *err)
{
    char *text = NULL;
    size_t n;
    cJSON *root = NULL;
    td_status st = td_read_file(path, FILE_MAX_BYTES, &text, &n, err);
    if (st != TD_OK)
        return st == TD_NOMEM ? st : td_fail(err, TD_CONFIG, "%s", err->text);
    st = td_json_strip(text, n, err);
    if (st != TD_OK) {
        td_fail_prefix(err, "%s", path);
        goto done;
    }
    const char *end = NULL;
    root = cJSON_ParseWithOpts(text, &end, 0);
    while (root != NULL && isspace((unsigned char)*end))
        end++;
    if (root == NULL || end != text + n)
        st = td_fail(err, TD_CONFIG, "%s:%d: not JSON", path,
                     line_at(text, end == NULL ? 0 : (size_t)(end - text)));
    else if (!cJSON_IsObject(root))
        st = td_fail(err, TD_CONFIG, "%s:1: not a JSON object", path);
    else
        st = apply_object(spec, root, path, text, n, conf, err);
done:
    cJSON_Delete(root);
    free(text);
    return st;
}

/* --- the command line
 * ---------------------------------------------------------------------------------------- */

typedef enum { ARG_KNOB, ARG_CONFIG } arg_kind;

static bool option_is(const char *arg, size_t n, const char *name)
{
    return n == strlen(name) && memcmp(arg, name, n) == 0;
}

/* Reads argv[*i], `--name value` or `--name=value`, and moves *i past it. BOOL knobs take no
 * separate value. */
static td_status next_knob(const td_conf_spec *spec, int argc, char **argv, int *i, arg_kind *kind,
                           const td_conf_field **field, const char **text, td_err *err)
{
    const char *arg = argv[(*i)++];
    if (strncmp(arg, "--", 2) != 0 || arg[2] == '\0')
        return td_fail(err, TD_CONFIG, "unexpected argument \"%s\" (try --help)", arg);
    const char *name = arg + 2;
    size_t n = strcspn(name, "=");
    const char *attached = name[n] == '=' ? name + n + 1 : NULL;
    *kind = option_is(name, n, "config") ? ARG_CONFIG : ARG_KNOB;
    *field = *kind == ARG_KNOB ? find_field(spec, name, n) : NULL;
    if (*kind == ARG_KNOB && *field == NULL)
        return td_fail(err, TD_CONFIG, "unknown option %.*s (try --help)", (int)n + 2, arg);
    if (attached != NULL)
        *text = attached;
    else if (*field != NULL && (*field)->type == TD_CONF_BOOL)
        *text = "true";
    else if (*i < argc)
        *text = argv[(*i)++];
    else
        return td_fail(err, TD_CONFIG, "%s wants a value", arg);
    return TD_OK;
}

/* One walk over the arguments: with path != NULL only --config is looked for, otherwise the knobs
 * are set. */
static td_status walk_args(const td_conf_spec *spec, int argc, char **argv, const char **path,
                           void *conf, td_err *err)
{
    for (int i = 1; i < argc;) {
        arg_kind kind = ARG_KNOB;
        const td_conf_field *field = NULL;
        const char *text = NULL;
        td_status st = next_knob(spec, argc, argv, &i, &kind, &field, &text, err);
        if (st != TD_OK)
            return st;
        if (kind == ARG_CONFIG) {
            if (path != NULL)
                *path = text;
        } else if (path == NULL) {
            st = set_text(field, text, conf, err);
            if (st != TD_OK) {
                td_fail_prefix(err, "--%s", field->name);
                return st;
            }
        }
    }
    return TD_OK;
}

static bool answer_questions(const td_conf_spec *spec, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0)
            td_conf_help(spec, stdout);
        else if (strcmp(argv[i], "--version") == 0)
            printf("%s %s\n", spec->program, td_version());
        else if (strcmp(argv[i], "--print-config") == 0)
            td_conf_example(spec, stdout);
        else
            continue;
        return true;
    }
    return false;
}

static td_status set_defaults(const td_conf_spec *spec, void *conf, td_err *err)
{
    for (size_t i = 0; i < spec->n_fields; i++) {
        const td_conf_field *field = &spec->fields[i];
        if (field->def == NULL)
            continue;
        td_status st = set_text(field, field->def, conf, err);
        if (st != TD_OK) {
            td_assert(st == TD_NOMEM); /* a default within its own bounds cannot be refused */
            return st;
        }
    }
    return TD_OK;
}

static td_status check_required(const td_conf_spec *spec, void *conf, td_err *err)
{
    for (size_t i = 0; i < spec->n_fields; i++) {
        const td_conf_field *field = &spec->fields[i];
        if (field->type == TD_CONF_STR && *(char **)member(field, conf) == NULL)
            return td_fail(err, TD_CONFIG, "\"%s\" must be given: %s", field->name, field->help);
    }
    return TD_OK;
}

/* --- public
 * --------------------------------------------------------------------------------------------------
 */

td_status td_conf_load(const td_conf_spec *spec, int argc, char **argv, void *conf, td_err *err)
{
    td_err local;
    if (err == NULL)
        err = &local;
    if (answer_questions(spec, argc, argv))
        return TD_EMPTY;
    const char *path = NULL;
    td_status st = set_defaults(spec, conf, err);
    if (st == TD_OK)
        st = walk_args(spec, argc, argv, &path, conf, err);
    if (st == TD_OK && path != NULL)
        st = load_file(spec, path, conf, err);
    if (st == TD_OK)
        st = walk_args(spec, argc, argv, NULL, conf, err);
    if (st == TD_OK)
        st = check_required(spec, conf, err);
    if (st != TD_OK)
        td_conf_free(spec, conf);
    return st;
}

void td_conf_free(const td_conf_spec *spec, void *conf)
{
    for (size_t i = 0; i < spec->n_fields; i++) {
        const td_conf_field *field = &spec->fields[i];
        if (field->type == TD_CONF_STR) {
            char **str = member(field, conf);
            free(*str);
            *str = NULL;
        } else if (field->type == TD_CONF_LIST) {
            list_free(member(field, conf));
        }
    }
}

static const char *type_name(td_conf_type type)
{
    static const char *names[] = {
        [TD_CONF_U32] = "N",       [TD_CONF_U64] = "N",   [TD_CONF_MS] = "TIME",
        [TD_CONF_BYTES] = "BYTES", [TD_CONF_F64] = "X",   [TD_CONF_BOOL] = "",
        [TD_CONF_STR] = "TEXT",    [TD_CONF_ENUM] = NULL, [TD_CONF_LIST] = "A,B,...",
    };
    return names[type];
}

/* "from 16 to 1024", "auto|shm|tcp", "at most 64 items", or nothing. */
static void print_bounds(const td_conf_field *field, const char *before, FILE *out)
{
    if (field->type == TD_CONF_ENUM)
        fprintf(out, "%s%s", before, field->min);
    else if (field->type == TD_CONF_LIST && field->max != NULL)
        fprintf(out, "%sat most %s items", before, field->max);
    else if (is_number(field->type) && field->min != NULL && field->max != NULL)
        fprintf(out, "%sfrom %s to %s", before, field->min, field->max);
    else if (is_number(field->type) && field->min != NULL)
        fprintf(out, "%sat least %s", before, field->min);
    else if (is_number(field->type) && field->max != NULL)
        fprintf(out, "%sat most %s", before, field->max);
}

void td_conf_help(const td_conf_spec *spec, FILE *out)
{
    fprintf(out, "%s - %s\n\nusage: %s [--config FILE] [--KNOB VALUE ...]\n\n", spec->program,
            spec->about, spec->program);
    fprintf(out, "  --config FILE         read knobs from FILE: JSON, comments allowed\n"
                 "  --print-config        print an example file with every knob, and exit\n"
                 "  --help, --version     print this, or the version, and exit\n\n");
    for (size_t i = 0; i < spec->n_fields; i++) {
        const td_conf_field *field = &spec->fields[i];
        const char *kind = type_name(field->type);
        int n = fprintf(out, "  --%s %s", field->name, kind != NULL ? kind : field->min);
        fprintf(out, "%*s%s", n < 23 ? 24 - n : 1, "", field->help);
        if (field->type != TD_CONF_ENUM)
            print_bounds(field, "; ", out);
        if (field->def == NULL && field->type == TD_CONF_STR)
            fprintf(out, " (required)");
        else if (field->def != NULL && field->def[0] != '\0')
            fprintf(out, " [%s]", field->def);
        fputc('\n', out);
    }
}

static void print_json_string(const char *text, size_t n, FILE *out)
{
    fputc('"', out);
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"' || text[i] == '\\')
            fputc('\\', out);
        fputc(text[i], out);
    }
    fputc('"', out);
}

static void print_json_default(const td_conf_field *field, FILE *out)
{
    const char *def = field->def != NULL ? field->def : "";
    uint64_t whole;
    if (field->type == TD_CONF_LIST) {
        fputc('[', out);
        for (const char *p = def; *p != '\0';) {
            size_t n = strcspn(p, ",");
            print_json_string(p, n, out);
            p += n + (p[n] == ',');
            fputs(*p != '\0' ? ", " : "", out);
        }
        fputc(']', out);
    } else if (field->type == TD_CONF_BOOL || field->type == TD_CONF_F64 ||
               (is_number(field->type) && parse_whole(def, NULL, 0, &whole) &&
                (double)whole <= EXACT_MAX)) {
        fputs(def, out);
    } else {
        print_json_string(def, strlen(def), out);
    }
}

void td_conf_example(const td_conf_spec *spec, FILE *out)
{
    fprintf(out, "// %s: %s.\n// Every knob with its default; `%s --config FILE` reads it.\n{\n",
            spec->program, spec->about, spec->program);
    for (size_t i = 0; i < spec->n_fields; i++) {
        const td_conf_field *field = &spec->fields[i];
        bool required = field->def == NULL && field->type == TD_CONF_STR;
        fprintf(out, "%s    // %s", i > 0 ? "\n" : "", field->help);
        print_bounds(field, "; ", out);
        fprintf(out, "%s\n    %s\"%s\": ", required ? " (required)" : "", required ? "// " : "",
                field->name);
        print_json_default(field, out);
        fputs(",\n", out);
    }
    fputs("}\n", out);
}

td_status td_json_strip(char *text, size_t n_bytes, td_err *err)
{
    size_t comma = SIZE_MAX; /* the comma that nothing but blanks and comments followed yet */
    char before = '\0';      /* the last significant character */
    for (size_t i = 0; i < n_bytes;) {
        char c = text[i];
        char next = i + 1 < n_bytes ? text[i + 1] : '\0';
        if (c == '/' && next == '/') {
            while (i < n_bytes && text[i] != '\n')
                text[i++] = ' ';
        } else if (c == '/' && next == '*') {
            size_t start = i;
            for (i += 2; i < n_bytes && !(text[i - 1] == '*' && text[i] == '/' && i > start + 2);)
                i++;
            if (i == n_bytes)
                return td_fail(err, TD_CONFIG, "line %d: a comment without an end",
                               line_at(text, start));
            for (i++; start < i; start++)
                if (text[start] != '\n')
                    text[start] = ' ';
        } else if (c == '"') {
            i = skip_string(text, n_bytes, i);
            before = '"';
            comma = SIZE_MAX;
        } else if (isspace((unsigned char)c)) {
            i++;
        } else {
            if ((c == '}' || c == ']') && comma != SIZE_MAX)
                text[comma] = ' ';
            /* A comma after nothing is no trailing comma: it stays, for the parser to refuse. */
            bool trails = c == ',' && before != '\0' && strchr("[{,:", before) == NULL;
            comma = trails ? i : SIZE_MAX;
            before = c;
            i++;
        }
    }
    return TD_OK;
}

td_status td_read_file(const char *path, size_t max_bytes, char **out, size_t *n_bytes, td_err *err)
{
    char *text = NULL;
    size_t n = 0;
    struct stat info;
    td_status st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_fail(err, errno == ENOENT ? TD_NOT_FOUND : TD_IO, "%s: %s", path,
                       strerror(errno));
    if (fstat(fd, &info) != 0) {
        st = td_fail(err, TD_IO, "%s: %s", path, strerror(errno));
        goto fail;
    }
    /* One byte more than the size says: the read that finds the end needs room. Pipes and /proc say
     * 0. */
    size_t room = info.st_size > 0 ? (size_t)info.st_size + 2 : 4096;
    for (;; room *= 2) {
        if (room > max_bytes + 2)
            room = max_bytes + 2;
        char *bigger = realloc(text, room);
        if (bigger == NULL) {
            st = td_fail(err, TD_NOMEM, "%s: no memory for %zu bytes", path, room);
            goto fail;
        }
        text = bigger;
        ssize_t got;
        while (n < room - 1 && (got = read(fd, text + n, room - 1 - n)) != 0) {
            if (got < 0 && errno == EINTR)
                continue;
            if (got < 0) {
                st = td_fail(err, TD_IO, "%s: %s", path, strerror(errno));
                goto fail;
            }
            n += (size_t)got;
        }
        if (n > max_bytes) {
            st = td_fail(err, TD_TOO_LARGE, "%s: more than %zu bytes", path, max_bytes);
            goto fail;
        }
        if (n < room - 1)
            break;
    }
    text[n] = '\0';
    close(fd);
    *out = text;
    *n_bytes = n;
    return TD_OK;
fail:
    free(text);
    close(fd);
    return st;
}
