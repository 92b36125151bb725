/* internal.h - the parts of a loaded tokenizer, for this folder's files and their tests only. */
#ifndef TD_MODEL_TOKENIZER_INTERNAL_H
#define TD_MODEL_TOKENIZER_INTERNAL_H
#include "model/tokenizer/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <cjson/cJSON.h>
#include <pcre2.h>

#define TD_TOK_NONE UINT32_MAX
#define TD_TOK_MAX_PATTERNS 16

enum {                      /* marks of a token */
       TD_TOK_SPECIAL = 1,  /* leaves no text with TD_DECODE_SKIP_SPECIAL */
       TD_TOK_ADDED = 2,    /* found in the text before it is cut into pieces */
       TD_TOK_UNMAPPED = 4, /* content is not in the byte-level alphabet: it stands for itself */
};

/* Strings one after another: string i is bytes[at[i]] .. bytes[at[i + 1] - 1]. */
typedef struct {
    uint8_t *bytes;
    uint32_t *at; /* [n + 1] */
    uint32_t n;
} td_tok_strings;

/* Hash table from a string to its number in a td_tok_strings: open addressing, at most half full.
 */
typedef struct {
    struct td_tok_slot {
        uint32_t tag; /* upper half of the hash */
        uint32_t id;  /* TD_TOK_NONE: free */
    } * slots;
    uint32_t mask;
} td_tok_index;

/* Merges by rank, found by their pair of ids. */
typedef struct {
    struct td_tok_merge {
        uint32_t left, right;
        uint32_t rank; /* TD_TOK_NONE: free */
    } * slots;
    uint32_t mask;
    uint32_t n;
    uint32_t *result;     /* [n] the id that the merge of this rank makes */
    uint32_t *byte_pairs; /* [65536] rank for two single bytes, first << 8 | second: most lookups */
} td_tok_merges;

typedef struct {
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} td_tok_added;

/* Added tokens as a trie over bytes; a node's children stand together, sorted. */
typedef struct {
    struct td_tok_node {
        uint32_t child;
        int32_t added; /* index into td_tokenizer.added; -1: no token ends here */
        uint16_t n_children;
        uint8_t byte;
    } * nodes;
    uint32_t root[256]; /* node of each first byte; 0: none */
    int only_byte;      /* the one first byte there is; -1: several */
    bool empty;
} td_tok_trie;

struct td_tokenizer {
    td_tokenizer_info info;
    uint32_t n_vocab;        /* ids below it stand in model.vocab */
    td_tok_strings contents; /* as tokenizer.json writes them */
    td_tok_strings texts;    /* the bytes they stand for */
    td_tok_index by_content;
    td_tok_index words; /* texts whose encoding is that one token */
    uint32_t max_word_bytes;
    uint8_t *marks; /* [n_tokens] TD_TOK_SPECIAL and so on */
    uint32_t byte_ids[256];
    td_tok_merges merges;
    bool ignore_merges;
    td_tok_added *added;
    uint32_t n_added;
    td_tok_trie tries[2]; /* searched in this order: normalized false, normalized true */
    pcre2_general_context *pcre;
    pcre2_code *patterns[TD_TOK_MAX_PATTERNS];
    uint32_t n_patterns;
    pcre2_code *word_char; /* one \w as Rust's regex crate has it; NULL: no token is single_word */
};

/* What one encode() works with. */
typedef struct {
    const td_tokenizer *tok;
    unsigned flags;
    int32_t *ids;
    size_t n_ids, max_ids;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack; /* made when a match asks for more than the default */
    uint32_t *scratch;          /* for pieces of up to scratch_bytes bytes */
    size_t scratch_bytes;
    td_err *err;
} td_tok_encoder;

