/* What is wrong with a tokenizer.json is said, with its place; nothing damaged gets in; memory may
 * run out anywhere. */
#include "model/tokenizer/internal.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/tokenizer/fuzz_tokenizer.h"
#include "tests/model/tokenizer/vectors.h"
#include "tests/td_test.h"

#include <unistd.h>

TD_TEST_MAIN

/* json with the first `from` replaced by `to`; the caller frees it. */
static char *edit(const char *json, const char *from, const char *to)
{
    const char *at = strstr(json, from);
    if (at == NULL) {
        fprintf(stderr, "mini.json has no %s\n", from);
        abort();
    }
    size_t before = (size_t)(at - json), n_to = strlen(to);
    const char *rest = at + strlen(from);
    char *out = malloc(before + n_to + strlen(rest) + 1);
    memcpy(out, json, before);
    memcpy(out + before, to, n_to);
    strcpy(out + before + n_to, rest);
    return out;
}

typedef struct {
    const char *from, *to;
    td_status want;
    const char *says; /* a part of the message */
} refusal;

static void check_refusals(const refusal *cases, size_t n_cases)
{
    size_t n;
    int wrong = 0;
    char *json = vectors_read("mini.json", &n);
    for (size_t i = 0; i < n_cases; i++) {
        const refusal *c = &cases[i];
        td_tokenizer *tok = NULL;
        td_err err = {.text = "loaded"};
        char *edited = edit(json, c->from, c->to);
        td_status st = td_tokenizer_parse(edited, strlen(edited), NULL, 0, &tok, &err);
        if (st != c->want || tok != NULL || strstr(err.text, c->says) == NULL) {
            fprintf(stderr, "%s -> %s: %s: %s\n", c->from, c->to, td_status_name(st), err.text);
            wrong++;
        }
        td_tokenizer_destroy(tok);
        free(edited);
    }
    free(json);
    TD_EQ(0, wrong);
}

#define N_CASES(cases) (sizeof(cases) / sizeof((cases)[0]))

TEST(unsupported_features_are_refused_by_name)
{
    static const refusal cases[] = {
        {"\"type\":\"BPE\"", "\"type\":\"WordPiece\"", TD_UNSUPPORTED, "type \"WordPiece\""},
        {"\"dropout\":null", "\"dropout\":0.1", TD_UNSUPPORTED, "\"dropout\""},
        {"\"unk_token\":null", "\"unk_token\":\"<u>\"", TD_UNSUPPORTED, "\"unk_token\""},
        {"\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"",
         TD_UNSUPPORTED, "\"continuing_subword_prefix\""},
        {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", TD_UNSUPPORTED,
         "\"end_of_word_suffix\""},
        {"\"fuse_unk\":false", "\"fuse_unk\":true", TD_UNSUPPORTED, "\"fuse_unk\""},
        {"\"byte_fallback\":false", "\"byte_fallback\":true", TD_UNSUPPORTED, "\"byte_fallback\""},
        {"\"byte_fallback\":false", "\"new_idea\":false", TD_UNSUPPORTED, "\"new_idea\""},
        {"\"truncation\":null", "\"truncation\":{\"max_length\":5}", TD_UNSUPPORTED, "truncation"},
        {"\"padding\":null", "\"padding\":{}", TD_UNSUPPORTED, "padding"},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", TD_UNSUPPORTED, "\"NFC\""},
        {"\"normalizer\":null",
         "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}",
         TD_UNSUPPORTED, "empty Sequence"},
        {"\"version\":\"1.0\"", "\"version\":\"2.0\"", TD_UNSUPPORTED, "version"},
        {"\"version\":\"1.0\"", "\"version\":\"1.0\",\"extra\":1", TD_UNSUPPORTED, "\"extra\""},
        {"\"post_processor\":{\"type\":\"ByteLevel\"",
         "\"post_processor\":{\"type\":\"TemplateProcessing\"", TD_UNSUPPORTED,
         "\"TemplateProcessing\""},
        {"\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"Metaspace\"",
         TD_UNSUPPORTED, "\"Metaspace\""},
        {"\"behavior\":\"Isolated\"", "\"behavior\":\"Removed\"", TD_UNSUPPORTED, "\"Removed\""},
        {"\"invert\":false", "\"invert\":true", TD_UNSUPPORTED, "\"invert\""},
        {"\"use_regex\":false", "\"use_regex\":true", TD_UNSUPPORTED, "\"use_regex\""},
        {"\"add_prefix_space\":false", "\"add_prefix_space\":true", TD_UNSUPPORTED,
         "\"add_prefix_space\""},
        {"{\"type\":\"Split\"", "{\"type\":\"Digits\"", TD_UNSUPPORTED, "[0]: type \"Digits\""},
        {"{\"type\":\"ByteLevel\"",
         "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
         "\"use_regex\":false},{\"type\":\"ByteLevel\"",
         TD_UNSUPPORTED, "[7]: something after ByteLevel"},
        {"\"pre_tokenizer\":{\"type\":\"Sequence\"", "\"pre_tokenizer\":null,\"x\":{\"type\":\"\"",
         TD_UNSUPPORTED, "\"x\""},
    };
    check_refusals(cases, N_CASES(cases));
}

