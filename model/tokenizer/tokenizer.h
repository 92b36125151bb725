/* tokenizer.h - text to token ids and back, from a checkpoint's tokenizer.json: byte-level BPE
 * behind Split patterns, with the ids that Hugging Face tokenizers gives. Whatever else a file asks
 * for is refused by name, never ignored. A loaded tokenizer never changes: any number of threads
 * may use it at once. */
#ifndef TD_MODEL_TOKENIZER_TOKENIZER_H
#define TD_MODEL_TOKENIZER_TOKENIZER_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_TOKENIZER_MAX_FILE_BYTES (64u << 20)
#define TD_TOKENIZER_MAX_TEXT_BYTES (256u << 20)
#define TD_TOKENIZER_MAX_TOKENS (1u << 20)
#define TD_TOKENIZER_MAX_TOKEN_BYTES 65535u

typedef struct td_tokenizer td_tokenizer;

typedef struct {
    uint32_t n_tokens;       /* ids are 0..n_tokens-1; a model's padded vocabulary may be larger */
    uint32_t max_text_bytes; /* the most that one td_detok_push() writes */
    int32_t bos_id, eos_id;  /* from tokenizer_config.json; -1: it names none */
    bool add_bos, add_eos;   /* what TD_ENCODE_SPECIAL does */
    uint64_t fingerprint;    /* FNV-1a of tokenizer.json's bytes */
} td_tokenizer_info;

/* Reads DIR/tokenizer.json and, where it exists, DIR/tokenizer_config.json. TD_NOT_FOUND: there is
 * no tokenizer.json (such a model serves token ids only). TD_INVALID: malformed, TD_UNSUPPORTED:
 * asks for what we do not do; both say what and where. */
td_status td_tokenizer_open(const char *dir, td_tokenizer **out, td_err *err);
/* The same from memory; config may be NULL. Neither text needs a terminating NUL. */
td_status td_tokenizer_parse(const char *json, size_t n_json, const char *config, size_t n_config,
                             td_tokenizer **out, td_err *err);
void td_tokenizer_destroy(td_tokenizer *tok); /* NULL is fine */
const td_tokenizer_info *td_tokenizer_describe(const td_tokenizer *tok);

enum {
    TD_ENCODE_SPECIAL =
        1, /* begin- and end-of-sequence ids around the text, as add_bos and add_eos say */
    TD_ENCODE_PLAIN = 2, /* special tokens written in the text are text like any other */
};

/* Any bytes: what is not UTF-8 counts as U+FFFD, one for each maximal ill-formed part (as Python's
 * bytes.decode(errors="replace") does it). *ids is malloc'ed and the caller's, also when *n_ids is
 * 0. TD_TOO_LARGE; TD_EXHAUSTED: a pattern ran into its match limit. */
td_status td_tokenizer_encode(const td_tokenizer *tok, const void *text, size_t n_bytes,
                              unsigned flags, int32_t **ids, size_t *n_ids, td_err *err);

enum { TD_DECODE_SKIP_SPECIAL = 1 }; /* special tokens leave no text */

/* Always UTF-8 (U+FFFD as above), NUL-terminated, malloc'ed. Ids outside 0..n_tokens-1 leave no
 * text, as with Hugging Face: who must refuse them asks td_tokenizer_token(). */
td_status td_tokenizer_decode(const td_tokenizer *tok, const int32_t *ids, size_t n_ids,
                              unsigned flags, char **text, size_t *n_bytes, td_err *err);

typedef struct {
    const char
        *bytes; /* what the token stands for: often not UTF-8 by itself; not NUL-terminated */
    size_t n_bytes;
    bool special;
} td_token;

bool td_tokenizer_token(const td_tokenizer *tok, int32_t id, td_token *out); /* false: no such id */
/* The id of a token as tokenizer.json writes it ("<think>", "\u0120the"); -1: none. */
int32_t td_tokenizer_find(const td_tokenizer *tok, const char *content);

/* Detokeniser of one stream: a plain value without memory of its own. Every piece is whole UTF-8
 * characters; together they are what td_tokenizer_decode() gives for the same ids. */
typedef struct {
    const td_tokenizer *tok;
    unsigned flags; /* TD_DECODE_* */
    uint8_t n_held;
    uint8_t held[4]; /* a character's first bytes, waiting for the rest */
} td_detok;

#define TD_DETOK_TAIL_BYTES 3

void td_detok_init(td_detok *detok, const td_tokenizer *tok, unsigned flags);
/* Writes the text that id completes, perhaps none. TD_FULL (nothing happened): capacity is below
 * info.max_text_bytes and too small for this one. Not NUL-terminated. */
td_status td_detok_push(td_detok *detok, int32_t id, char *out, size_t capacity, size_t *n_bytes);
/* The stream ends: a character that never came whole becomes U+FFFD. Returns the bytes written, 0
 * or 3. */
size_t td_detok_finish(td_detok *detok, char out[TD_DETOK_TAIL_BYTES]);
#endif
