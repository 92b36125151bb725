/* The alphabet of GPT-2: printable bytes stand for themselves as code points, the other 68 are
 * numbered from U+0100 on in ascending order: 00-20, 7f, 80-a0, ad. */
#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"

int td_tok_byte_of(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xff && cp != 0xad))
        return (int)cp;
    if (cp < 0x100 || cp > 0x143)
        return -1;
    cp -= 0x100;
    if (cp <= 0x20)
        return (int)cp;
    return cp == 67 ? 0xad : (int)(0x7f + cp - 33);
}

uint32_t td_tok_char_of(uint8_t byte)
{
    if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte == 0xad ? 0x143u : 0x121u + byte - 0x7fu;
}

bool td_tok_to_bytes(const uint8_t *content, size_t n, uint8_t *out, size_t *n_out)
{
    size_t len;
    *n_out = 0;
    for (size_t i = 0; i < n; i += len) {
        int byte = td_tok_byte_of(td_utf8_get(content + i, &len));
        if (byte < 0)
            return false;
        out[(*n_out)++] = (uint8_t)byte;
    }
    return true;
}
