/* The parts that know no sockets: framing, metadata, timeouts, percent-encoding, addresses, status
 * codes. */
#include "tests/td_test.h"

#include "common/rpc/addr.h"
#include "common/rpc/frame.h"
#include "common/rpc/headers.h"
#include "tests/common/loop/failing_alloc.h"

#include <sys/mman.h>
#include <unistd.h>

TD_TEST_MAIN

/* A copy whose last byte stands before a page that must not be touched. */
static uint8_t *guard_map;
static uint8_t *guarded(const void *bytes, size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (len + page - 1) / page * page;
    guard_map = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TD_TRUE(guard_map != MAP_FAILED);
    TD_EQ(0, mprotect(guard_map + body, page, PROT_NONE));
    uint8_t *p = guard_map + body - len;
    memcpy(p, bytes, len);
    return p;
}

static void unguard(size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (len + page - 1) / page * page;
    munmap(guard_map, body + page);
}

/* ---- framing ---- */

enum { N_MESSAGES = 40, STREAM_MAX = 40 * (5 + 3000) };

static size_t make_stream(uint8_t *out)
{
    size_t n = 0;
    for (uint32_t i = 0; i < N_MESSAGES; i++) {
        uint32_t len = i * i * 7 % 2999;
        uint8_t head[5] = {0, (uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8),
                           (uint8_t)len};
        memcpy(out + n, head, 5);
        for (uint32_t k = 0; k < len; k++)
            out[n + 5 + k] = (uint8_t)(i + k);
        n += 5 + len;
    }
    return n;
}

static void check_stream(const uint8_t *stream, size_t n, size_t step, bool whole)
{
    td_budget budget = {.max = 1 << 20};
    td_deframer in;
    uint32_t seen = 0;
    td_grpc_status code;
    const char *why;
    td_deframer_init(&in, &budget, 3000, whole);
    for (size_t at = 0; at < n; at += step) {
        size_t len = n - at < step ? n - at : step, n_msg;
        const uint8_t *data = guarded(stream + at, len), *msg;
        size_t piece = len;
        td_status st;
        while ((st = td_deframer_next(&in, &data, &len, &msg, &n_msg, &code, &why)) == TD_OK) {
            TD_EQ(seen * seen * 7 % 2999, n_msg);
            for (size_t k = 0; k < n_msg; k++)
                TD_EQ((uint8_t)(seen + k), msg[k]);
            seen++;
        }
        TD_EQ(TD_EMPTY, st);
        TD_EQ(0, len);
        unguard(piece);
    }
    TD_EQ(N_MESSAGES, seen);
    TD_TRUE(!td_deframer_mid_message(&in));
    td_deframer_fini(&in);
    TD_EQ(0, budget.used);
}

TEST(messages_come_out_whole_however_they_are_cut)
{
    uint8_t *stream = malloc(STREAM_MAX);
    size_t n = make_stream(stream);
    size_t steps[] = {1, 2, 3, 4, 5, 6, 7, 100, 2999, 3004, STREAM_MAX};
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        check_stream(stream, n, steps[i], false);
        check_stream(stream, n, steps[i], true);
    }
    free(stream);
}

static td_grpc_status refused_as(const char *bytes, size_t len, size_t max, size_t budget_max)
{
    td_budget budget = {.max = budget_max};
    td_deframer in;
    const uint8_t *data = (const uint8_t *)bytes, *msg;
    size_t n_msg;
    td_grpc_status code = TD_GRPC_OK;
    const char *why = "";
    td_deframer_init(&in, &budget, max, true);
    td_status st = td_deframer_next(&in, &data, &len, &msg, &n_msg, &code, &why);
    td_deframer_fini(&in);
    TD_EQ(0, budget.used);
    return st == TD_PROTOCOL && strlen(why) > 0 ? code : TD_GRPC_OK;
}

TEST(bad_heads_and_long_messages_are_refused)
{
    TD_EQ(TD_GRPC_INTERNAL, refused_as("\1\0\0\0\1x", 6, 100, 100));
    TD_EQ(TD_GRPC_INTERNAL, refused_as("\2\0\0\0\1x", 6, 100, 100));
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, refused_as("\0\0\0\0\x65", 5, 100, 100));
    TD_EQ(TD_GRPC_OK, refused_as("\0\0\0\0\x64", 5, 100, 100));
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, refused_as("\0\xff\xff\xff\xff", 5, (size_t)-1, 100));
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, refused_as("\0\0\0\0\3abc", 8, 100, 2)); /* the budget */
    fail_after = 0;
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, refused_as("\0\0\0\0\3abc", 8, 100, 100));
    fail_after = -1;
}

TEST(an_announced_length_takes_no_memory)
{
    td_budget budget = {.max = 1 << 30};
    td_deframer in;
    const uint8_t *data = (const uint8_t *)"\0\0\x3f\xff\xff", *msg;
    size_t len = 5, n_msg;
    td_grpc_status code;
    const char *why;
    td_deframer_init(&in, &budget, 4 << 20, false);
    TD_EQ(TD_EMPTY, td_deframer_next(&in, &data, &len, &msg, &n_msg, &code, &why));
    TD_TRUE(budget.used < 1024);
    TD_TRUE(td_deframer_mid_message(&in));
    data = (const uint8_t *)"x";
    len = 1;
    TD_EQ(TD_EMPTY, td_deframer_next(&in, &data, &len, &msg, &n_msg, &code, &why));
    TD_TRUE(budget.used > 0 && budget.used < 1024);
    td_deframer_fini(&in);
}

