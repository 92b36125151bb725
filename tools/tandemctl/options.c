#include "tools/tandemctl/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Digits alone: no sign, no space. */
static bool parse_whole(const char *text, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;
    if (text[0] == '\0')
        return false;
    for (; *text != '\0'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (*text < '0' || *text > '9' || value > (max - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

static bool parse_double(const char *text, double *out)
{
    char *end;
    if (text[0] == '\0' || text[0] == ' ')
        return false;
    *out = strtod(text, &end);
    return *end == '\0';
}

static bool parse_ms(const char *text, int64_t *out)
{
    static const struct {
        const char *unit;
        double ms;
    } units[] = {{"ms", 1}, {"s", 1e3}, {"m", 6e4}, {"h", 3.6e6}, {"", 1e3}};
    char *end;
    double value = strtod(text, &end);
    if (end == text || !isfinite(value) || value <= 0)
        return false;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (strcmp(end, units[i].unit) == 0) {
            double ms = value * units[i].ms;
            *out = ms < 1 ? 1 : (int64_t)ms;
            return ms < 1e12;
        }
    return false;
}

static bool set_number(const ctl_option *o, void *member, const char *text)
{
    uint64_t whole;
    double real;
    switch (o->type) {
    case CTL_U32:
        if (!parse_whole(text, UINT32_MAX, &whole))
            return false;
        *(ctl_u32 *)member = (ctl_u32){true, (uint32_t)whole};
        return true;
    case CTL_U64:
        if (!parse_whole(text, UINT64_MAX, &whole))
            return false;
        *(ctl_u64 *)member = (ctl_u64){true, whole};
        return true;
    case CTL_FLOAT:
        if (!parse_double(text, &real))
            return false;
        *(ctl_float *)member = (ctl_float){true, (float)real};
        return true;
    case CTL_NUMBERS: {
        ctl_numbers *list = member;
        if (list->n == CTL_MAX_NUMBERS || !parse_whole(text, UINT32_MAX, &whole))
            return false;
        list->items[list->n++] = (uint32_t)whole;
        return true;
    }
    default: return parse_ms(text, member);
    }
}

static bool set_value(const ctl_option *o, void *values, const char *text)
{
    void *member = (char *)values + o->offset;
    switch (o->type) {
    case CTL_FLAG: *(bool *)member = true; return true;
    case CTL_STRING: *(const char **)member = text; return true;
    case CTL_STRINGS: {
        ctl_strings *list = member;
        if (list->n == CTL_MAX_STRINGS)
            return false;
        list->items[list->n++] = text;
        return true;
    }
    default: return set_number(o, member, text);
    }
}

/* The option that arg ("--name" or "--name=value") names; NULL: none. *set: whose it is. */
static const ctl_option *find(const ctl_option_set *sets, size_t n_sets, const char *arg,
                              size_t *set)
{
    size_t len = strcspn(arg + 2, "=");
    for (size_t s = 0; s < n_sets; s++)
        for (size_t i = 0; i < sets[s].n; i++) {
            const ctl_option *o = &sets[s].options[i];
            if (strlen(o->name) == len && memcmp(o->name, arg + 2, len) == 0) {
                *set = s;
                return o;
            }
        }
    return NULL;
}

static const char *expected(ctl_option_type type)
{
    switch (type) {
    case CTL_STRINGS: return "given at most 17 times";
    case CTL_U32: return "an integer from 0 to 4294967295";
    case CTL_NUMBERS: return "an integer from 0 to 4294967295, at most 65 of them";
    case CTL_U64: return "an integer from 0 to 18446744073709551615";
    case CTL_FLOAT: return "a number";
    case CTL_MS: return "a time like 500ms, 30s or 2m";
    default: return "a text";
    }
}

static bool is_option(const char *arg)
{
    return arg[0] == '-' && arg[1] == '-' && arg[2] != '\0';
}

bool ctl_option_takes_next(const ctl_option_set *sets, size_t n_sets, const char *arg)
{
    size_t set;
    if (!is_option(arg) || strchr(arg, '=') != NULL)
        return false;
    const ctl_option *o = find(sets, n_sets, arg, &set);
    return o != NULL && o->type != CTL_FLAG;
}

bool ctl_options_parse(const ctl_option_set *sets, size_t n_sets, int argc, char **argv, int first,
                       ctl_arguments *args, char *why, size_t size)
{
    bool ended = false;
    for (int i = first; i < argc; i++) {
        const char *arg = argv[i];
        if (!ended && strcmp(arg, "--") == 0) {
            ended = true;
            continue;
        }
        if (ended || arg[0] != '-' || arg[1] == '\0') { /* "-" is an argument: stdin */
            if (args->n < CTL_MAX_ARGUMENTS)
                args->items[args->n] = arg;
            args->n++;
            continue;
        }
        size_t set;
        const ctl_option *o = is_option(arg) ? find(sets, n_sets, arg, &set) : NULL;
        if (o == NULL) {
            snprintf(why, size, "unknown option %.100s", arg);
            return false;
        }
        const char *value = strchr(arg, '=');
        if (o->type == CTL_FLAG ? value != NULL : value == NULL && i + 1 == argc) {
            snprintf(why, size, "--%s takes %s", o->name, value != NULL ? "no value" : o->value);
            return false;
        }
        if (o->type != CTL_FLAG)
            value = value != NULL ? value + 1 : argv[++i];
        if (!set_value(o, sets[set].values, value)) {
            snprintf(why, size, "--%s %.100s: must be %s", o->name, value, expected(o->type));
            return false;
        }
    }
    return true;
}

void ctl_options_help(const ctl_option_set *set, FILE *out)
{
    for (size_t i = 0; i < set->n; i++) {
        const ctl_option *o = &set->options[i];
        char left[64];
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->value != NULL ? " " : "",
                 o->value != NULL ? o->value : "");
        fprintf(out, "  %-26s %s\n", left, o->help);
    }
}
