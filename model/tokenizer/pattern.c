/* Patterns in tokenizer.json are Oniguruma's (Ruby syntax). What both engines read alike passes,
 * what they read differently is rewritten, and the rest is refused by name:
 *  - \s is Unicode's White_Space; PCRE2's also has U+180E;
 *  - \p{..} and \d get the code points that Oniguruma's Unicode 16 has beyond PCRE2 10.42's Unicode
 * 14;
 *  - every literal is written as \x{..}, so nothing that only PCRE2 gives a meaning to can slip in.
 */
#include "model/tokenizer/internal.h"
#include "model/tokenizer/unicode_added.h"
#include "model/tokenizer/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PATTERN_BYTES 65535
#define MAX_GROUPS 32
#define MAX_REPEAT 1000
#define SPACE_ITEMS                                                                                \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"

/* Items of a class: what PCRE2 knows, and what it lacks. The latter go last: they are searched one
 * by one; the letters and digits below 256 are spelled out because a bit map answers for them. */
static const struct class_name {
    const char *name, *known, *added;
} class_names[] = {
    {"L", "A-Za-z\\xaa\\xb5\\xba\\xc0-\\xd6\\xd8-\\xf6\\xf8-\\xff\\p{L}", TD_UNICODE_ADDED_L},
    {"N", "0-9\\xb2\\xb3\\xb9\\xbc-\\xbe\\p{N}", TD_UNICODE_ADDED_N},
    {"P", "\\p{P}", TD_UNICODE_ADDED_P},
    {"S", "\\p{S}", TD_UNICODE_ADDED_S},
    {"M", "\\p{M}", TD_UNICODE_ADDED_M},
    {"Z", "\\p{Z}", TD_UNICODE_ADDED_Z},
    {"Nd", "0-9\\p{Nd}", TD_UNICODE_ADDED_Nd},
};
#define N_CLASS_NAMES (sizeof(class_names) / sizeof(class_names[0]))

typedef struct {
    const uint8_t *p, *start; /* NUL-terminated, well-formed */
    char *out;
    size_t n, room;
    bool full;
    const char *where;
    td_err *err;
} translator;

static td_status refuse(translator *t, const char *what)
{
    return td_fail(t->err, TD_UNSUPPORTED, "%s: pattern at byte %zu: %s is not supported", t->where,
                   (size_t)(t->p - t->start), what);
}

static void put(translator *t, const char *text)
{
    size_t n = strlen(text);
    if (n >= t->room - t->n) {
        t->full = true;
        return;
    }
    memcpy(t->out + t->n, text, n + 1);
    t->n += n;
}

static void put_literal(translator *t, uint32_t cp)
{
    char item[16];
    snprintf(item, sizeof(item), "\\x{%x}", cp);
    put(t, item);
}

static uint32_t take(translator *t)
{
    size_t len;
    uint32_t cp = td_utf8_get(t->p, &len);
    t->p += len;
    return cp;
}

typedef enum { LITERAL, CLASS, NOT_CLASS, SPACE, NOT_SPACE } escape_kind;

/* After "\p" or "\P": {Name}. */
static td_status read_property(translator *t, const struct class_name **out)
{
    for (size_t i = 0; i < N_CLASS_NAMES; i++) {
        size_t n = strlen(class_names[i].name);
        if (t->p[0] == '{' && strncmp((const char *)t->p + 1, class_names[i].name, n) == 0 &&
            t->p[n + 1] == '}') {
            t->p += n + 2;
            *out = &class_names[i];
            return TD_OK;
        }
    }
    return refuse(t, "a property other than \\p{L}, N, P, S, M, Z and Nd");
}

