#include "common/base/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *td_status_name(td_status st)
{
    switch (st) {
#define NAME(name, code, text)                                                                     \
    case TD_##name: return #name;
        TD_STATUS_MAP(NAME)
#undef NAME
    }
    return "UNKNOWN";
}

const char *td_status_text(td_status st)
{
    switch (st) {
#define TEXT(name, code, text)                                                                     \
    case TD_##name: return text;
        TD_STATUS_MAP(TEXT)
#undef TEXT
    }
    return "unknown status";
}

td_status(td_fail)(td_err *err, td_status st, const char *fmt, ...)
{
    if (err == NULL)
        return st;
    va_list ap;
    va_start(ap, fmt);
    err->status = st;
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    return st;
}

td_status(td_fail_prefix)(td_err *err, const char *fmt, ...)
{
    char old[sizeof(err->text)];
    va_list ap;
    memcpy(old, err->text, sizeof(old));
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof(err->text))
        snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %s", old);
    return err->status;
}

void td_assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "assertion failed: %s (%s:%d)\n", what, file, line);
    abort();
}
