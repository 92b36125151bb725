/* conf.h - one table of knobs per daemon: the table gives the JSON file's keys, the command line's
 * --knobs, --help, bounds and the commented example file. The file is JSON with // and block
 * comments and trailing commas allowed; unknown keys are refused with their line. Command line wins
 * over file, file over default. */
#ifndef TD_BASE_CONF_H
#define TD_BASE_CONF_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum {
    TD_CONF_U32,
    TD_CONF_U64,
    TD_CONF_MS,    /* int64_t milliseconds: "30s", "250ms", "10m", or a number of ms */
    TD_CONF_BYTES, /* uint64_t: "64MiB", "1GiB", "4096" */
    TD_CONF_F64,
    TD_CONF_BOOL, /* bool; on the command line `--name` or `--name=false` */
    TD_CONF_STR,  /* char *, malloc'ed */
    TD_CONF_ENUM, /* int: index into min, which is "a|b|c" */
    TD_CONF_LIST, /* td_conf_list: JSON array of strings, or comma-separated on the command line */
} td_conf_type;

typedef struct {
    char **items; /* [n], malloc'ed */
    uint32_t n;
} td_conf_list;

typedef struct {
    const char *name;
    size_t offset;
    td_conf_type type;
    const char *def; /* default, as text; NULL: required (STR) or empty (LIST) */
    /* Bounds as text. ENUM: min is "auto|shm|tcp". LIST: of its length; one with a min is required.
     */
    const char *min, *max;
    const char *help; /* one line, with the unit */
} td_conf_field;

typedef struct {
    const char *program; /* "tandem-decode" */
    const char *about;   /* one line for --help */
    const td_conf_field *fields;
    size_t n_fields;
} td_conf_spec;

#define TD_CONF_FIELD(strct, name, member, type, def, min, max, help)                              \
    {                                                                                              \
        name, offsetof(strct, member), TD_CONF_##type, def, min, max, help                         \
    }

/* Fills *conf (zeroed by the caller) from defaults, then the file named by --config FILE, then the
 * command line. TD_OK; TD_EMPTY: --help, --version or --print-config (the example file) was
 * answered on stdout, exit 0; TD_CONFIG with what and where. Positional arguments are refused. */
td_status td_conf_load(const td_conf_spec *spec, int argc, char **argv, void *conf, td_err *err);
void td_conf_free(const td_conf_spec *spec, void *conf);
void td_conf_help(const td_conf_spec *spec, FILE *out);
void td_conf_example(const td_conf_spec *spec,
                     FILE *out); /* every knob commented with help and bounds */
/* Removes comments and trailing commas in place, keeping line numbers; strings are left alone. */
td_status td_json_strip(char *text, size_t n_bytes, td_err *err);
/* Reads a whole file of at most max_bytes; NUL-terminated, malloc'ed. */
td_status td_read_file(const char *path, size_t max_bytes, char **out, size_t *n_bytes,
                       td_err *err);
#endif
