#include "common/base/fingerprint.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static td_fingerprint_field *find(const td_fingerprint *fp, const char *name)
{
    for (uint32_t i = 0; i < fp->n && i < TD_FINGERPRINT_MAX; i++)
        if (strcmp(fp->fields[i].name, name) == 0)
            return (td_fingerprint_field *)&fp->fields[i];
    return NULL;
}

void td_fingerprint_set(td_fingerprint *fp, const char *name, const char *fmt, ...)
{
    va_list args;
    td_fingerprint_field *f = find(fp, name);
    if (f == NULL) {
        td_assert(fp->n < TD_FINGERPRINT_MAX && strlen(name) < sizeof(fp->fields[0].name));
        f = &fp->fields[fp->n++];
        memset(f, 0, sizeof(*f));
        memcpy(f->name, name, strlen(name));
    }
    va_start(args, fmt);
    int n = vsnprintf(f->value, sizeof(f->value), fmt, args);
    va_end(args);
    td_assert(n >= 0 && (size_t)n < sizeof(f->value));
}

const char *td_fingerprint_get(const td_fingerprint *fp, const char *name)
{
    const td_fingerprint_field *f = find(fp, name);
    return f == NULL ? NULL : f->value;
}

uint32_t td_fingerprint_diff(const td_fingerprint *ours, const td_fingerprint *theirs, char *text,
                             size_t size)
{
    uint32_t n_diff = 0;
    size_t at = 0;
    if (size > 0)
        text[0] = '\0';
    for (uint32_t i = 0; i < ours->n + theirs->n; i++) {
        int is_ours = i < ours->n;
        const td_fingerprint_field *f = is_ours ? &ours->fields[i] : &theirs->fields[i - ours->n];
        const char *a = is_ours ? f->value : td_fingerprint_get(ours, f->name);
        const char *b = is_ours ? td_fingerprint_get(theirs, f->name) : f->value;
        if ((!is_ours && a != NULL) || (a != NULL && b != NULL && strcmp(a, b) == 0))
            continue; /* seen from our side, or equal */
        n_diff++;
        if (at < size) {
            int n = snprintf(text + at, size - at, "%s%s: ours %s, theirs %s", at == 0 ? "" : "; ",
                             f->name, a == NULL ? "(none)" : a, b == NULL ? "(none)" : b);
            at += n < 0 ? 0 : (size_t)n;
        }
    }
    return n_diff;
}