TEST(sendq_gives_back_what_was_pushed_in_any_portions)
{
    for (size_t step = 1; step < 4000; step = step * 3 + 1) {
        td_sendq q;
        td_budget budget = {.max = 1 << 20};
        td_deframer in;
        memset(&q, 0, sizeof(q));
        td_deframer_init(&in, &budget, 5000, false);
        uint32_t pushed = 0, seen = 0;
        uint8_t msg[4096];
        while (seen < 200) {
            for (int i = 0; i < 3 && pushed < 200; i++, pushed++) {
                memset(msg, (int)pushed, sizeof(msg));
                TD_EQ(TD_OK, td_sendq_push(&q, msg, pushed * 37 % 4096));
            }
            size_t n = step;
            const uint8_t *bytes = td_sendq_peek(&q, &n), *data = bytes, *got;
            size_t len = n, n_got;
            td_grpc_status code;
            const char *why;
            while (td_deframer_next(&in, &data, &len, &got, &n_got, &code, &why) == TD_OK) {
                TD_EQ(seen * 37 % 4096, n_got);
                TD_TRUE(n_got == 0 || (got[0] == (uint8_t)seen && got[n_got - 1] == (uint8_t)seen));
                seen++;
            }
            td_sendq_drop(&q, n);
            TD_EQ(td_deframer_mid_message(&in), q.left_in_message > 0);
        }
        TD_EQ(0, td_sendq_bytes(&q));
        td_deframer_fini(&in);
        td_sendq_fini(&q);
    }
}

TEST(sendq_without_memory_keeps_what_it_has)
{
    td_sendq q;
    uint8_t msg[3000] = {0};
    memset(&q, 0, sizeof(q));
    TD_EQ(TD_OK, td_sendq_push(&q, msg, 100));
    fail_after = 0;
    TD_EQ(TD_NOMEM, td_sendq_push(&q, msg, 3000));
    fail_after = -1;
    TD_EQ(105, td_sendq_bytes(&q));
    TD_EQ(TD_OK, td_sendq_push(&q, msg, 3000));
    TD_EQ(3110, td_sendq_bytes(&q));
    td_sendq_fini(&q);
}

/* ---- headers ---- */

TEST(metadata_is_found_and_bounded)
{
    td_meta m;
    memset(&m, 0, sizeof(m));
    td_meta_add(&m, "a", 1, "1", 1, 1000);
    td_meta_add(&m, "empty", 5, "", 0, 1000);
    td_meta_add(&m, "a", 1, "2", 1, 1000);
    TD_STR("1", td_meta_get(&m, "a"));
    TD_STR("", td_meta_get(&m, "empty"));
    TD_TRUE(td_meta_get(&m, "b") == NULL && td_meta_get(&m, "1") == NULL);
    char big[2000];
    memset(big, 'x', sizeof(big));
    td_meta_add(&m, "big", 3, big, sizeof(big), 1000);
    TD_TRUE(m.overflow);
    TD_TRUE(td_meta_get(&m, "big") == NULL);
    td_meta_clear(&m);
    for (int i = 0; i < 100; i++) /* many small ones count 32 bytes each */
        td_meta_add(&m, "n", 1, "v", 1, 1000);
    TD_TRUE(m.overflow && m.n_headers <= 1000 / 34);
    td_meta_clear(&m);
    fail_after = 0;
    td_meta_add(&m, "a", 1, "1", 1, 1000);
    fail_after = -1;
    TD_TRUE(m.overflow && td_meta_get(&m, "a") == NULL);
    td_meta_clear(&m);
}

TEST(timeouts_are_parsed_strictly_and_formatted_upwards)
{
    int64_t ns;
    TD_TRUE(td_grpc_timeout_parse("1S", &ns) && ns == 1000000000);
    TD_TRUE(td_grpc_timeout_parse("0n", &ns) && ns == 0);
    TD_TRUE(td_grpc_timeout_parse("250m", &ns) && ns == 250000000);
    TD_TRUE(td_grpc_timeout_parse("7u", &ns) && ns == 7000);
    TD_TRUE(td_grpc_timeout_parse("2M", &ns) && ns == 120000000000);
    TD_TRUE(td_grpc_timeout_parse("99999999H", &ns) && ns == INT64_MAX / 2);
    static const char *const bad[] = {"",    "S",   "1",          "1s",   "-1S", "+1S",
                                      " 1S", "1S ", "123456789S", "1.5S", "1SS", "0x1S"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_TRUE(!td_grpc_timeout_parse(bad[i], &ns));
    static const int64_t values[] = {0,          1,           99999999,       100000000,
                                     1234567890, 60000000000, 99999999999999, INT64_MAX / 4};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        char text[16];
        td_grpc_timeout_format(values[i], text);
        TD_TRUE(td_grpc_timeout_parse(text, &ns));
        TD_TRUE(ns >= values[i] && ns - values[i] <= values[i] / 10000 + 1);
    }
    char text[16];
    td_grpc_timeout_format(-5, text);
    TD_STR("0n", text);
}

