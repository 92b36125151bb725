/* vectors.h - the test vectors that tools/tokenizer-vectors/make_vectors.py wrote, and the claims
 * that hold for each tokenizer they were made for. name: "mini", "bundled" or "v3". */
#ifndef TD_TESTS_TOKENIZER_VECTORS_H
#define TD_TESTS_TOKENIZER_VECTORS_H
#include "model/tokenizer/tokenizer.h"

#define VECTORS_DIR TD_SOURCE_DIR "/tests/model/tokenizer/vectors"

char *vectors_read(const char *file,
                   size_t *n); /* a file of VECTORS_DIR; aborts when it is not there */
td_tokenizer *vectors_mini(void);
td_tokenizer *vectors_open(const char *dir); /* NULL: dir has no tokenizer.json */

/* The ids of every text are Hugging Face's. */
void vectors_check_ids(const td_tokenizer *tok, const char *name);
/* The same with special tokens as text, and decoding of arbitrary ids with and without special
 * tokens. */
void vectors_check_more(const td_tokenizer *tok, const char *name);
/* decode(encode(text)) is the text, ill-formed parts as U+FFFD; on the texts that hold no added
 * token. */
void vectors_check_round_trip(const td_tokenizer *tok);
/* One id at a time: each piece is UTF-8, and together they are what decoding all at once gives. */
void vectors_check_stream(const td_tokenizer *tok);
#endif
