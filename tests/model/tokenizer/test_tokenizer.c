/* The small tokenizer of vectors/mini.json, which has every flag of added tokens, and the bundled
 * model's. */
#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"
#include "tests/model/tokenizer/vectors.h"
#include "tests/td_test.h"

#include <pthread.h>

#define BUNDLED_DIR TD_SOURCE_DIR "/models/tiny-v32"

TD_TEST_MAIN

static td_tokenizer *bundled(void)
{
    td_tokenizer *tok = vectors_open(BUNDLED_DIR);
    if (tok == NULL)
        td_skip("models/tiny-v32 has no tokenizer.json");
    return tok;
}

TEST(mini_ids_are_those_of_hugging_face)
{
    td_tokenizer *tok = vectors_mini();
    vectors_check_ids(tok, "mini");
    vectors_check_more(tok, "mini");
    td_tokenizer_destroy(tok);
}

TEST(bundled_ids_are_those_of_hugging_face)
{
    td_tokenizer *tok = bundled();
    vectors_check_ids(tok, "bundled");
    vectors_check_more(tok, "bundled");
    td_tokenizer_destroy(tok);
}

TEST(decoding_gives_the_text_back)
{
    td_tokenizer *tok = vectors_mini();
    vectors_check_round_trip(tok);
    td_tokenizer_destroy(tok);
    tok = bundled();
    vectors_check_round_trip(tok);
    td_tokenizer_destroy(tok);
}

TEST(streams_never_split_a_character_and_add_up)
{
    td_tokenizer *tok = vectors_mini();
    vectors_check_stream(tok);
    td_tokenizer_destroy(tok);
    tok = bundled();
    vectors_check_stream(tok);
    td_tokenizer_destroy(tok);
}

/* ---- every code point ---- */

typedef struct {
    td_tok_encoder enc; /* first: the callback sees only this */
    uint32_t crc;
} sweep;

static td_status add_length(td_tok_encoder *enc, const uint8_t *piece, size_t n)
{
    uint32_t *crc = &((sweep *)(void *)enc)->crc;
    (void)piece;
    for (int byte = 0; byte < 4; byte++) { /* zlib's CRC-32 of the length as 4 bytes */
        *crc ^= (uint32_t)(n >> (8 * byte)) & 0xff;
        for (int bit = 0; bit < 8; bit++)
            *crc = *crc >> 1 ^ ((*crc & 1) != 0 ? 0xedb88320u : 0);
    }
    return TD_OK;
}

/* sweep_text() of make_vectors.py. */
static size_t sweep_text(uint32_t first, uint8_t *out)
{
    static const char form[] = "a@b@1@ @.@@\n@\t";
    uint8_t *p = out;
    for (uint32_t cp = first; cp < first + 1024; cp++)
        for (const char *f = form; *f != '\0'; f++) {
            if (*f == '@')
                p += td_utf8_put(cp, p);
            else
                *p++ = (uint8_t)*f;
        }
    return (size_t)(p - out);
}

TEST(every_code_point_cuts_the_text_as_with_hugging_face)
{
    static uint8_t text[1024 * 40];
    size_t n;
    int n_blocks = 0, wrong = 0, taken;
    td_tokenizer *tok = vectors_mini();
    char *lines = vectors_read("mini.pieces", &n), *p = lines;
    for (unsigned first, want; sscanf(p, "%x %x\n%n", &first, &want, &taken) == 2; p += taken) {
        sweep s = {.crc = 0xffffffffu};
        TD_EQ(TD_OK, td_tok_encoder_init(&s.enc, tok, 0, NULL));
        TD_EQ(TD_OK, td_tok_split(&s.enc, 0, text, sweep_text(first, text), add_length));
        td_tok_encoder_fini(&s.enc);
        if (~s.crc != want) {
            fprintf(stderr, "U+%04X to U+%04X: other pieces\n", first, first + 1023);
            wrong++;
        }
        n_blocks++;
    }
    TD_EQ(0, wrong);
    TD_EQ((0x110000 - 0x800) / 1024, n_blocks);
    free(lines);
    td_tokenizer_destroy(tok);
}