TEST(messages_survive_percent_encoding)
{
    char encoded[TD_GRPC_MESSAGE_ENCODED_MAX], decoded[2000], text[1100];
    for (int i = 0; i < 255; i++)
        text[i] = (char)(i + 1);
    text[255] = '\0';
    td_grpc_message_encode(text, encoded);
    for (const char *c = encoded; *c != '\0'; c++)
        TD_TRUE(*c >= 0x20 && *c <= 0x7E);
    td_grpc_message_decode(encoded, decoded, sizeof(decoded));
    TD_STR(text, decoded);
    memset(text, 'a', 1023); /* the cut falls within a character */
    memcpy(text + 1023, "\xe2\x82\xac", 4);
    TD_EQ(1023, td_grpc_message_encode(text, encoded));
    td_grpc_message_decode("a%zz%4%41%00b%", decoded, sizeof(decoded));
    TD_STR("a%zz%4A b%", decoded);
    td_grpc_message_decode("abcdef", decoded, 4);
    TD_STR("abc", decoded);
}

TEST(header_names_and_values_are_checked)
{
    TD_TRUE(td_header_name_ok("x-request-id") && td_header_name_ok("a.b_c-9"));
    static const char *const names[] = {"",   "X-Upper",      "a b",  ":path", "grpc-status",
                                        "te", "content-type", "host", "a\n"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        TD_TRUE(!td_header_name_ok(names[i]));
    TD_TRUE(td_header_value_ok("") && td_header_value_ok("a b"));
    TD_TRUE(!td_header_value_ok(" a") && !td_header_value_ok("a\r\nb") &&
            !td_header_value_ok("\xc3\xbc"));
    TD_TRUE(td_grpc_content_type_ok("application/grpc"));
    TD_TRUE(!td_grpc_content_type_ok("application/grpcx") && !td_grpc_content_type_ok(NULL));
}

/* ---- addresses, codes ---- */

TEST(addresses_are_parsed_and_written_back)
{
    td_addr a;
    char text[272];
    static const char *const good[] = {"127.0.0.1:7000", "[::1]:0", "decode-3.rack:65535"};
    for (int i = 0; i < 3; i++) {
        TD_EQ(TD_OK, td_addr_parse(good[i], &a, NULL));
        TD_STR(good[i], td_addr_format(&a, text));
    }
    static const char *const bad[] = {"",         "host",   ":80",      "host:",      "host:65536",
                                      "host:-1",  "::1:80", "[::1]",    "[::1:80",    "[]:80",
                                      "host:80x", "a b:80", "host: 80", "host:000080"};
    td_err err;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        TD_EQ(TD_INVALID, td_addr_parse(bad[i], &a, &err));
        TD_TRUE(strstr(err.text, bad[i]) != NULL);
    }
    char longest[400];
    memset(longest, 'h', sizeof(longest));
    strcpy(longest + 300, ":80");
    TD_EQ(TD_INVALID, td_addr_parse(longest, &a, NULL));
}

TEST(loopback_is_told_from_the_world)
{
    td_addr a;
    static const char *const local[] = {"localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"};
    static const char *const open[] = {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.evil:1",
                                       "127.0.0.1.evil:1"};
    for (size_t i = 0; i < 4; i++) {
        TD_EQ(TD_OK, td_addr_parse(local[i], &a, NULL));
        TD_TRUE(td_addr_is_loopback(&a));
    }
    for (size_t i = 0; i < 5; i++) {
        TD_EQ(TD_OK, td_addr_parse(open[i], &a, NULL));
        TD_TRUE(!td_addr_is_loopback(&a));
    }
}

TEST(status_codes_map_both_ways)
{
    TD_STR("DATA_LOSS", td_grpc_status_name(TD_GRPC_DATA_LOSS));
    TD_STR("UNKNOWN", td_grpc_status_name((td_grpc_status)99));
    static const td_status round_trip[] = {
        TD_OK,        TD_CANCELLED,   TD_INVALID,      TD_DEADLINE,  TD_NOT_FOUND, TD_EXHAUSTED,
        TD_DATA_LOSS, TD_UNSUPPORTED, TD_PRECONDITION, TD_PEER_LOST, TD_INTERNAL};
    for (size_t i = 0; i < sizeof(round_trip) / sizeof(round_trip[0]); i++)
        TD_EQ(round_trip[i], td_grpc_to_status(td_grpc_from_status(round_trip[i])));
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, td_grpc_from_status(TD_FULL));
    TD_EQ(TD_GRPC_INTERNAL, td_grpc_from_status(TD_CUDA));
    TD_EQ(TD_GRPC_UNAVAILABLE, td_grpc_from_http(503));
    TD_EQ(TD_GRPC_UNIMPLEMENTED, td_grpc_from_http(404));
    TD_EQ(TD_GRPC_UNKNOWN, td_grpc_from_http(200));
}