/* strings.c */
td_status td_tok_strings_init(td_tok_strings *s, uint32_t max_n, size_t max_bytes);
void td_tok_strings_add(td_tok_strings *s, const void *bytes, size_t n); /* room was asked for */
void td_tok_strings_fini(td_tok_strings *s);
static inline const uint8_t *td_tok_string(const td_tok_strings *s, uint32_t i, size_t *n)
{
    *n = s->at[i + 1] - s->at[i];
    return s->bytes + s->at[i];
}
td_status td_tok_index_init(td_tok_index *index, uint32_t max_n);
/* TD_TOK_NONE: it was new and is in now. Otherwise the number of the equal string that was there.
 */
uint32_t td_tok_index_add(td_tok_index *index, const td_tok_strings *s, uint32_t i);
uint32_t td_tok_index_find(const td_tok_index *index, const td_tok_strings *s, const void *bytes,
                           size_t n);

/* byte_level.c: the alphabet that byte-level BPE writes bytes in */
int td_tok_byte_of(uint32_t cp); /* -1: not in the alphabet */
uint32_t td_tok_char_of(uint8_t byte);
/* content (well-formed UTF-8) to bytes, at most n of them. False: some character is not in the
 * alphabet. */
bool td_tok_to_bytes(const uint8_t *content, size_t n, uint8_t *out, size_t *n_out);

/* merges.c, bpe.c */
td_status td_tok_merges_init(td_tok_merges *merges, uint32_t max_n);
/* TD_INVALID: this pair is there already. */
td_status td_tok_merges_add(td_tok_merges *merges, uint32_t left, uint32_t right, uint32_t result);
void td_tok_merges_fini(td_tok_merges *merges);
uint32_t td_tok_merges_rank(const td_tok_merges *merges, uint32_t left, uint32_t right);
td_status td_tok_bpe(td_tok_encoder *enc, const uint8_t *piece, size_t n);
td_status td_tok_emit(td_tok_encoder *enc, uint32_t id);

/* added.c */
td_status td_tok_tries_build(td_tokenizer *tok);
/* Cuts text at added tokens of trie `stage` and later ones; what is left goes to td_tok_split(). */
td_status td_tok_cut_added(td_tok_encoder *enc, unsigned stage, const uint8_t *text, size_t n);

/* pattern.c: Oniguruma's pattern to PCRE2's with the same meaning; where names it in messages */
td_status td_tok_pattern_translate(const char *pattern, const char *where, char **out, td_err *err);
td_status td_tok_pattern_compile(td_tokenizer *tok, const char *pcre, const char *where,
                                 pcre2_code **out, td_err *err);

/* split.c */
td_status td_tok_encoder_init(td_tok_encoder *enc, const td_tokenizer *tok, unsigned flags,
                              td_err *err);
void td_tok_encoder_fini(td_tok_encoder *enc);
typedef td_status (*td_tok_piece)(td_tok_encoder *enc, const uint8_t *piece, size_t n);
/* Hands each piece that the patterns from `level` on make of text to done(). */
td_status td_tok_split(td_tok_encoder *enc, uint32_t level, const uint8_t *text, size_t n,
                       td_tok_piece done);

/* load.c and its parts */
typedef struct {
    const char *name;
    const cJSON **out; /* set to the member, or NULL when it is absent or null */
} td_tok_member;
/* Every member of obj must be one of these, once. */
td_status td_tok_members(const cJSON *obj, const char *where, const td_tok_member *members,
                         size_t n, td_err *err);
td_status td_tok_bool(const cJSON *json, const char *where, const char *name, bool def, bool *out,
                      td_err *err);
const char *td_tok_quote(const char *text, char buf[80]); /* for messages */
td_status td_tok_load_vocab(td_tokenizer *tok, const cJSON *vocab, const cJSON *added, td_err *err);
td_status td_tok_load_model(td_tokenizer *tok, const cJSON *model, const cJSON *added, td_err *err);
td_status td_tok_load_added(td_tokenizer *tok, const cJSON *added, td_err *err);
td_status td_tok_load_pre_tokenizer(td_tokenizer *tok, const cJSON *json, td_err *err);
#endif