/* Puts a pattern in the place of the first one. */
TEST(patterns_that_engines_read_differently_are_refused)
{
    static const refusal cases[] = {
        {"\\\\p{N}{1,3}", "\\\\p{Han}", TD_UNSUPPORTED, "a property"},
        {"\\\\p{N}{1,3}", "\\\\p{^L}", TD_UNSUPPORTED, "a property"},
        {"\\\\p{N}{1,3}", "\\\\pL", TD_UNSUPPORTED, "a property"},
        {"\\\\p{N}{1,3}", "\\\\p{N", TD_UNSUPPORTED, "a property"},
        {"\\\\p{N}{1,3}", "a\\\\w", TD_UNSUPPORTED, "byte 2: escape \\w"},
        {"\\\\p{N}{1,3}", "\\\\h", TD_UNSUPPORTED, "escape \\h"},
        {"\\\\p{N}{1,3}", "\\\\b", TD_UNSUPPORTED, "escape \\b"},
        {"\\\\p{N}{1,3}", "(a)\\\\1", TD_UNSUPPORTED, "escape \\1"},
        {"\\\\p{N}{1,3}", "a\\\\", TD_UNSUPPORTED, "escape"},
        {"\\\\p{N}{1,3}", "a.b", TD_UNSUPPORTED, "'.'"},
        {"\\\\p{N}{1,3}", "^a", TD_UNSUPPORTED, "'^'"},
        {"\\\\p{N}{1,3}", "a$", TD_UNSUPPORTED, "'$'"},
        {"\\\\p{N}{1,3}", "(?i:a)", TD_UNSUPPORTED, "option"},
        {"\\\\p{N}{1,3}", "(?<n>a)", TD_UNSUPPORTED, "name"},
        {"\\\\p{N}{1,3}", "(a", TD_UNSUPPORTED, "'(' without ')'"},
        {"\\\\p{N}{1,3}", "a)", TD_UNSUPPORTED, "')' without '('"},
        {"\\\\p{N}{1,3}", "[[:alpha:]]", TD_UNSUPPORTED, "a class within a class"},
        {"\\\\p{N}{1,3}", "[a&&b]", TD_UNSUPPORTED, "a class within a class"},
        {"\\\\p{N}{1,3}", "[a", TD_UNSUPPORTED, "a class without an end"},
        {"\\\\p{N}{1,3}", "[a-", TD_UNSUPPORTED, "an unfinished range"},
        {"\\\\p{N}{1,3}", "[]a]", TD_UNSUPPORTED, "']' as the first"},
        {"\\\\p{N}{1,3}", "[b-a]", TD_UNSUPPORTED, "before it begins"},
        {"\\\\p{N}{1,3}", "[a-\\\\s]", TD_UNSUPPORTED, "ends in a class"},
        {"\\\\p{N}{1,3}", "[\\\\s-a]", TD_UNSUPPORTED, "begins with a class"},
        {"\\\\p{N}{1,3}", "[a-c-e]", TD_UNSUPPORTED, "unescaped '-'"},
        {"\\\\p{N}{1,3}", "[\\\\S]", TD_UNSUPPORTED, "within a class"},
        {"\\\\p{N}{1,3}", "+a", TD_UNSUPPORTED, "a quantifier"},
        {"\\\\p{N}{1,3}", "a|*", TD_UNSUPPORTED, "a quantifier"},
        {"\\\\p{N}{1,3}", "a{2}+", TD_UNSUPPORTED, "this '{'"},
        {"\\\\p{N}{1,3}", "a{2}?", TD_UNSUPPORTED, "this '{'"},
        {"\\\\p{N}{1,3}", "a{,3}", TD_UNSUPPORTED, "this '{'"},
        {"\\\\p{N}{1,3}", "a{3,2}", TD_UNSUPPORTED, "this '{'"},
        {"\\\\p{N}{1,3}", "a{1,99999}", TD_UNSUPPORTED, "this '{'"},
        {"\\\\p{N}{1,3}", "(?<=a+)b", TD_INVALID, "lookbehind"},
    };
    check_refusals(cases, N_CASES(cases));
}

