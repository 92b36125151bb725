/* options.h - tables of options: one row gives parsing and --help. `--name value`, `--name=value`,
 * flags without value; `--` ends them. */
#ifndef TD_TOOLS_TANDEMCTL_OPTIONS_H
#define TD_TOOLS_TANDEMCTL_OPTIONS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CTL_MAX_STRINGS 17  /* one above the router's limit, so that the router may refuse */
#define CTL_MAX_NUMBERS 65  /* likewise */
#define CTL_MAX_ARGUMENTS 2 /* positional ones kept; more are counted */

typedef enum {
    CTL_FLAG,    /* bool */
    CTL_STRING,  /* const char * */
    CTL_STRINGS, /* ctl_strings; repeatable */
    CTL_U32,     /* ctl_u32 */
    CTL_U64,     /* ctl_u64 */
    CTL_NUMBERS, /* ctl_numbers; repeatable */
    CTL_FLOAT,   /* ctl_float; nan and inf are numbers here, the router judges */
    CTL_MS,      /* int64_t: "1500ms", "30s", "2m", or a number of seconds; > 0 */
} ctl_option_type;

typedef struct {
    bool given;
    uint32_t value;
} ctl_u32;
typedef struct {
    bool given;
    uint64_t value;
} ctl_u64;
typedef struct {
    bool given;
    float value;
} ctl_float;
typedef struct {
    const char *items[CTL_MAX_STRINGS];
    uint32_t n;
} ctl_strings;
typedef struct {
    uint32_t items[CTL_MAX_NUMBERS];
    uint32_t n;
} ctl_numbers;

typedef struct {
    const char *name; /* without the dashes */
    ctl_option_type type;
    size_t offset;     /* in the struct that the table is for */
    const char *value; /* "HOST:PORT"; NULL for a flag */
    const char *help;
} ctl_option;

typedef struct { /* what is no option */
    const char *items[CTL_MAX_ARGUMENTS];
    uint32_t n;
} ctl_arguments;

typedef struct { /* a table and where its values go */
    const ctl_option *options;
    size_t n;
    void *values;
} ctl_option_set;

/* From argv[first]: options of any set, the rest into args. false: why[size] says what is wrong. */
bool ctl_options_parse(const ctl_option_set *sets, size_t n_sets, int argc, char **argv, int first,
                       ctl_arguments *args, char *why, size_t size);
void ctl_options_help(const ctl_option_set *set, FILE *out);
/* Whether arg is an option, known to the sets, whose value is the next argument. */
bool ctl_option_takes_next(const ctl_option_set *sets, size_t n_sets, const char *arg);
#endif