/* After the backslash. */
static td_status read_escape(translator *t, escape_kind *kind, uint32_t *cp,
                             const struct class_name **name)
{
    static const char letters[] = "nrtfv", meanings[] = "\n\r\t\f\v";
    char c = (char)*t->p;
    const char *at = c != '\0' ? strchr(letters, c) : NULL;
    *kind = LITERAL;
    if (at != NULL) {
        *cp = (uint8_t)meanings[at - letters];
    } else if ((c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') ||
               (c > 'z' && c < 0x7f)) {
        *cp = (uint8_t)c;
    } else if (c == 's' || c == 'S') {
        *kind = c == 's' ? SPACE : NOT_SPACE;
    } else if (c == 'd' || c == 'D') {
        *kind = c == 'd' ? CLASS : NOT_CLASS;
        *name = &class_names[N_CLASS_NAMES - 1];
    } else if (c == 'p' || c == 'P') {
        *kind = c == 'p' ? CLASS : NOT_CLASS;
        t->p++;
        return read_property(t, name);
    } else {
        char what[] = "escape \\?";
        what[sizeof(what) - 2] = c > ' ' && c < 0x7f ? c : '?';
        return refuse(t, what);
    }
    t->p++;
    return TD_OK;
}

/* The end of a range, after its '-'. */
static td_status read_range_end(translator *t, uint32_t first)
{
    uint32_t last;
    escape_kind kind = LITERAL;
    const struct class_name *name;
    if (*t->p == '[' || *t->p == '\0')
        return refuse(t, "an unfinished range");
    last = take(t);
    if (last == '\\') {
        td_status st = read_escape(t, &kind, &last, &name);
        if (st != TD_OK)
            return st;
    }
    if (kind != LITERAL || last < first)
        return refuse(t, "a range that ends in a class or before it begins");
    put(t, "-");
    put_literal(t, last);
    return TD_OK;
}

static td_status read_class_item(translator *t, bool first, unsigned *classes)
{
    escape_kind kind = LITERAL;
    const struct class_name *name;
    if (*t->p == '[' || (t->p[0] == '&' && t->p[1] == '&'))
        return refuse(t, "a class within a class");
    if (*t->p == '-' && !first && t->p[1] != ']')
        return refuse(t, "an unescaped '-' in the middle of a class");
    uint32_t cp = take(t);
    if (cp == '\\') {
        td_status st = read_escape(t, &kind, &cp, &name);
        if (st != TD_OK)
            return st;
    }
    switch (kind) {
    case LITERAL: put_literal(t, cp); break;
    case CLASS:
        put(t, name->known);
        *classes |= 1u << (name - class_names);
        break;
    case SPACE: put(t, SPACE_ITEMS); break;
    default: return refuse(t, "\\S, \\D or \\P within a class");
    }
    if (t->p[0] != '-' || t->p[1] == ']')
        return TD_OK;
    if (kind != LITERAL)
        return refuse(t, "a range that begins with a class");
    t->p++;
    return read_range_end(t, cp);
}

/* After the '['. */
static td_status read_class(translator *t)
{
    unsigned classes = 0; /* one bit for each of class_names */
    put(t, "[");
    if (*t->p == '^') {
        t->p++;
        put(t, "^");
    }
    if (*t->p == ']')
        return refuse(t, "']' as the first of a class");
    for (bool first = true; *t->p != ']'; first = false) {
        if (*t->p == '\0')
            return refuse(t, "a class without an end");
        td_status st = read_class_item(t, first, &classes);
        if (st != TD_OK)
            return st;
    }
    t->p++;
    for (size_t i = 0; i < N_CLASS_NAMES; i++)
        if ((classes >> i & 1) != 0)
            put(t, class_names[i].added);
    put(t, "]");
    return TD_OK;
}

/* After the '('. */
static td_status read_group(translator *t)
{
    static const char *const kinds[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    if (*t->p != '?') {
        put(t, "(?:"); /* nobody asks what a group captured */
        return TD_OK;
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strncmp((const char *)t->p, kinds[i], strlen(kinds[i])) == 0) {
            t->p += strlen(kinds[i]);
            put(t, "(");
            put(t, kinds[i]);
            return TD_OK;
        }
    return refuse(t, "an option, a name or another extension of '(?'");
}

static bool read_number(translator *t, unsigned *out)
{
    if (*t->p < '0' || *t->p > '9')
        return false;
    for (*out = 0; *t->p >= '0' && *t->p <= '9'; t->p++)
        *out = *out > MAX_REPEAT ? *out : *out * 10 + (*t->p - '0');
    return true;
}

/* After the '{': n}, n,} or n,m}. Oniguruma reads a suffix '?' or '+' of these in its own way. */
static td_status read_repeat(translator *t)
{
    unsigned least = 0, most;
    char item[32];
    bool ok = read_number(t, &least);
    most = least;
    snprintf(item, sizeof(item), "{%u}", least);
    if (ok && *t->p == ',') {
        t->p++;
        snprintf(item, sizeof(item), "{%u,}", least);
        if (read_number(t, &most))
            snprintf(item, sizeof(item), "{%u,%u}", least, most);
    }
    ok = ok && *t->p == '}' && least <= most && most <= MAX_REPEAT && t->p[1] != '?' &&
         t->p[1] != '+';
    if (!ok)
        return refuse(t, "this '{'");
    t->p++;
    put(t, item);
    return TD_OK;
}

static td_status read_top_escape(translator *t)
{
    escape_kind kind;
    uint32_t cp = 0;
    const struct class_name *name;
    td_status st = read_escape(t, &kind, &cp, &name);
    if (st != TD_OK)
        return st;
    if (kind == LITERAL) {
        put_literal(t, cp);
        return TD_OK;
    }
    put(t, kind == NOT_CLASS || kind == NOT_SPACE ? "[^" : "[");
    if (kind == SPACE || kind == NOT_SPACE) {
        put(t, SPACE_ITEMS);
    } else {
        put(t, name->known);
        put(t, name->added);
    }
    put(t, "]");
    return TD_OK;
}

static td_status read_quantifier(translator *t, char c, bool *may_repeat)
{
    if (!*may_repeat)
        return refuse(t, "a quantifier without something to repeat");
    *may_repeat = false;
    if (c == '{')
        return read_repeat(t);
    put(t, c == '*' ? "*" : c == '+' ? "+" : "?");
    if (*t->p == '?' || *t->p == '+') /* lazy, possessive */
        put(t, *t->p++ == '?' ? "?" : "+");
    return TD_OK;
}

static td_status translate(translator *t)
{
    unsigned depth = 0;
    bool may_repeat = false;
    td_status st = TD_OK;
    while (st == TD_OK && *t->p != '\0') {
        uint32_t c = take(t);
        bool atom = true;
        switch (c) {
        case '\\': st = read_top_escape(t); break;
        case '[': st = read_class(t); break;
        case '(':
            atom = false;
            st = ++depth > MAX_GROUPS ? refuse(t, "deeper nesting") : read_group(t);
            break;
        case ')':
            if (depth-- == 0)
                return refuse(t, "')' without '('");
            put(t, ")");
            break;
        case '|':
            atom = false;
            put(t, "|");
            break;
        case '*':
        case '+':
        case '?':
        case '{':
            st = read_quantifier(t, (char)c, &may_repeat);
            atom = false;
            break;
        case '.':
        case '^':
        case '$': return refuse(t, "'.', '^' or '$'");
        default: put_literal(t, c);
        }
        may_repeat = atom;
    }
    if (st == TD_OK && depth != 0)
        return refuse(t, "'(' without ')'");
    return st;
}

td_status td_tok_pattern_translate(const char *pattern, const char *where, char **out, td_err *err)
{
    translator t = {.p = (const uint8_t *)pattern, .where = where, .err = err};
    t.start = t.p;
    t.room = MAX_PATTERN_BYTES + 1;
    t.out = malloc(t.room);
    if (t.out == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory", where);
    t.out[0] = '\0';
    td_status st = translate(&t);
    if (st == TD_OK && t.full)
        st = td_fail(err, TD_TOO_LARGE, "%s: pattern over %d bytes", where, MAX_PATTERN_BYTES);
    if (st != TD_OK) {
        free(t.out);
        return st;
    }
    *out = t.out;
    return TD_OK;
}

td_status td_tok_pattern_compile(td_tokenizer *tok, const char *pcre, const char *where,
                                 pcre2_code **out, td_err *err)
{
    int error;
    PCRE2_SIZE at;
    pcre2_compile_context *context = pcre2_compile_context_create(tok->pcre);
    if (context == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory", where);
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pcre, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &at, context);
    pcre2_compile_context_free(context);
    if (code == NULL) {
        char why[120];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof(why));
        return td_fail(err, error == PCRE2_ERROR_HEAP_FAILED ? TD_NOMEM : TD_INVALID,
                       "%s: pattern: %s", where, why);
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where it cannot, pcre2_match() interprets */
    *out = code;
    return TD_OK;
}
