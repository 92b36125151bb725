/* What may be shown of a stream of tokens, and when. */
#include "router/emitter.h"
#include "tests/common/base/td_hard.h"
#include "tests/td_test.h"

TD_TEST_MAIN

static td_tokenizer *tokenizer;

static void load(void)
{
    td_err err;
    TD_EQ(TD_OK, td_tokenizer_open(TD_TEST_MODEL, &tokenizer, &err));
}

/* The token that stands for exactly these bytes. */
static uint32_t id_of(const char *bytes)
{
    td_token token;
    for (uint32_t id = 0; id < td_tokenizer_describe(tokenizer)->n_tokens; id++)
        if (td_tokenizer_token(tokenizer, (int32_t)id, &token) && !token.special &&
            token.n_bytes == strlen(bytes) && memcmp(token.bytes, bytes, token.n_bytes) == 0)
            return id;
    fail_msg("no token for \"%s\"", bytes);
    return 0;
}

typedef struct {
    td_emitter e;
    char shown[4096];
    size_t n_shown;
    uint32_t ids[1024];
    uint32_t n_ids;
} run;

static void start(run *r, uint32_t min_tokens, const char *const *stops, uint32_t n_stops)
{
    memset(r, 0, sizeof(*r));
    td_emitter_init(&r->e, tokenizer, min_tokens);
    for (uint32_t i = 0; i < n_stops; i++)
        r->e.stops[i] = (td_stop_string){stops[i], strlen(stops[i])};
    r->e.n_stops = n_stops;
}

static void take(run *r)
{
    const char *text;
    const uint32_t *ids;
    size_t n;
    uint32_t n_ids;
    td_emitter_ready(&r->e, &text, &n, &ids, &n_ids);
    if (n > 0)
        memcpy(r->shown + r->n_shown, text, n);
    r->n_shown += n;
    r->shown[r->n_shown] = '\0';
    if (n_ids > 0)
        memcpy(r->ids + r->n_ids, ids, n_ids * sizeof(*ids));
    r->n_ids += n_ids;
    td_emitter_shown(&r->e);
}

static void push(run *r, const char *bytes)
{
    TD_EQ(TD_OK, td_emitter_push(&r->e, id_of(bytes)));
    take(r);
}

static void end(run *r)
{
    TD_EQ(TD_OK, td_emitter_finish(&r->e));
    take(r);
}

static void done(run *r)
{
    td_emitter_fini(&r->e);
    td_tokenizer_destroy(tokenizer);
}

TEST(text_and_ids_are_shown_as_they_come)
{
    run r;
    load();
    start(&r, 0, NULL, 0);
    push(&r, "in");
    TD_STR("in", r.shown);
    push(&r, " the");
    TD_STR("in the", r.shown);
    TD_EQ(2, r.n_ids);
    TD_EQ(id_of(" the"), r.ids[1]);
    end(&r);
    TD_STR("in the", r.shown);
    done(&r);
}

TEST(a_stop_string_across_tokens_is_held_back_and_cut)
{
    const char *stops[] = {"xyz"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, "a");
    push(&r, "x");
    TD_STR("a", r.shown);
    TD_EQ(1, r.n_ids);
    push(&r, "y");
    TD_STR("a", r.shown);
    TD_TRUE(!r.e.stopped);
    push(&r, "z");
    TD_TRUE(r.e.stopped);
    end(&r);
    TD_STR("a", r.shown);
    TD_EQ(1, r.n_ids);
    TD_EQ(4, r.e.n_seen);
    done(&r);
}

TEST(what_only_looked_like_a_stop_is_shown)
{
    const char *stops[] = {"xyz"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, "x");
    push(&r, "y");
    push(&r, "x");
    TD_STR("xy", r.shown);
    TD_EQ(2, r.n_ids);
    push(&r, "y");
    end(&r);
    TD_STR("xyxy", r.shown);
    TD_EQ(4, r.n_ids);
    TD_TRUE(!r.e.stopped);
    done(&r);
}

TEST(a_stop_may_overlap_its_own_beginning)
{
    const char *stops[] = {"aab"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, "a");
    push(&r, "a");
    push(&r, "a");
    TD_STR("a", r.shown);
    push(&r, "b");
    TD_TRUE(r.e.stopped);
    TD_STR("a", r.shown);
    TD_EQ(1, r.n_ids);
    done(&r);
}

TEST(the_earliest_of_several_stops_wins)
{
    const char *stops[] = {"he", " t", "e"};
    run r;
    load();
    start(&r, 0, stops, 3);
    push(&r, "in");
    push(&r, " the"); /* " t" begins before "he" and "e" */
    TD_TRUE(r.e.stopped);
    TD_STR("in", r.shown);
    TD_EQ(1, r.n_ids);
    done(&r);
}

TEST(a_stop_within_a_token_keeps_the_text_before_it)
{
    const char *stops[] = {"h"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, " the");
    TD_TRUE(r.e.stopped);
    TD_STR(" t", r.shown);
    TD_EQ(0, r.n_ids); /* its text was not shown whole */
    done(&r);
}

TEST(nothing_follows_a_stop)
{
    const char *stops[] = {"x"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, "x");
    push(&r, "a");
    end(&r);
    TD_STR("", r.shown);
    TD_EQ(0, r.n_ids);
    done(&r);
}

