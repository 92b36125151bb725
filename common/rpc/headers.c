#include "common/rpc/headers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_OVERHEAD = 32 }; /* RFC 9113 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE */

static bool meta_grow(td_meta *meta, size_t need)
{
    if (need <= meta->cap)
        return true;
    size_t cap = meta->cap == 0 ? 512 : meta->cap;
    while (cap < need)
        cap *= 2;
    char *bytes = realloc(meta->bytes, cap);
    if (bytes == NULL)
        return false;
    meta->bytes = bytes;
    meta->cap = (uint32_t)cap;
    return true;
}

void td_meta_add(td_meta *meta, const void *name, size_t name_len, const void *value,
                 size_t value_len, size_t max_bytes)
{
    size_t need = meta->len + name_len + value_len + 2;
    size_t listed = need + (size_t)(meta->n_headers + 1) * HEADER_OVERHEAD;
    if (meta->overflow || listed > max_bytes || !meta_grow(meta, need)) {
        meta->overflow = true;
        return;
    }
    char *p = meta->bytes + meta->len;
    memcpy(p, name, name_len);
    p[name_len] = '\0';
    memcpy(p + name_len + 1, value, value_len);
    p[name_len + 1 + value_len] = '\0';
    meta->len = (uint32_t)need;
    meta->n_headers++;
}

bool td_meta_next(const td_meta *meta, uint32_t *pos, const char **name, const char **value)
{
    if (*pos >= meta->len)
        return false;
    *name = meta->bytes + *pos;
    *value = *name + strlen(*name) + 1;
    *pos = (uint32_t)(*value + strlen(*value) + 1 - meta->bytes);
    return true;
}

const char *td_meta_get(const td_meta *meta, const char *name)
{
    uint32_t pos = 0;
    const char *key, *value;
    while (td_meta_next(meta, &pos, &key, &value))
        if (strcmp(key, name) == 0)
            return value;
    return NULL;
}

void td_meta_clear(td_meta *meta)
{
    free(meta->bytes);
    memset(meta, 0, sizeof(*meta));
}

static const struct {
    char unit;
    int64_t ns;
} timeout_units[] = {
    {'n', 1},          {'u', 1000},        {'m', 1000000},
    {'S', 1000000000}, {'M', 60000000000}, {'H', 3600000000000},
};
enum { N_TIMEOUT_UNITS = sizeof(timeout_units) / sizeof(timeout_units[0]) };

bool td_grpc_timeout_parse(const char *text, int64_t *out_ns)
{
    int64_t value = 0;
    size_t n = 0;
    for (; text[n] >= '0' && text[n] <= '9'; n++) {
        if (n == 8)
            return false;
        value = value * 10 + (text[n] - '0');
    }
    if (n == 0 || text[n] == '\0' || text[n + 1] != '\0')
        return false;
    for (int i = 0; i < N_TIMEOUT_UNITS; i++) {
        if (text[n] != timeout_units[i].unit)
            continue;
        /* 99999999H is more nanoseconds than there are: centuries will do. */
        if (__builtin_mul_overflow(value, timeout_units[i].ns, out_ns) || *out_ns > INT64_MAX / 2)
            *out_ns = INT64_MAX / 2;
        return true;
    }
    return false;
}

void td_grpc_timeout_format(int64_t ns, char out[static 16])
{
    int i = 0;
    int64_t value = ns < 0 ? 0 : ns;
    while (value > 99999999 && i + 1 < N_TIMEOUT_UNITS) {
        i++;
        value = (ns - 1) / timeout_units[i].ns + 1;
    }
    snprintf(out, 16, "%d%c", (int)(value > 99999999 ? 99999999 : value), timeout_units[i].unit);
}

size_t td_grpc_message_encode(const char *text, char out[static TD_GRPC_MESSAGE_ENCODED_MAX])
{
    static const char hex[] = "0123456789ABCDEF";
    size_t n = strnlen(text, TD_GRPC_MESSAGE_MAX + 1), len = 0;
    if (n > TD_GRPC_MESSAGE_MAX) {
        n = TD_GRPC_MESSAGE_MAX;
        while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80)
            n--;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c <= 0x7E && c != '%') {
            out[len++] = (char)c;
        } else {
            out[len++] = '%';
            out[len++] = hex[c >> 4];
            out[len++] = hex[c & 15];
        }
    }
    out[len] = '\0';
    return len;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

void td_grpc_message_decode(const char *text, char *out, size_t out_size)
{
    size_t len = 0;
    for (size_t i = 0; text[i] != '\0' && len + 1 < out_size; i++) {
        if (text[i] == '%' && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0) {
            int c = hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]);
            out[len++] = c == 0 ? ' ' : (char)c; /* no early end */
            i += 2;
        } else {
            out[len++] = text[i];
        }
    }
    out[len] = '\0';
}

bool td_grpc_content_type_ok(const char *value)
{
    static const char want[] = "application/grpc";
    if (value == NULL || strncmp(value, want, sizeof(want) - 1) != 0)
        return false;
    char next = value[sizeof(want) - 1];
    return next == '\0' || next == '+' || next == ';';
}

bool td_header_name_ok(const char *name)
{
    static const char *const ours[] = {"te",         "content-type",      "user-agent",
                                       "connection", "transfer-encoding", "host"};
    if (name == NULL || name[0] == '\0' || strncmp(name, "grpc-", 5) == 0)
        return false;
    for (const char *c = name; *c != '\0'; c++)
        if (!(*c >= 'a' && *c <= 'z') && !(*c >= '0' && *c <= '9') && *c != '-' && *c != '_' &&
            *c != '.')
            return false;
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
        if (strcmp(name, ours[i]) == 0)
            return false;
    return true;
}

bool td_header_value_ok(const char *value)
{
    if (value == NULL)
        return false;
    size_t n = strlen(value);
    if (n > 0 && (value[0] == ' ' || value[n - 1] == ' '))
        return false;
    for (size_t i = 0; i < n; i++)
        if (value[i] < 0x20 || value[i] > 0x7E)
            return false;
    return true;
}
