/* The pre-tokeniser: each Split cuts the pieces that the one before it made, each piece seen alone.
 * Behaviour "Isolated": matches and what stands between them are pieces. */
#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"

#include <stdlib.h>

#define MATCH_LIMIT 100000000u
#define JIT_STACK_START_BYTES (64u << 10)
#define JIT_STACK_MAX_BYTES (16u << 20)

td_status td_tok_encoder_init(td_tok_encoder *enc, const td_tokenizer *tok, unsigned flags,
                              td_err *err)
{
    *enc = (td_tok_encoder){.tok = tok, .flags = flags, .err = err};
    enc->match = pcre2_match_data_create(1, tok->pcre);
    enc->context = pcre2_match_context_create(tok->pcre);
    if (enc->match == NULL || enc->context == NULL)
        return td_fail(err, TD_NOMEM, "encode: no memory");
    pcre2_set_match_limit(enc->context, MATCH_LIMIT);
    return TD_OK;
}

void td_tok_encoder_fini(td_tok_encoder *enc)
{
    pcre2_match_data_free(enc->match);
    pcre2_match_context_free(enc->context);
    pcre2_jit_stack_free(enc->jit_stack);
    free(enc->scratch);
    free(enc->ids);
}

static td_status match_failed(td_tok_encoder *enc, uint32_t level, int rc)
{
    if (rc == PCRE2_ERROR_NOMEMORY)
        return td_fail(enc->err, TD_NOMEM, "encode: pattern %u: out of memory", level);
    char why[120];
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof(why));
    return td_fail(enc->err, TD_EXHAUSTED, "encode: pattern %u: %s", level, why);
}

/* TD_EMPTY: no match from `from` on. */
static td_status next_match(td_tok_encoder *enc, uint32_t level, const uint8_t *text, size_t n,
                            size_t from, size_t *start, size_t *end)
{
    const pcre2_code *code = enc->tok->patterns[level];
    int rc = pcre2_match(code, text, n, from, PCRE2_NO_UTF_CHECK, enc->match, enc->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && enc->jit_stack == NULL) {
        enc->jit_stack =
            pcre2_jit_stack_create(JIT_STACK_START_BYTES, JIT_STACK_MAX_BYTES, enc->tok->pcre);
        if (enc->jit_stack == NULL)
            return match_failed(enc, level, PCRE2_ERROR_NOMEMORY);
        pcre2_jit_stack_assign(enc->context, NULL, enc->jit_stack);
        rc = pcre2_match(code, text, n, from, PCRE2_NO_UTF_CHECK, enc->match, enc->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH)
        return TD_EMPTY;
    if (rc < 0)
        return match_failed(enc, level, rc);
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(enc->match);
    *start = at[0];
    *end = at[1];
    return TD_OK;
}

/* The search goes on as in the onig crate's find_iter(): an empty match right behind the last match
 * is not taken, the search then moves on by one character. */
td_status td_tok_split(td_tok_encoder *enc, uint32_t level, const uint8_t *text, size_t n,
                       td_tok_piece done)
{
    if (level == enc->tok->n_patterns)
        return done(enc, text, n);
    size_t cut = 0, from = 0, last_end = SIZE_MAX, start = 0, end = 0;
    td_status st;
    while (from <= n) {
        st = next_match(enc, level, text, n, from, &start, &end);
        if (st == TD_EMPTY)
            break;
        if (st != TD_OK)
            return st;
        if (start == end && end == last_end) {
            size_t len = 1;
            if (from < n)
                td_utf8_get(text + from, &len);
            from += len;
            continue;
        }
        if (cut < start &&
            (st = td_tok_split(enc, level + 1, text + cut, start - cut, done)) != TD_OK)
            return st;
        if (start < end &&
            (st = td_tok_split(enc, level + 1, text + start, end - start, done)) != TD_OK)
            return st;
        cut = from = last_end = end;
    }
    return cut < n ? td_tok_split(enc, level + 1, text + cut, n - cut, done) : TD_OK;
}