TEST(stops_do_not_count_before_min_tokens)
{
    const char *stops[] = {"a"};
    run r;
    load();
    start(&r, 3, stops, 1);
    push(&r, "a");
    push(&r, "a");
    TD_STR("aa", r.shown);
    TD_TRUE(!r.e.stopped);
    push(&r, "b");
    push(&r, "a");
    TD_TRUE(r.e.stopped);
    TD_STR("aab", r.shown);
    TD_EQ(3, r.n_ids);
    done(&r);
}

TEST(a_character_in_two_tokens_is_shown_whole_and_its_ids_with_it)
{
    run r;
    load();
    start(&r, 0, NULL, 0);
    push(&r, "\xc3");
    TD_STR("", r.shown);
    TD_EQ(0, r.n_ids);
    push(&r, "\xa9");
    TD_STR("\xc3\xa9", r.shown);
    TD_EQ(2, r.n_ids);
    done(&r);
}

TEST(a_stop_in_split_characters_takes_all_their_ids)
{
    const char *stops[] = {"\xc3\xa9"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, "a");
    push(&r, "\xc3");
    push(&r, "\xa9");
    TD_TRUE(r.e.stopped);
    TD_STR("a", r.shown);
    TD_EQ(1, r.n_ids);
    done(&r);
}

TEST(a_character_that_never_ends_becomes_the_replacement_character)
{
    run r;
    load();
    start(&r, 0, NULL, 0);
    push(&r, "a");
    push(&r, "\xc3");
    end(&r);
    TD_STR("a\xef\xbf\xbd", r.shown);
    TD_EQ(2, r.n_ids);
    done(&r);
}

TEST(special_tokens_have_ids_and_no_text)
{
    run r;
    load();
    start(&r, 0, NULL, 0);
    TD_EQ(TD_OK, td_emitter_push(&r.e, 0)); /* beginning of sequence */
    take(&r);
    TD_STR("", r.shown);
    TD_EQ(1, r.n_ids);
    done(&r);
}

TEST(without_a_tokenizer_ids_pass_through)
{
    run r;
    memset(&r, 0, sizeof(r));
    td_emitter_init(&r.e, NULL, 0);
    for (uint32_t id = 0; id < 100; id++)
        TD_EQ(TD_OK, td_emitter_push(&r.e, id));
    take(&r);
    TD_EQ(100, r.n_ids);
    TD_EQ(0, r.n_shown);
    td_emitter_fini(&r.e);
}

TEST(a_restart_forgets_what_was_not_shown)
{
    const char *stops[] = {"xyz"};
    run r;
    load();
    start(&r, 0, stops, 1);
    push(&r, "x");
    push(&r, "\xc3");
    TD_EQ(0, r.n_shown);
    td_emitter_restart(&r.e);
    push(&r, "b");
    end(&r);
    TD_STR("b", r.shown);
    TD_EQ(1, r.n_ids);
    TD_EQ(1, r.e.n_seen);
    done(&r);
}

/* The stop that is complete first, the longest of those that end there: where it begins. */
static size_t first_stop(const char *text, const char *const *stops, uint32_t n_stops)
{
    for (size_t at = 1; at <= strlen(text); at++) {
        size_t longest = 0;
        for (uint32_t s = 0; s < n_stops; s++) {
            size_t n = strlen(stops[s]);
            if (n > longest && n <= at && memcmp(text + at - n, stops[s], n) == 0)
                longest = n;
        }
        if (longest > 0)
            return at - longest;
    }
    return strlen(text);
}

/* Random texts of few letters, a token for each byte, against a search in the whole text. */
TEST(any_stream_shows_the_text_before_the_stop_that_ends_first)
{
    uint64_t seed = 7;
    load();
    const char *letters[] = {"a", "b", " "};
    for (int round = 0; round < 300; round++) {
        char text[64] = "", stop_bytes[3][5];
        const char *stops[3];
        run r;
        uint32_t n_stops = (uint32_t)(td_random(&seed) % 4);
        for (uint32_t s = 0; s < n_stops; s++) {
            size_t n = 1 + td_random(&seed) % 4;
            for (size_t i = 0; i < n; i++)
                stop_bytes[s][i] = "ab "[td_random(&seed) % 3];
            stop_bytes[s][n] = '\0';
            stops[s] = stop_bytes[s];
        }
        start(&r, 0, stops, n_stops);
        for (int i = 0; i < 40; i++) {
            int at = (int)(td_random(&seed) % 3);
            strcat(text, letters[at]);
            push(&r, letters[at]);
            TD_TRUE(r.n_shown <= strlen(text));
        }
        end(&r);
        size_t first = first_stop(text, stops, n_stops);
        TD_EQ(first, r.n_shown);
        TD_MEM(text, r.shown, first);
        TD_EQ(first, r.n_ids); /* a byte each */
        td_emitter_fini(&r.e);
    }
    td_tokenizer_destroy(tokenizer);
}

static td_status push_many(void)
{
    td_emitter e;
    const char *stop = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    td_status st = TD_OK;
    td_emitter_init(&e, tokenizer, 0);
    e.stops[0] = (td_stop_string){stop, strlen(stop)};
    e.n_stops = 1;
    uint32_t id = 67;
    for (int i = 0; i < 50 && st == TD_OK; i++)
        st = td_emitter_push(&e, id);
    if (st == TD_OK)
        st = td_emitter_finish(&e);
    td_emitter_fini(&e);
    return st;
}

TEST(every_allocation_may_fail)
{
    load();
    TD_EACH_ALLOC_FAILS(TD_NOMEM, push_many(), td_tokenizer_destroy(tokenizer));
}
