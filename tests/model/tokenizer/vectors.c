#include "tests/model/tokenizer/vectors.h"

#include "common/base/conf.h"
#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"
#include "tests/td_test.h"

#include <inttypes.h>

#define MAX_FILE_BYTES (16u << 20)
#define MIN_TEXTS 2000

typedef struct {
    uint8_t *bytes;
    size_t n;
    int32_t *ids;
    size_t n_ids;
} vector;

char *vectors_read(const char *file, size_t *n)
{
    char path[1024], *text;
    td_err err;
    snprintf(path, sizeof(path), VECTORS_DIR "/%s", file);
    if (td_read_file(path, MAX_FILE_BYTES, &text, n, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return text;
}

td_tokenizer *vectors_mini(void)
{
    td_tokenizer *tok;
    td_err err;
    size_t n;
    char *json = vectors_read("mini.json", &n);
    if (td_tokenizer_parse(json, n, NULL, 0, &tok, &err) < 0) {
        fprintf(stderr, "mini.json: %s\n", err.text);
        abort();
    }
    free(json);
    return tok;
}

td_tokenizer *vectors_open(const char *dir)
{
    td_tokenizer *tok = NULL;
    td_err err;
    td_status st = td_tokenizer_open(dir, &tok, &err);
    if (st == TD_NOT_FOUND)
        return NULL;
    if (st < 0)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return tok;
}

/* Up to the first byte that is no hex digit, which *p points to then. */
static uint8_t *read_hex(char **p, size_t *n)
{
    static const char digits[] = "0123456789abcdef";
    size_t length = strspn(*p, digits);
    uint8_t *bytes = malloc(length / 2 + 1);
    for (*n = 0; *n < length / 2; ++*n, *p += 2)
        bytes[*n] =
            (uint8_t)((strchr(digits, (*p)[0]) - digits) << 4 | (strchr(digits, (*p)[1]) - digits));
    return bytes;
}

/* Up to the end of the line, and behind it. */
static int32_t *read_ids(char **p, size_t *n)
{
    int32_t *ids = malloc((strcspn(*p, "\n") / 2 + 1) * sizeof(*ids));
    for (*n = 0; **p != '\n';)
        ids[(*n)++] = (int32_t)strtol(*p, p, 10);
    ++*p;
    return ids;
}

static void check_fingerprint(const td_tokenizer *tok, const char *name, const char *text)
{
    uint64_t want;
    TD_EQ(1, sscanf(text, "# fnv1a %" SCNx64, &want));
    if (want != td_tokenizer_describe(tok)->fingerprint) {
        fprintf(stderr, "%s: the vectors are another tokenizer.json's: run %s\n", name,
                "tools/tokenizer-vectors/make_vectors.py");
        fail();
    }
}

/* ids_of: whose ids come along; NULL: nobody's. */
static vector *read_texts(const td_tokenizer *tok, const char *ids_of, size_t *n)
{
    size_t n_text, n_ids;
    char file[64], *ids = NULL, *text = vectors_read("texts.hex", &n_text), *p = text, *q = NULL;
    if (ids_of != NULL) {
        snprintf(file, sizeof(file), "%s.ids", ids_of);
        q = ids = vectors_read(file, &n_ids);
        check_fingerprint(tok, ids_of, ids);
        q = strchr(ids, '\n') + 1;
    }
    vector *v = calloc(n_text, sizeof(*v)); /* more than there are lines */
    for (*n = 0; *p != '\0'; p++, ++*n) {
        v[*n].bytes = read_hex(&p, &v[*n].n);
        if (q != NULL)
            v[*n].ids = read_ids(&q, &v[*n].n_ids);
    }
    TD_TRUE(q == NULL || *q == '\0');
    TD_TRUE(*n >= MIN_TEXTS);
    free(text);
    free(ids);
    return v;
}

static void free_texts(vector *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(v[i].bytes);
        free(v[i].ids);
    }
    free(v);
}

static int check_encode(const td_tokenizer *tok, const vector *v, unsigned flags, const char *name,
                        size_t line)
{
    int32_t *ids;
    size_t n;
    TD_EQ(TD_OK, td_tokenizer_encode(tok, v->bytes, v->n, flags, &ids, &n, NULL));
    bool same = n == v->n_ids && (n == 0 || memcmp(ids, v->ids, n * sizeof(*ids)) == 0);
    if (!same) {
        fprintf(stderr, "%s line %zu:", name, line);
        for (size_t i = 0; i < n; i++)
            fprintf(stderr, " %d", ids[i]);
        fprintf(stderr, "\n");
    }
    free(ids);
    return same ? 0 : 1;
}

void vectors_check_ids(const td_tokenizer *tok, const char *name)
{
    size_t n;
    int wrong = 0;
    vector *v = read_texts(tok, name, &n);
    for (size_t i = 0; i < n; i++)
        wrong += check_encode(tok, &v[i], 0, name, i + 1);
    printf("%s: %zu texts, %d differ\n", name, n, wrong);
    TD_EQ(0, wrong);
    free_texts(v, n);
}

static int check_decode(const td_tokenizer *tok, const vector *v, unsigned flags, size_t line)
{
    char *text;
    size_t n;
    TD_EQ(TD_OK, td_tokenizer_decode(tok, v->ids, v->n_ids, flags, &text, &n, NULL));
    bool same = n == v->n && memcmp(text, v->bytes, n) == 0 && text[n] == '\0';
    if (!same)
        fprintf(stderr, "decode, line %zu: \"%s\"\n", line, text);
    free(text);
    return same ? 0 : 1;
}

void vectors_check_more(const td_tokenizer *tok, const char *name)
{
    size_t n, line = 2;
    int wrong = 0;
    char file[64];
    snprintf(file, sizeof(file), "%s.more", name);
    char *text = vectors_read(file, &n), *p = strchr(text, '\n') + 1;
    check_fingerprint(tok, name, text);
    for (; *p != '\0'; line++) {
        char kind = *p;
        vector v;
        p += 2;
        v.bytes = read_hex(&p, &v.n);
        p++; /* the colon */
        v.ids = read_ids(&p, &v.n_ids);
        if (kind == 'P')
            wrong += check_encode(tok, &v, TD_ENCODE_PLAIN, file, line);
        else
            wrong += check_decode(tok, &v, kind == 'S' ? TD_DECODE_SKIP_SPECIAL : 0, line);
        free(v.bytes);
        free(v.ids);
    }
    TD_EQ(0, wrong);
    TD_TRUE(line > 200);
    free(text);
}

/* Decoding gives the added token itself back, not the spaces it took or bytes that its letters
 * stand for. */
static bool has_added(const td_tokenizer *tok, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((tok->marks[ids[i]] & TD_TOK_ADDED) != 0)
            return true;
    return false;
}

void vectors_check_round_trip(const td_tokenizer *tok)
{
    size_t n, n_checked = 0;
    vector *v = read_texts(tok, NULL, &n);
    for (size_t i = 0; i < n; i++) {
        char *text;
        int32_t *ids;
        size_t n_ids, n_text;
        uint8_t *repaired = malloc(3 * v[i].n + 1);
        size_t n_want = td_utf8_repair(v[i].bytes, v[i].n, repaired);
        TD_EQ(TD_OK, td_tokenizer_encode(tok, v[i].bytes, v[i].n, 0, &ids, &n_ids, NULL));
        TD_EQ(TD_OK, td_tokenizer_decode(tok, ids, n_ids, 0, &text, &n_text, NULL));
        if (!has_added(tok, ids, n_ids)) {
            n_checked++;
            TD_EQ(n_want, n_text);
            TD_MEM(repaired, text, n_want);
        }
        free(repaired);
        free(ids);
        free(text);
    }
    TD_TRUE(n_checked > MIN_TEXTS);
    free_texts(v, n);
}

static void check_one_stream(const td_tokenizer *tok, const int32_t *ids, size_t n, unsigned flags)
{
    td_detok detok;
    char *want, *piece = malloc(td_tokenizer_describe(tok)->max_text_bytes);
    size_t n_want, at = 0, n_piece;
    TD_EQ(TD_OK, td_tokenizer_decode(tok, ids, n, flags, &want, &n_want, NULL));
    td_detok_init(&detok, tok, flags);
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            TD_EQ(TD_OK, td_detok_push(&detok, ids[i], piece,
                                       td_tokenizer_describe(tok)->max_text_bytes, &n_piece));
        else
            n_piece = td_detok_finish(&detok, piece);
        TD_TRUE(td_utf8_valid((uint8_t *)piece, n_piece));
        TD_TRUE(n_piece <= n_want - at);
        TD_MEM(want + at, piece, n_piece);
        at += n_piece;
    }
    TD_EQ(n_want, at);
    free(want);
    free(piece);
}

void vectors_check_stream(const td_tokenizer *tok)
{
    size_t n;
    uint32_t seed = 1;
    vector *v = read_texts(tok, NULL, &n);
    int32_t random_ids[64];
    for (size_t i = 0; i < n; i++) {
        int32_t *ids;
        size_t n_ids;
        TD_EQ(TD_OK, td_tokenizer_encode(tok, v[i].bytes, v[i].n, 0, &ids, &n_ids, NULL));
        check_one_stream(tok, ids, n_ids, i % 2 == 0 ? 0 : TD_DECODE_SKIP_SPECIAL);
        free(ids);
        /* ids of single bytes, any others, and a few that do not exist */
        for (size_t k = 0; k < 64; k++) {
            seed = seed * 1664525u + 1013904223u;
            uint32_t n_tokens = tok->info.n_tokens, r = seed >> 8;
            random_ids[k] = (int32_t)(r % 4 == 0 ? r % (n_tokens + 3) : tok->byte_ids[r >> 16]);
        }
        check_one_stream(tok, random_ids, 64, 0);
    }
    free_texts(v, n);
}
