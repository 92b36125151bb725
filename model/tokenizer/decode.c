#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

bool td_tokenizer_token(const td_tokenizer *tok, int32_t id, td_token *out)
{
    if (id < 0 || (uint32_t)id >= tok->info.n_tokens)
        return false;
    out->bytes = (const char *)td_tok_string(&tok->texts, (uint32_t)id, &out->n_bytes);
    out->special = (tok->marks[id] & TD_TOK_SPECIAL) != 0;
    return true;
}

int32_t td_tokenizer_find(const td_tokenizer *tok, const char *content)
{
    uint32_t id = td_tok_index_find(&tok->by_content, &tok->contents, content, strlen(content));
    return id == TD_TOK_NONE ? -1 : (int32_t)id;
}

void td_detok_init(td_detok *detok, const td_tokenizer *tok, unsigned flags)
{
    *detok = (td_detok){.tok = tok, .flags = flags};
}

/* Takes one byte and writes what it settles: at most a character, or U+FFFD for each bad part and a
 * character. */
static size_t take_byte(td_detok *detok, uint8_t byte, char *out)
{
    size_t n_out = 0, len;
    if (detok->n_held == 0 && byte < 0x80) {
        out[0] = (char)byte;
        return 1;
    }
    detok->held[detok->n_held++] = byte;
    while (detok->n_held > 0) {
        td_utf8_step_kind kind = td_utf8_step(detok->held, detok->n_held, &len);
        if (kind == TD_UTF8_SHORT)
            break;
        bool ok = kind == TD_UTF8_OK;
        size_t n_put = ok ? len : sizeof(td_utf8_replacement);
        memcpy(out + n_out, ok ? detok->held : td_utf8_replacement, n_put);
        n_out += n_put;
        detok->n_held -= (uint8_t)len;
        memmove(detok->held, detok->held + len, detok->n_held);
    }
    return n_out;
}

/* Room for n more bytes: each of them, and each held one, ends as at most one U+FFFD. */
static size_t room_for(const td_detok *detok, size_t n)
{
    return sizeof(td_utf8_replacement) * (n + detok->n_held);
}

td_status td_detok_push(td_detok *detok, int32_t id, char *out, size_t capacity, size_t *n_bytes)
{
    td_token token;
    size_t n = 0;
    if (td_tokenizer_token(detok->tok, id, &token) &&
        !(token.special && (detok->flags & TD_DECODE_SKIP_SPECIAL) != 0)) {
        if (capacity < room_for(detok, token.n_bytes))
            return TD_FULL;
        for (size_t i = 0; i < token.n_bytes; i++)
            n += take_byte(detok, (uint8_t)token.bytes[i], out + n);
    }
    *n_bytes = n;
    return TD_OK;
}

size_t td_detok_finish(td_detok *detok, char out[TD_DETOK_TAIL_BYTES])
{
    if (detok->n_held == 0)
        return 0;
    detok->n_held = 0;
    memcpy(out, td_utf8_replacement, sizeof(td_utf8_replacement));
    return sizeof(td_utf8_replacement);
}

td_status td_tokenizer_decode(const td_tokenizer *tok, const int32_t *ids, size_t n_ids,
                              unsigned flags, char **text, size_t *n_bytes, td_err *err)
{
    td_detok detok;
    td_detok_init(&detok, tok, flags);
    size_t most = tok->info.max_text_bytes, n = 0, n_piece;
    size_t room = 4 * n_ids + most + TD_DETOK_TAIL_BYTES + 1;
    char *buffer = malloc(room);
    for (size_t i = 0; buffer != NULL && i < n_ids; i++) {
        td_status st = td_detok_push(&detok, ids[i], buffer + n, most, &n_piece);
        td_assert(st == TD_OK);
        n += n_piece;
        if (room - n < most + TD_DETOK_TAIL_BYTES + 1) {
            room = 2 * room + most;
            char *bigger = realloc(buffer, room);
            if (bigger == NULL)
                free(buffer);
            buffer = bigger;
        }
    }
    if (buffer == NULL)
        return td_fail(err, TD_NOMEM, "decode: no memory for %zu bytes", room);
    n += td_detok_finish(&detok, buffer + n);
    buffer[n] = '\0';
    *text = buffer;
    *n_bytes = n;
    return TD_OK;
}
