#include "common/base/crc32c.h"

#include <string.h>

#define POLY 0x82f63b78u /* reflected */
/* Bytes per stream in one round of three; a long round hides the cost of joining the streams, a
 * short one serves buffers (and ends of buffers) of less than 24 KiB. */
#define LONG_BYTES 8192
#define SHORT_BYTES 256

/* Filled once, before main: threads only read them. */
static uint32_t slices[8][256];    /* slices[k][b]: crc of byte b followed by k zero bytes */
static uint32_t skip_long[4][256]; /* the effect of LONG_BYTES zero bytes on each byte of a crc */
static uint32_t skip_short[4][256];

/* Appends n zero bytes to a raw (uninverted) crc. */
static uint32_t append_zeros(uint32_t crc, size_t n)
{
    while (n-- > 0)
        crc = (crc >> 8) ^ slices[0][crc & 0xff];
    return crc;
}

/* Linear: the table of a sum of bits is the sum of the bits' tables. */
static void fill_skip(uint32_t table[4][256], size_t n_zeros)
{
    uint32_t bit[32];
    for (int i = 0; i < 32; i++)
        bit[i] = append_zeros(1u << i, n_zeros);
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++) {
            uint32_t sum = 0;
            for (int i = 0; i < 8; i++)
                if (value >> i & 1)
                    sum ^= bit[8 * byte + i];
            table[byte][value] = sum;
        }
}

__attribute__((constructor)) static void fill_tables(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int i = 0; i < 8; i++)
            crc = (crc >> 1) ^ (crc & 1 ? POLY : 0);
        slices[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            slices[k][b] = (slices[k - 1][b] >> 8) ^ slices[0][slices[k - 1][b] & 0xff];
    fill_skip(skip_long, LONG_BYTES);
    fill_skip(skip_short, SHORT_BYTES);
}

#if defined(__x86_64__)
#include <nmmintrin.h>

static uint32_t skip(uint32_t table[4][256], uint32_t crc)
{
    return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
           table[3][crc >> 24];
}

static uint64_t load64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

/* Rounds of three streams of n bytes each, side by side: the instruction takes three cycles but
 * starts every cycle. */
__attribute__((target("sse4.2"))) static const unsigned char *
three_streams(uint64_t *crc, const unsigned char *p, size_t *left, size_t n, uint32_t table[4][256])
{
    while (*left >= 3 * n) {
        uint64_t a = *crc, b = 0, c = 0;
        for (size_t i = 0; i < n; i += 8) {
            a = _mm_crc32_u64(a, load64(p + i));
            b = _mm_crc32_u64(b, load64(p + n + i));
            c = _mm_crc32_u64(c, load64(p + 2 * n + i));
        }
        *crc = skip(table, skip(table, (uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
        p += 3 * n;
        *left -= 3 * n;
    }
    return p;
}

__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const void *data,
                                                            size_t n_bytes)
{
    const unsigned char *p = data;
    uint64_t x = ~crc;
    p = three_streams(&x, p, &n_bytes, LONG_BYTES, skip_long);
    p = three_streams(&x, p, &n_bytes, SHORT_BYTES, skip_short);
    for (; n_bytes >= 8; p += 8, n_bytes -= 8)
        x = _mm_crc32_u64(x, load64(p));
    for (; n_bytes > 0; p++, n_bytes--)
        x = _mm_crc32_u8((uint32_t)x, *p);
    return ~(uint32_t)x;
}
#endif

uint32_t td_crc32c(uint32_t crc, const void *data, size_t n_bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return crc_sse42(crc, data, n_bytes);
#endif
    return td_crc32c_portable(crc, data, n_bytes);
}

uint32_t td_crc32c_portable(uint32_t crc, const void *data, size_t n_bytes)
{
    const unsigned char *p = data;
    uint32_t x = ~crc;
    for (; n_bytes >= 8; p += 8, n_bytes -= 8) {
        uint32_t lo = x ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                           (uint32_t)p[3] << 24);
        x = slices[7][lo & 0xff] ^ slices[6][lo >> 8 & 0xff] ^ slices[5][lo >> 16 & 0xff] ^
            slices[4][lo >> 24] ^ slices[3][p[4]] ^ slices[2][p[5]] ^ slices[1][p[6]] ^
            slices[0][p[7]];
    }
    for (; n_bytes > 0; p++, n_bytes--)
        x = (x >> 8) ^ slices[0][(x ^ *p) & 0xff];
    return ~x;
}
