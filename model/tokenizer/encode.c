#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"

#include <stdlib.h>

static td_status encode_text(td_tok_encoder *enc, const uint8_t *text, size_t n)
{
    const td_tokenizer_info *info = &enc->tok->info;
    bool special = (enc->flags & TD_ENCODE_SPECIAL) != 0;
    td_status st = TD_OK;
    if (special && info->add_bos)
        st = td_tok_emit(enc, (uint32_t)info->bos_id);
    if (st == TD_OK && n > 0)
        st = td_tok_cut_added(enc, 0, text, n);
    if (st == TD_OK && special && info->add_eos)
        st = td_tok_emit(enc, (uint32_t)info->eos_id);
    return st;
}

td_status td_tokenizer_encode(const td_tokenizer *tok, const void *text, size_t n_bytes,
                              unsigned flags, int32_t **ids, size_t *n_ids, td_err *err)
{
    td_tok_encoder enc = {0};
    uint8_t *repaired = NULL;
    const uint8_t *p = text;
    td_status st;
    if (n_bytes > TD_TOKENIZER_MAX_TEXT_BYTES)
        return td_fail(err, TD_TOO_LARGE, "encode: %zu bytes of text, at most %u are taken",
                       n_bytes, TD_TOKENIZER_MAX_TEXT_BYTES);
    if (n_bytes > 0 && !td_utf8_valid(p, n_bytes)) {
        repaired = malloc(3 * n_bytes);
        if (repaired == NULL)
            return td_fail(err, TD_NOMEM, "encode: no memory for %zu bytes", 3 * n_bytes);
        n_bytes = td_utf8_repair(p, n_bytes, repaired);
        p = repaired;
    }
    st = td_tok_encoder_init(&enc, tok, flags, err);
    if (st == TD_OK) {
        enc.max_ids = n_bytes / 4 + 16;
        enc.ids = malloc(enc.max_ids * sizeof(*enc.ids));
        st = enc.ids != NULL ? encode_text(&enc, p, n_bytes)
                             : td_fail(err, TD_NOMEM, "encode: no memory for the ids");
    }
    if (st == TD_OK) {
        *ids = enc.ids;
        *n_ids = enc.n_ids;
        enc.ids = NULL;
    }
    td_tok_encoder_fini(&enc);
    free(repaired);
    return st;
}