TEST(malformed_vocabularies_and_merges_are_refused)
{
    static const refusal cases[] = {
        {"\"vocab\":{", "\"vocab\":{\"zz\":0,", TD_INVALID, "id 0 is another token's too"},
        {"\"vocab\":{", "\"vocab\":{\"!\":506,", TD_INVALID, "token \"!\" twice"},
        {"\"vocab\":{", "\"vocab\":{\"zz\":507,", TD_INVALID,
         "\"zz\": the id is not one of 0..506"},
        {"\"vocab\":{", "\"vocab\":{\"zz\":-1,", TD_INVALID, "\"zz\": the id is not"},
        {"\"vocab\":{", "\"vocab\":{\"zz\":1.5,", TD_INVALID, "\"zz\": the id is not"},
        {"\"vocab\":{", "\"vocab\":{\"zz\":1e300,", TD_INVALID, "\"zz\": the id is not"},
        {"\"vocab\":{", "\"vocab\":{\"zz\":\"1\",", TD_INVALID, "\"zz\": the id is not"},
        {"\"vocab\":{", "\"vocab\":{\"\":506,", TD_INVALID, "an empty token"},
        {"\"vocab\":{", "\"vocab\":[],\"vocab\":{", TD_INVALID, "member \"vocab\" twice"},
        {"\"vocab\":{", "\"vocab\":7,\"merges\":{", TD_INVALID, "member \"merges\" twice"},
        {"\"!\":0", "\"\\u0500\":0", TD_INVALID, "no token for the single byte 0x21"},
        {"\"merges\":[", "\"merges\":[[\"a\",\"zzz\"],", TD_INVALID, "[0]: unknown token \"zzz\""},
        {"\"merges\":[", "\"merges\":[\"zzz a\",", TD_INVALID, "[0]: unknown token \"zzz\""},
        {"\"merges\":[", "\"merges\":[\"z\\u00ae a\",", TD_INVALID, "token \"z\\xc2\\xae\""},
        {"\"merges\":[", "\"merges\":[\"q !\",", TD_INVALID, "[0]: unknown token \"q!\""},
        {"\"merges\":[", "\"merges\":[\"a\",", TD_INVALID, "[0]: not two tokens"},
        {"\"merges\":[", "\"merges\":[\"a b c\",", TD_INVALID, "[0]: not two tokens"},
        {"\"merges\":[", "\"merges\":[[\"a\"],", TD_INVALID, "[0]: not two tokens"},
        {"\"merges\":[", "\"merges\":[[\"t\",\"h\",\"e\"],", TD_INVALID, "[0]: not two tokens"},
        {"\"merges\":[", "\"merges\":[[\"t\",5],", TD_INVALID, "[0]: not two tokens"},
        {"\"merges\":[", "\"merges\":[null,", TD_INVALID, "[0]: not two tokens"},
        {"\"merges\":[", "\"merges\":[\"\u0120 t\",", TD_INVALID, "this pair was there"},
        {"\"merges\":[", "\"merges\":{},\"merges\":[", TD_INVALID, "member \"merges\" twice"},
        {"\"type\":\"BPE\"", "\"type\":5", TD_INVALID, "model: no \"type\""},
        {"\"ignore_merges\":false", "\"ignore_merges\":0", TD_INVALID, "\"ignore_merges\""},
    };
    check_refusals(cases, N_CASES(cases));
}