/* ---- calls ---- */

static void check_ids(const td_tokenizer *tok, const char *text, unsigned flags,
                      const int32_t *want, size_t n_want)
{
    int32_t *ids = NULL;
    size_t n;
    TD_EQ(TD_OK,
          td_tokenizer_encode(tok, text, text == NULL ? 0 : strlen(text), flags, &ids, &n, NULL));
    TD_EQ(n_want, n);
    TD_TRUE(ids != NULL);
    TD_TRUE(n == 0 || memcmp(ids, want, n * sizeof(*ids)) == 0);
    free(ids);
}

static void check_text(const td_tokenizer *tok, const int32_t *ids, size_t n, const char *want)
{
    char *text = NULL;
    size_t n_text;
    TD_EQ(TD_OK, td_tokenizer_decode(tok, ids, n, 0, &text, &n_text, NULL));
    TD_EQ(strlen(want), n_text);
    TD_STR(want, text);
    free(text);
}

TEST(begin_and_end_are_added_as_the_configuration_says)
{
    static const char config[] =
        "{\"add_bos_token\": true, \"add_eos_token\": true, \"eos_token\": \"<R>\","
        " \"bos_token\": {\"__type\": \"AddedToken\", \"content\": \"<L>\"}, \"chat_template\": 1}";
    td_tokenizer *tok;
    size_t n;
    char *json = vectors_read("mini.json", &n);
    TD_EQ(TD_OK, td_tokenizer_parse(json, n, config, strlen(config), &tok, NULL));
    free(json);
    const td_tokenizer_info *info = td_tokenizer_describe(tok);
    TD_TRUE(info->add_bos && info->add_eos);
    TD_EQ(td_tokenizer_find(tok, "<L>"), info->bos_id);
    TD_EQ(td_tokenizer_find(tok, "<R>"), info->eos_id);
    const int32_t want[] = {info->bos_id, td_tokenizer_find(tok, "a"), info->eos_id};
    check_ids(tok, "a", TD_ENCODE_SPECIAL, want, 3);
    check_ids(tok, "a", 0, want + 1, 1);
    check_ids(tok, NULL, 0, NULL, 0);
    td_tokenizer_destroy(tok);
}

TEST(tokens_are_found_by_id_and_by_content)
{
    td_tokenizer *tok = vectors_mini();
    const td_tokenizer_info *info = td_tokenizer_describe(tok);
    td_token token;
    TD_EQ(-1, info->bos_id);
    TD_EQ(-1, info->eos_id);
    TD_TRUE(!td_tokenizer_token(tok, -1, &token));
    TD_TRUE(!td_tokenizer_token(tok, (int32_t)info->n_tokens, &token));
    TD_EQ(-1, td_tokenizer_find(tok, "no such token"));
    int32_t id = td_tokenizer_find(tok, "<\uff5cend\u2581of\u2581sentence\uff5c>");
    TD_EQ(info->n_tokens - 1, id);
    TD_TRUE(td_tokenizer_token(tok, id, &token));
    TD_TRUE(token.special);
    id = td_tokenizer_find(tok, "\u0120t"); /* U+0120 writes a space */
    TD_TRUE(td_tokenizer_token(tok, id, &token));
    TD_TRUE(!token.special);
    TD_EQ(2, token.n_bytes);
    TD_MEM(" t", token.bytes, 2);
    td_tokenizer_destroy(tok);
}

TEST(ids_that_do_not_exist_leave_no_text)
{
    td_tokenizer *tok = vectors_mini();
    int32_t a = td_tokenizer_find(tok, "a"),
            ids[] = {a, -1, INT32_MIN, (int32_t)td_tokenizer_describe(tok)->n_tokens, INT32_MAX, a};
    check_text(tok, ids, 6, "aa");
    check_text(tok, NULL, 0, "");
    td_tokenizer_destroy(tok);
}

