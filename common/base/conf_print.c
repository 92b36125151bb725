#include "common/base/conf_value.h"

#include <string.h>

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
    else if (field->type == TD_CONF_LIST && field->min != NULL && field->max != NULL)
        fprintf(out, "%s%s to %s items", before, field->min, field->max);
    else if (field->type == TD_CONF_LIST && field->max != NULL)
        fprintf(out, "%sat most %s items", before, field->max);
    else if (td_conf_is_number(field->type) && field->min != NULL && field->max != NULL)
        fprintf(out, "%sfrom %s to %s", before, field->min, field->max);
    else if (td_conf_is_number(field->type) && field->min != NULL)
        fprintf(out, "%sat least %s", before, field->min);
    else if (td_conf_is_number(field->type) && field->max != NULL)
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
        if (td_conf_is_required(field))
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
               (td_conf_is_number(field->type) && td_conf_parse_whole(def, &whole) &&
                (double)whole <= TD_CONF_EXACT_MAX)) {
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
        bool required = td_conf_is_required(field);
        fprintf(out, "%s    // %s", i > 0 ? "\n" : "", field->help);
        print_bounds(field, "; ", out);
        fprintf(out, "%s\n    %s\"%s\": ", required ? " (required)" : "", required ? "// " : "",
                field->name);
        print_json_default(field, out);
        fputs(",\n", out);
    }
    fputs("}\n", out);
}