TEST(malformed_added_tokens_and_parts_are_refused)
{
    static const refusal cases[] = {
        {"\"id\":506", "\"id\":507", TD_INVALID,
         "added_tokens[1]: token \"<L>\": the id is not 506"},
        {"\"id\":506", "\"id\":-506", TD_INVALID, "the id is not 506"},
        {"\"id\":506", "\"id\":\"506\"", TD_INVALID, "the id is not 506"},
        {"\"id\":506", "\"id\":506,\"id\":506", TD_INVALID, "member \"id\" twice"},
        {"\"id\":506", "\"idx\":506", TD_UNSUPPORTED, "unknown member \"idx\""},
        {"\"content\":\"<L>\"", "\"content\":\"\"", TD_INVALID, "an empty token"},
        {"\"content\":\"<L>\"", "\"content\":[]", TD_INVALID, "\"content\" is not a string"},
        {"\"content\":\"<R>\"", "\"content\":\"<L>\"", TD_INVALID, "the id is not 506"},
        {"\"id\":507,\"content\":\"<R>\"", "\"id\":506,\"content\":\"<L>\"", TD_INVALID,
         "added_tokens[2]: token \"<L>\" was added before"},
        {"\"single_word\":false,", "", TD_INVALID, "no \"single_word\""},
        {"\"single_word\":false", "\"single_word\":1", TD_INVALID, "neither true nor false"},
        {"\"added_tokens\":[", "\"added_tokens\":[5,", TD_INVALID,
         "added_tokens[0]: not an object"},
        {"\"added_tokens\":[", "\"added_tokens\":{},\"model\":[", TD_INVALID, "\"model\" twice"},
        {"\"behavior\":\"Isolated\"", "\"behavior\":1", TD_INVALID, "no \"behavior\""},
        {"\"pattern\":{\"Regex\":", "\"pattern\":{\"Regexp\":", TD_UNSUPPORTED, "\"Regexp\""},
        {"\"pattern\":{\"String\":\"::\"}", "\"pattern\":{}", TD_INVALID, "neither a Regex nor"},
        {"\"pattern\":{\"String\":\"::\"}", "\"pattern\":{\"String\":3}", TD_INVALID, "neither"},
        {"\"pattern\":{\"String\":\"::\"}", "\"pattern\":\"::\"", TD_INVALID, "not an object"},
        {"{\"type\":\"Split\"", "{\"typ\":\"Split\"", TD_INVALID, "[0]: no \"type\""},
        {"\"pretokenizers\":[", "\"pretokenizers\":[3,", TD_INVALID, "[0]: no \"type\""},
        {"\"use_regex\":false", "\"use_regex\":null", TD_UNSUPPORTED, "\"use_regex\""},
        {"\"decoder\":{", "\"decoder\":null,\"normalizer\":{", TD_INVALID, "\"normalizer\" twice"},
        {"\"normalizer\":null", "\"normalizer\":5", TD_INVALID, "normalizer: no \"type\""},
        {"\"version\":\"1.0\"", "\"version\":1.0", TD_UNSUPPORTED, "version"},
        {"{\"version\"", "[{\"version\"", TD_INVALID, "not JSON"},
        {"{\"version\"", "5{\"version\"", TD_INVALID, "more after the end at byte 1"},
        {"\"version\":\"1.0\"", "\"version\":\"1.0\\u0000\"", TD_UNSUPPORTED, "\\u0000"},
        {"\"version\":\"1.0\"", "\"version\":\"1.0\xff\"", TD_INVALID, "not UTF-8"},
        {"\"version\":\"1.0\"", "\"version\":\"\\ud800\"", TD_INVALID, "not JSON"},
    };
    check_refusals(cases, N_CASES(cases));
}

TEST(what_changes_nothing_is_taken)
{
    static const char *const edits[][2] = {
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[]}"},
        {"\"dropout\":null", "\"dropout\":0.0"},
        {"\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"\""},
        {"\"version\":\"1.0\",", " \n"},
        {"\"truncation\":null,", ""},
        {"\"ignore_merges\":false", "\"ignore_merges\":null"},
        {"\"version\"", "\n\"version\""},
    };
    size_t n;
    char *json = vectors_read("mini.json", &n);
    for (size_t i = 0; i < N_CASES(edits); i++) {
        td_tokenizer *tok = NULL;
        td_err err = {.text = ""};
        char *edited = edit(json, edits[i][0], edits[i][1]);
        td_tokenizer_parse(edited, strlen(edited), NULL, 0, &tok, &err);
        TD_STR("", err.text);
        td_tokenizer_destroy(tok);
        free(edited);
    }
    free(json);
}

