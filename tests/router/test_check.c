/* Every bad request is refused with the field, what came and what would do. */
#include "router/check.h"
#include "tests/td_test.h"

#include <math.h>

TD_TEST_MAIN

typedef Tandem__V1__GenerateRequest generate_request;

static const td_model_info info = {.name = (char *)"tiny",
                                   .vocab_size = 1000,
                                   .context_length = 128,
                                   .eos_ids = {1, 2},
                                   .n_eos = 2};

#define SET(req, member, CASE, v)                                                                  \
    do {                                                                                           \
        (req).member##_opt_case = TANDEM__V1__GENERATE_REQUEST__##CASE;                            \
        (req).member = (v);                                                                        \
    } while (0)

static td_status sampling(const generate_request *req, td_record_sampling *out, bool *need_seed,
                          td_err *err)
{
    memset(out, 0xee, sizeof(*out));
    return td_check_sampling(&info, req, out, need_seed, err);
}

TEST(the_model_is_empty_or_the_one_that_is_served)
{
    td_err err = {0};
    TD_EQ(TD_OK, td_check_model(&info, "", &err));
    TD_EQ(TD_OK, td_check_model(&info, "tiny", &err));
    TD_EQ(TD_NOT_FOUND, td_check_model(&info, "huge", &err));
    TD_STR("model \"huge\" is not served here, \"tiny\" is", err.text);
}

TEST(absent_sampling_fields_take_their_defaults)
{
    generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
    td_record_sampling s;
    bool need_seed;
    TD_EQ(TD_OK, sampling(&req, &s, &need_seed, NULL));
    TD_TRUE(s.temperature == 1.0f && s.top_p == 1.0f && s.top_k == 0 && need_seed);
    TD_EQ(2, s.n_stop_ids);
    TD_EQ(1, s.stop_ids[0]);
    req.ignore_eos = 1;
    SET(req, seed, SEED_OPT_SEED, 0);
    TD_EQ(TD_OK, sampling(&req, &s, &need_seed, NULL));
    TD_EQ(0, s.n_stop_ids);
    TD_TRUE(!need_seed && s.seed == 0);
}

TEST(bad_temperatures_are_refused)
{
    const float bad[] = {NAN, INFINITY, -INFINITY, -0.1f, 100.5f};
    for (size_t i = 0; i < 5; i++) {
        generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
        td_record_sampling s;
        bool need_seed;
        td_err err = {0};
        SET(req, temperature, TEMPERATURE_OPT_TEMPERATURE, bad[i]);
        TD_EQ(TD_INVALID, sampling(&req, &s, &need_seed, &err));
        TD_TRUE(strstr(err.text, "temperature is ") != NULL && strstr(err.text, "[0, 100]"));
    }
}

TEST(bad_top_p_is_refused)
{
    const float bad[] = {NAN, INFINITY, 0.0f, -0.5f, 1.01f};
    for (size_t i = 0; i < 5; i++) {
        generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
        td_record_sampling s;
        bool need_seed;
        td_err err = {0};
        SET(req, top_p, TOP_P_OPT_TOP_P, bad[i]);
        TD_EQ(TD_INVALID, sampling(&req, &s, &need_seed, &err));
        TD_TRUE(strstr(err.text, "top_p is ") != NULL);
    }
}

TEST(top_k_of_the_whole_vocabulary_is_off)
{
    generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
    td_record_sampling s;
    bool need_seed;
    SET(req, top_k, TOP_K_OPT_TOP_K, 999);
    TD_EQ(TD_OK, sampling(&req, &s, &need_seed, NULL));
    TD_EQ(999, s.top_k);
    SET(req, top_k, TOP_K_OPT_TOP_K, 1000);
    TD_EQ(TD_OK, sampling(&req, &s, &need_seed, NULL));
    TD_EQ(0, s.top_k);
}

TEST(stop_ids_are_bounded_and_in_the_vocabulary)
{
    uint32_t ids[TD_MAX_STOP_IDS] = {0};
    generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
    td_record_sampling s;
    bool need_seed;
    td_err err = {0};
    req.stop_token_ids = ids;
    req.n_stop_token_ids = 48;
    TD_EQ(TD_OK, sampling(&req, &s, &need_seed, &err));
    TD_EQ(50, s.n_stop_ids);
    req.n_stop_token_ids = 49;
    TD_EQ(TD_INVALID, sampling(&req, &s, &need_seed, &err));
    TD_STR("stop_token_ids: 49 ids, at most 48", err.text);
    req.n_stop_token_ids = 3;
    ids[2] = 1000;
    TD_EQ(TD_INVALID, sampling(&req, &s, &need_seed, &err));
    TD_STR("stop_token_ids[2] is 1000, the vocabulary has 1000 tokens", err.text);
}

/* The packed request with these stop strings. */
static size_t pack_stops(const char **stops, size_t n, uint8_t *out)
{
    generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
    req.stop = (char **)stops;
    req.n_stop = n;
    return tandem__v1__generate_request__pack(&req, out);
}

