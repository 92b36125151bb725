#include "model/tokenizer/utf8.h"

#include <string.h>

const uint8_t td_utf8_replacement[3] = {0xef, 0xbf, 0xbd};

/* Length that a lead byte announces (0: no lead byte) and the bounds of the byte after it. */
static unsigned lead(uint8_t b, uint8_t *lo, uint8_t *hi)
{
    *lo = 0x80;
    *hi = 0xbf;
    if (b < 0x80)
        return 1;
    if (b < 0xc2 || b > 0xf4)
        return 0;
    if (b < 0xe0)
        return 2;
    if (b == 0xe0)
        *lo = 0xa0;
    if (b == 0xed)
        *hi = 0x9f;
    if (b < 0xf0)
        return 3;
    if (b == 0xf0)
        *lo = 0x90;
    if (b == 0xf4)
        *hi = 0x8f;
    return 4;
}

td_utf8_step_kind td_utf8_step(const uint8_t *p, size_t n, size_t *len)
{
    uint8_t lo, hi;
    unsigned want = lead(p[0], &lo, &hi);
    *len = 1;
    if (want == 0)
        return TD_UTF8_BAD;
    for (; *len < want; (*len)++) {
        if (*len == n)
            return TD_UTF8_SHORT;
        if (p[*len] < lo || p[*len] > hi)
            return TD_UTF8_BAD;
        lo = 0x80;
        hi = 0xbf;
    }
    return TD_UTF8_OK;
}

bool td_utf8_valid(const uint8_t *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        if (n - i >= sizeof(word)) { /* eight ASCII bytes at once */
            memcpy(&word, p + i, sizeof(word));
            if ((word & 0x8080808080808080u) == 0) {
                i += sizeof(word);
                continue;
            }
        }
        size_t len;
        if (td_utf8_step(p + i, n - i, &len) != TD_UTF8_OK)
            return false;
        i += len;
    }
    return true;
}

size_t td_utf8_repair(const uint8_t *p, size_t n, uint8_t *out)
{
    size_t written = 0, len;
    for (size_t i = 0; i < n; i += len) {
        bool ok = td_utf8_step(p + i, n - i, &len) == TD_UTF8_OK;
        size_t n_put = ok ? len : sizeof(td_utf8_replacement);
        memcpy(out + written, ok ? p + i : td_utf8_replacement, n_put);
        written += n_put;
    }
    return written;
}

uint32_t td_utf8_get(const uint8_t *p, size_t *len)
{
    uint8_t b = p[0];
    if (b < 0x80) {
        *len = 1;
        return b;
    }
    *len = b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4;
    uint32_t cp = b & (0x7fu >> *len);
    for (size_t i = 1; i < *len; i++)
        cp = cp << 6 | (p[i] & 0x3fu);
    return cp;
}

size_t td_utf8_prev(const uint8_t *p, size_t at)
{
    do
        at--;
    while (at > 0 && (p[at] & 0xc0) == 0x80);
    return at;
}

size_t td_utf8_put(uint32_t cp, uint8_t out[4])
{
    if (cp < 0x80) {
        out[0] = (uint8_t)cp;
        return 1;
    }
    size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, cp >>= 6)
        out[i] = (uint8_t)(0x80 | (cp & 0x3f));
    out[0] = (uint8_t)(cp | (0xf00u >> n)); /* 0xc0, 0xe0, 0xf0 in the low byte */
    return n;
}