/* How many ids " t" gets when there are no merges. */
static size_t ids_without_merges(const char *json)
{
    td_tokenizer *tok;
    int32_t *ids;
    size_t n;
    char *edited = edit(json, "\"merges\":[", "\"merges\":[");
    char *from = strstr(edited, "\"merges\":[") + strlen("\"merges\":["),
         *to = strrchr(edited, ']');
    memset(from, ' ', (size_t)(to - from));
    TD_EQ(TD_OK, td_tokenizer_parse(edited, strlen(edited), NULL, 0, &tok, NULL));
    TD_EQ(TD_OK, td_tokenizer_encode(tok, " t", 2, 0, &ids, &n, NULL));
    free(ids);
    free(edited);
    td_tokenizer_destroy(tok);
    return n;
}

TEST(ignore_merges_takes_words_of_the_vocabulary_whole)
{
    size_t n;
    char *json = vectors_read("mini.json", &n);
    TD_EQ(2, ids_without_merges(json));
    char *edited = edit(json, "\"ignore_merges\":false", "\"ignore_merges\":true");
    TD_EQ(1, ids_without_merges(edited));
    free(edited);
    free(json);
}

TEST(bad_configurations_are_refused)
{
    static const struct {
        const char *config, *says;
    } cases[] = {
        {"{\"bos_token\": \"<nope>\"}", "\"bos_token\": no token \"<nope>\""},
        {"{\"eos_token\": {\"content\": \"<nope>\"}}", "\"eos_token\": no token \"<nope>\""},
        {"{\"eos_token\": {}}", "\"eos_token\" is not a token"},
        {"{\"eos_token\": 3}", "\"eos_token\" is not a token"},
        {"{\"add_bos_token\": true}", "\"add_bos_token\" without such a token"},
        {"{\"add_eos_token\": \"yes\"}", "\"add_eos_token\" is neither true nor false"},
        {"[]", "not an object"},
        {"{", "tokenizer_config.json: not JSON"},
        {"", "tokenizer_config.json: not JSON"},
    };
    size_t n;
    char *json = vectors_read("mini.json", &n);
    for (size_t i = 0; i < N_CASES(cases); i++) {
        td_tokenizer *tok = NULL;
        td_err err = {.text = ""};
        TD_EQ(TD_INVALID,
              td_tokenizer_parse(json, n, cases[i].config, strlen(cases[i].config), &tok, &err));
        if (strstr(err.text, cases[i].says) == NULL)
            TD_STR(cases[i].says, err.text);
    }
    free(json);
}

/* ---- size and damage ---- */

TEST(huge_files_and_tokens_are_refused)
{
    char dir[] = "/tmp/td-tokenizer-XXXXXX", path[64];
    td_tokenizer *tok = NULL;
    td_err err;
    TD_EQ(TD_TOO_LARGE,
          td_tokenizer_parse("", TD_TOKENIZER_MAX_FILE_BYTES + 1ul, NULL, 0, &tok, &err));
    TD_TRUE(mkdtemp(dir) != NULL);
    TD_EQ(TD_NOT_FOUND, td_tokenizer_open(dir, &tok, &err));
    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    FILE *file = fopen(path, "w");
    TD_TRUE(file != NULL && ftruncate(fileno(file), (off_t)TD_TOKENIZER_MAX_FILE_BYTES + 1) == 0);
    fclose(file);
    TD_EQ(TD_TOO_LARGE, td_tokenizer_open(dir, &tok, &err));
    unlink(path);
    rmdir(dir);

    size_t n, n_token = TD_TOKENIZER_MAX_TOKEN_BYTES + 1;
    char *json = vectors_read("mini.json", &n), *token = malloc(n_token + 32), *edited;
    memset(token, 'x', n_token + 32);
    memcpy(token, "\"vocab\":{\"", 10);
    strcpy(token + 10 + n_token, "\":506,");
    edited = edit(json, "\"vocab\":{", token);
    TD_EQ(TD_UNSUPPORTED, td_tokenizer_parse(edited, strlen(edited), NULL, 0, &tok, &err));
    TD_TRUE(tok == NULL);
    free(edited);
    free(token);
    free(json);
}

TEST(a_file_cut_off_anywhere_is_refused)
{
    size_t n;
    char *json = vectors_read("mini.json", &n);
    for (size_t i = 0; i < n; i++) {
        td_tokenizer *tok = NULL;
        td_err err;
        TD_EQ(TD_INVALID, td_tokenizer_parse(json, i, NULL, 0, &tok, &err));
        TD_TRUE(tok == NULL);
    }
    free(json);
}

