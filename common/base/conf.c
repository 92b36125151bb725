#include "common/base/conf.h"

#include "common/base/conf_value.h"
#include "common/base/version.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX_BYTES (1u << 20)

typedef enum { ARG_KNOB, ARG_CONFIG } arg_kind;

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
                return td_text_line(text, i);
            key_next = false;
            i = td_text_skip_string(text, n, i);
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
        td_status st = td_conf_set_json(field, item, conf, err);
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
    if (st != TD_OK && st != TD_NOMEM)
        st = err->status = TD_CONFIG; /* the text says what and where */
    if (st != TD_OK)
        return st;
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
                     td_text_line(text, end == NULL ? 0 : (size_t)(end - text)));
    else if (!cJSON_IsObject(root))
        st = td_fail(err, TD_CONFIG, "%s:1: not a JSON object", path);
    else
        st = apply_object(spec, root, path, text, n, conf, err);
done:
    cJSON_Delete(root);
    free(text);
    return st;
}

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
            st = td_conf_set_text(field, text, conf, err);
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
        td_status st = td_conf_set_text(field, field->def, conf, err);
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
        const void *value = td_conf_member(field, conf);
        uint64_t min_items = 1;
        if (!td_conf_is_required(field))
            continue;
        if (field->type == TD_CONF_LIST)
            td_conf_parse_whole(field->min, &min_items);
        if (field->type == TD_CONF_STR ? *(char *const *)value == NULL
                                       : ((const td_conf_list *)value)->n < min_items)
            return td_fail(err, TD_CONFIG, "\"%s\" must be given: %s", field->name, field->help);
    }
    return TD_OK;
}

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