TEST(stop_strings_are_taken_as_bytes_and_judged)
{
    static uint8_t msg[32768];
    static char long_stop[300];
    const char *stops[17] = {"a", "bc"};
    td_stop_string out[TD_EMITTER_MAX_STOPS];
    uint32_t n;
    td_err err = {0};
    size_t len = pack_stops(stops, 2, msg);
    TD_EQ(TD_OK, td_check_stops(msg, len, out, &n, &err));
    TD_EQ(2, n);
    TD_EQ(2, out[1].n_bytes);
    TD_MEM("bc", out[1].bytes, 2);
    const uint8_t with_nul[] = {10 << 3 | 2, 3, 'x', 0, 'y'};
    TD_EQ(TD_OK, td_check_stops(with_nul, sizeof(with_nul), out, &n, &err));
    TD_EQ(3, out[0].n_bytes);
    stops[0] = "";
    TD_EQ(TD_INVALID, td_check_stops(msg, pack_stops(stops, 2, msg), out, &n, &err));
    TD_STR("stop[0] has 0 bytes, must have 1 to 256", err.text);
    memset(long_stop, 'x', 257);
    stops[0] = long_stop;
    TD_EQ(TD_INVALID, td_check_stops(msg, pack_stops(stops, 2, msg), out, &n, &err));
    for (int i = 0; i < 17; i++)
        stops[i] = "s";
    TD_EQ(TD_OK, td_check_stops(msg, pack_stops(stops, 16, msg), out, &n, &err));
    TD_EQ(TD_INVALID, td_check_stops(msg, pack_stops(stops, 17, msg), out, &n, &err));
    TD_STR("stop: more than 16 strings", err.text);
    stops[0] = "a\xff";
    TD_EQ(TD_INVALID, td_check_stops(msg, pack_stops(stops, 1, msg), out, &n, &err));
    TD_STR("stop is not UTF-8 at byte 1", err.text);
}

TEST(text_must_be_utf8)
{
    td_err err = {0};
    TD_EQ(TD_OK, td_check_utf8("text", "a\0\xc3\xa9", 4, &err));
    TD_EQ(TD_INVALID, td_check_utf8("text", "ab\xc3", 3, &err));
    TD_STR("text is not UTF-8 at byte 2", err.text);
    TD_EQ(TD_INVALID, td_check_utf8("text", "\xed\xa0\x80", 3, &err)); /* a surrogate */
    TD_EQ(TD_INVALID, td_check_utf8("text", "\xc0\x80", 2, &err));     /* overlong */
    TD_EQ(TD_INVALID, td_check_utf8("text", "\xf5\x80\x80\x80", 4, &err));
}

TEST(token_ids_are_below_the_vocabulary)
{
    const uint32_t ids[] = {0, 999, 1000};
    td_err err = {0};
    TD_EQ(TD_OK, td_check_ids(&info, ids, 2, &err));
    TD_EQ(TD_INVALID, td_check_ids(&info, ids, 3, &err));
    TD_STR("token_ids[2] is 1000, the vocabulary has 1000 tokens", err.text);
}

TEST(prompt_and_max_tokens_fit_the_context)
{
    generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
    uint32_t max = 0;
    td_err err = {0};
    TD_EQ(TD_OK, td_check_length(&info, &req, 1, 100, &max, &err));
    TD_EQ(100, max);
    TD_EQ(TD_OK, td_check_length(&info, &req, 127, 100, &max, &err));
    TD_EQ(1, max); /* the default is cut at the context's end */
    TD_EQ(TD_INVALID, td_check_length(&info, &req, 128, 100, &max, &err));
    TD_TRUE(strstr(err.text, "128 tokens") != NULL && strstr(err.text, "context of 128") != NULL);
    TD_EQ(TD_INVALID, td_check_length(&info, &req, 0, 100, &max, &err));
    TD_STR("the prompt is empty", err.text);
    SET(req, max_tokens, MAX_TOKENS_OPT_MAX_TOKENS, 0);
    TD_EQ(TD_INVALID, td_check_length(&info, &req, 1, 100, &max, &err));
    SET(req, max_tokens, MAX_TOKENS_OPT_MAX_TOKENS, 127);
    TD_EQ(TD_OK, td_check_length(&info, &req, 1, 100, &max, &err));
    TD_EQ(TD_INVALID, td_check_length(&info, &req, 2, 100, &max, &err));
    TD_STR("prompt (2 tokens) and max_tokens (127) exceed the context of 128", err.text);
    SET(req, max_tokens, MAX_TOKENS_OPT_MAX_TOKENS, UINT32_MAX);
    TD_EQ(TD_INVALID, td_check_length(&info, &req, 1, 100, &max, &err));
    SET(req, max_tokens, MAX_TOKENS_OPT_MAX_TOKENS, 10);
    req.min_tokens = 11;
    TD_EQ(TD_INVALID, td_check_length(&info, &req, 1, 100, &max, &err));
    TD_STR("min_tokens (11) exceeds max_tokens (10)", err.text);
}

TEST(request_ids_are_checked_or_made)
{
    char id[TD_REQUEST_ID_MAX + 1], other[TD_REQUEST_ID_MAX + 1];
    td_err err = {0};
    TD_EQ(TD_OK, td_check_request_id(NULL, id, &err));
    TD_EQ(TD_OK, td_check_request_id("", other, &err));
    TD_EQ(32, strlen(id));
    TD_TRUE(strcmp(id, other) != 0);
    TD_EQ(TD_OK, td_check_request_id("job-17/a", id, &err));
    TD_STR("job-17/a", id);
    TD_EQ(TD_INVALID, td_check_request_id("has space", id, &err));
    TD_EQ(TD_INVALID, td_check_request_id("quote\"", id, &err));
    TD_EQ(TD_INVALID,
          td_check_request_id("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                              id, &err));
}