TEST(nothing_is_read_past_the_end)
{
    static const char config[] = "{\"bos_token\":\"<L>\"}";
    td_tokenizer *tok;
    int32_t *ids;
    size_t n, n_ids;
    char *json = vectors_read("mini.json", &n);
    char *guarded = td_guard_alloc(json, n), *last = td_guard_alloc(config, strlen(config));
    TD_EQ(TD_OK, td_tokenizer_parse(guarded, n, last, strlen(config), &tok, NULL));
    for (size_t i = n - 200; i < n; i++) { /* cut off, at a guard page */
        td_tokenizer *none;
        char *cut = td_guard_alloc(json, i);
        TD_EQ(TD_INVALID, td_tokenizer_parse(cut, i, NULL, 0, &none, NULL));
        td_guard_free(cut, i);
    }
    /* The file's own text, from every place on: cuts characters, tokens and added tokens at the end
     */
    for (size_t i = 0; i < 2000; i++) {
        char *text = td_guard_alloc(json + i, 97);
        TD_EQ(TD_OK, td_tokenizer_encode(tok, text, 97, 0, &ids, &n_ids, NULL));
        free(ids);
        td_guard_free(text, 97);
    }
    td_guard_free(guarded, n);
    td_guard_free(last, strlen(config));
    free(json);
    td_tokenizer_destroy(tok);
}

TEST(damaged_files_and_texts_do_no_harm)
{
    uint64_t seed = 7;
    size_t n;
    char *json = vectors_read("mini.json", &n);
    unsigned char *bytes = malloc(n + 1);
    for (int i = 0; i < 6000; i++) {
        size_t from = 0, length = n;
        if (i % 2 == 1) { /* a text: some of the file */
            from = td_random(&seed) % (n - 300);
            length = td_random(&seed) % 300;
        }
        bytes[0] = (unsigned char)(i % 2);
        memcpy(bytes + 1, json + from, length);
        td_mutate(bytes + 1, length, &seed);
        LLVMFuzzerTestOneInput(bytes, length + 1);
    }
    free(bytes);
    free(json);
}

/* ---- memory ---- */

/* Loads with the 1st, 2nd, ... allocation failing. Only PCRE2's compiler to machine code may do
 * without: then it interprets, with the same ids. */
static void load_without_memory(const char *json, size_t n, td_status least)
{
    static const char config[] = "{\"bos_token\":\"<L>\"}";
    int n_loaded = 0;
    for (long k = 1;; k++) {
        td_tokenizer *tok = NULL;
        td_fault_arm(k);
        td_status st = td_tokenizer_parse(json, n, config, strlen(config), &tok, NULL);
        bool failed = td_fault_disarm();
        TD_EQ(st == TD_OK, tok != NULL);
        TD_TRUE(st == TD_OK || st == TD_NOMEM || (st == TD_INVALID && least == TD_INVALID));
        if (failed && st == TD_OK && n_loaded++ < 2)
            vectors_check_ids(tok, "mini");
        td_tokenizer_destroy(tok);
        if (!failed) {
            TD_EQ(TD_OK, st);
            break;
        }
    }
    TD_TRUE(n_loaded < 100);
}

TEST(each_failing_allocation_of_a_load_is_reported)
{
    size_t n;
    char *json = vectors_read("mini.json", &n);
    load_without_memory(json, n, TD_NOMEM);
    /* cJSON does not say why it failed */
    cJSON_Hooks hooks = {.malloc_fn = td_fault_malloc, .free_fn = free};
    cJSON_InitHooks(&hooks);
    load_without_memory(json, n, TD_INVALID);
    cJSON_InitHooks(NULL);
    free(json);
}

TEST(each_failing_allocation_of_a_call_is_reported)
{
    td_tokenizer *tok = vectors_mini();
    int32_t *ids = NULL;
    char text[300], *back = NULL;
    size_t n = 0, n_back = 0;
    memset(text, 'a', sizeof(text));
    memcpy(text, "\xff\xff<L> x 1 2 3 4 5 6 7 8 9", 25);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_tokenizer_encode(tok, text, sizeof(text), 0, &ids, &n, NULL),
                        (void)0);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_tokenizer_decode(tok, ids, n, 0, &back, &n_back, NULL),
                        (void)0);
    TD_TRUE(n > 20 && n_back > 300);
    free(ids);
    free(back);
    td_tokenizer_destroy(tok);
}