TEST(a_push_without_room_changes_nothing)
{
    td_tokenizer *tok = vectors_mini();
    td_detok detok;
    char out[64];
    size_t n;
    td_detok_init(&detok, tok, 0);
    TD_EQ(TD_OK, td_detok_push(&detok, (int32_t)tok->byte_ids[0xc3], out, sizeof(out), &n));
    TD_EQ(0, n);
    TD_EQ(TD_FULL, td_detok_push(&detok, (int32_t)tok->byte_ids[0xa9], out, 1, &n));
    TD_EQ(TD_OK, td_detok_push(&detok, (int32_t)tok->byte_ids[0xa9], out, sizeof(out), &n));
    TD_EQ(2, n);
    TD_MEM("\xc3\xa9", out, 2);
    TD_EQ(0, td_detok_finish(&detok, out));
    td_tokenizer_destroy(tok);
}

/* ---- size ---- */

/* How long a piece takes may grow little more than its length: 16 times as much text, at most 64
 * times as long (a quadratic algorithm takes 256 times). */
static double seconds_for(const td_tokenizer *tok, const char *unit, size_t n)
{
    struct timespec a, b;
    int32_t *ids;
    size_t n_ids, n_unit = strlen(unit);
    char *text = malloc(n + n_unit);
    for (size_t i = 0; i < n; i += n_unit)
        memcpy(text + i, unit, n_unit);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    TD_EQ(TD_OK, td_tokenizer_encode(tok, text, n, 0, &ids, &n_ids, NULL));
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    free(ids);
    free(text);
    return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

TEST(long_pieces_take_no_quadratic_time)
{
    static const char *const units[] = {"a",  " ",  "\n",      "1",    "!",    "\u4e2d",  "the",
                                        "<|", "aB", " \u0301", "\xff", "<n><", "<LR>  <", "x y"};
    td_tokenizer *tok = vectors_open(BUNDLED_DIR);
    if (tok == NULL)
        tok = vectors_mini();
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        seconds_for(tok, units[i], 1 << 12);
        double small = seconds_for(tok, units[i], 1 << 16),
               large = seconds_for(tok, units[i], 1 << 20);
        printf("\"%s\": 64 KiB %.1f ms, 1 MiB %.1f ms\n", units[i], small * 1e3, large * 1e3);
        TD_TRUE(large < 64 * small + 0.05);
    }
    td_tokenizer_destroy(tok);
}

TEST(too_much_text_is_refused)
{
    td_tokenizer *tok = vectors_mini();
    int32_t *ids;
    size_t n;
    td_err err;
    TD_EQ(TD_TOO_LARGE,
          td_tokenizer_encode(tok, "", TD_TOKENIZER_MAX_TEXT_BYTES + 1ul, 0, &ids, &n, &err));
    td_tokenizer_destroy(tok);
}

/* ---- threads ---- */

#define N_THREADS 4

typedef struct {
    const td_tokenizer *tok;
    const char *text;
    int32_t *ids; /* of the last of many rounds */
    size_t n_ids;
} work;

static void *encode_many(void *arg)
{
    work *w = arg;
    for (int round = 0; round < 200; round++) {
        free(w->ids);
        w->ids = NULL;
        if (td_tokenizer_encode(w->tok, w->text, strlen(w->text), 0, &w->ids, &w->n_ids, NULL) < 0)
            break;
    }
    return NULL;
}

TEST(threads_share_a_tokenizer)
{
    td_tokenizer *tok = vectors_mini();
    size_t n;
    char *text = vectors_read("mini.json", &n);
    pthread_t threads[N_THREADS];
    work works[N_THREADS] = {{0}};
    for (int i = 0; i < N_THREADS; i++) {
        works[i] = (work){.tok = tok, .text = text};
        TD_EQ(0, pthread_create(&threads[i], NULL, encode_many, &works[i]));
    }
    for (int i = 0; i < N_THREADS; i++) {
        TD_EQ(0, pthread_join(threads[i], NULL));
        TD_TRUE(works[i].ids != NULL && works[i].n_ids == works[0].n_ids);
        TD_MEM(works[0].ids, works[i].ids, works[0].n_ids * sizeof(int32_t));
    }
    for (int i = 0; i < N_THREADS; i++)
        free(works[i].ids);
    free(text);
    td_tokenizer_destroy(tok);
}
