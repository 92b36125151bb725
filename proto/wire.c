#include "proto/wire.h"

#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static bool get_varint(const unsigned char *p, size_t len, size_t *pos, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64 && *pos < len; shift += 7) {
        unsigned char b = p[(*pos)++];
        v |= (uint64_t)(b & 0x7f) << shift;
        if ((b & 0x80) == 0) {
            *out = v;
            return true;
        }
    }
    return false;
}

bool td_wire_next_bytes(const void *msg, size_t len, uint32_t field, size_t *pos,
                        const char **bytes, size_t *n_bytes)
{
    const unsigned char *p = msg;
    while (*pos < len) {
        uint64_t tag, n = 0;
        if (!get_varint(p, len, pos, &tag))
            return false;
        switch (tag & 7) {
        case VARINT:
            if (!get_varint(p, len, pos, &n))
                return false;
            continue;
        case FIXED64: n = 8; break;
        case FIXED32: n = 4; break;
        case BYTES:
            if (!get_varint(p, len, pos, &n))
                return false;
            break;
        default: return false;
        }
        if (n > len - *pos)
            return false;
        const char *at = (const char *)p + *pos;
        *pos += n;
        if ((tag & 7) == BYTES && tag >> 3 == field) {
            *bytes = at;
            *n_bytes = n;
            return true;
        }
    }
    return false;
}

static size_t put_varint(unsigned char *out, uint64_t v)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        out[n++] = (unsigned char)(v | 0x80);
    out[n++] = (unsigned char)v;
    return n;
}

size_t td_wire_put_bytes(unsigned char *out, uint32_t field, const char *bytes, size_t n_bytes)
{
    size_t n = put_varint(out, (uint64_t)field << 3 | BYTES);
    n += put_varint(out + n, n_bytes);
    if (n_bytes > 0)
        memcpy(out + n, bytes, n_bytes);
    return n + n_bytes;
}
