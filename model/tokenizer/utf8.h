/* utf8.h - UTF-8 as Unicode's table 3-7 defines it. Ill-formed bytes are cut into maximal subparts,
 * each worth one U+FFFD: what Python's errors="replace" and Rust's from_utf8_lossy do. */
#ifndef TD_MODEL_TOKENIZER_UTF8_H
#define TD_MODEL_TOKENIZER_UTF8_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    TD_UTF8_OK,    /* *len bytes are one character */
    TD_UTF8_BAD,   /* *len bytes are one maximal ill-formed subpart */
    TD_UTF8_SHORT, /* all n bytes begin a character whose end is not there */
} td_utf8_step_kind;

td_utf8_step_kind td_utf8_step(const uint8_t *p, size_t n, size_t *len); /* n >= 1 */
bool td_utf8_valid(const uint8_t *p, size_t n);
/* Writes p with U+FFFD for what is ill-formed; out has room for 3 * n. Returns the bytes written.
 */
size_t td_utf8_repair(const uint8_t *p, size_t n, uint8_t *out);
/* Of well-formed text, n >= 1: */
uint32_t td_utf8_get(const uint8_t *p, size_t *len);
size_t td_utf8_prev(const uint8_t *p,
                    size_t at); /* where the character before p[at] begins; at >= 1 */
size_t td_utf8_put(uint32_t cp, uint8_t out[4]); /* cp is a scalar value; bytes written */

extern const uint8_t td_utf8_replacement[3];
#endif
