/* Server and client on one loop: every kind of call, every way it ends. */
#include "tests/common/rpc/fixture.h"

TD_TEST_MAIN

TEST(unary_echoes_from_empty_to_the_limit)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    size_t sizes[] = {0, 1, 5, 16384, 65535, 65536, 1 << 20, 4 << 20};
    uint8_t *msg = malloc(4 << 20);
    for (size_t i = 0; i < 4 << 20; i++)
        msg[i] = (uint8_t)(i * 31);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", msg, sizes[i], &a));
        TD_EQ(1, a.n_messages);
        TD_EQ(sizes[i], a.n_bytes);
        TD_MEM(msg, a.last, sizes[i] < 255 ? sizes[i] : 255);
    }
    free(msg);
    fixture_close(&f);
}

TEST(server_streaming_keeps_order_and_status)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    echo_stream_args args = {.n_messages = 20000, .n_bytes = 40};
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Stream", &args, sizeof(args), &a));
    TD_EQ(20000, a.n_messages);
    TD_EQ(20000 * 40, a.n_bytes);
    uint32_t last;
    memcpy(&last, a.last, 4);
    TD_EQ(19999, last);
    args = (echo_stream_args){.n_messages = 60, .n_bytes = 1 << 19};
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Stream", &args, sizeof(args), &a));
    TD_EQ(60, a.n_messages);
    args = (echo_stream_args){0};
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Stream", &args, sizeof(args), &a));
    TD_EQ(0, a.n_messages);
    fixture_close(&f);
}

TEST(bidi_echoes_until_half_close)
{
    fixture f;
    answer a;
    char big[3000] = "big";
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Bidi", &a);
    TD_EQ(TD_OK, td_rpc_stream_start(f.client, &args, &a.req, NULL));
    for (int i = 0; i < 1000; i++)
        TD_EQ(TD_OK, td_rpc_request_send(a.req, big, (size_t)i * 3));
    fixture_run_until_eq(&f, &a.n_messages, 1000);
    TD_EQ(0, a.n_finished);
    TD_EQ(TD_OK, td_rpc_request_send(a.req, "bye", 3));
    td_rpc_request_half_close(a.req);
    TD_EQ(TD_CANCELLED, td_rpc_request_send(a.req, "late", 4));
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(1001, a.n_messages);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("bye", a.last);
    fixture_close(&f);
}

TEST(client_streaming_of_64_mib_is_swallowed)
{
    fixture f;
    answer a;
    enum { CHUNK = 256 * 1024, N = 256 };
    static char chunk[CHUNK];
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Swallow", &a);
    TD_EQ(TD_OK, td_rpc_stream_start(f.client, &args, &a.req, NULL));
    int n_full = 0;
    for (int i = 0; i < N;) {
        td_status st = td_rpc_request_send(a.req, chunk, CHUNK);
        if (st == TD_OK) {
            i++;
            continue;
        }
        TD_EQ(TD_FULL, st);
        TD_TRUE(td_rpc_request_queued_bytes(a.req) <= 4 << 20);
        n_full++;
        fixture_run_for(&f, 2);
    }
    TD_TRUE(n_full > 0);
    td_rpc_request_half_close(a.req);
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("67108864", a.last);
    fixture_close(&f);
}

TEST(server_may_end_a_bidi_call_early)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Early", &a);
    TD_EQ(TD_OK, td_rpc_stream_start(f.client, &args, &a.req, NULL));
    for (int i = 0; i < 5; i++)
        TD_EQ(TD_OK, td_rpc_request_send(a.req, "x", 1));
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("enough", a.message);
    TD_EQ(1, a.n_messages);
    fixture_run_until(&f, fixture_has_no_calls, &f);
    fixture_close(&f);
}

TEST(status_and_message_survive_the_wire)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    TD_EQ(TD_GRPC_NOT_FOUND, ask(&f, "/test.Echo/Fail", "5 nope", 6, &a));
    TD_STR("nope", a.message);
    const char *odd = "9 100% \xc3\xbcmlaut\nnew line \x01";
    TD_EQ(TD_GRPC_FAILED_PRECONDITION, ask(&f, "/test.Echo/Fail", odd, strlen(odd), &a));
    TD_STR(odd + 2, a.message);
    TD_EQ(TD_GRPC_UNAUTHENTICATED, ask(&f, "/test.Echo/Fail", "16", 2, &a));
    TD_STR("", a.message);
    TD_EQ(TD_GRPC_UNKNOWN, ask(&f, "/test.Echo/Fail", "99 x", 4, &a)); /* no such code */
    char longest[2000] = "3 ";
    memset(longest + 2, 'y', sizeof(longest) - 2);
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, ask(&f, "/test.Echo/Fail", longest, sizeof(longest), &a));
    TD_TRUE(strlen(a.message) == sizeof(a.message) - 1);
    fixture_close(&f);
}

TEST(unknown_method_is_unimplemented)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    TD_EQ(TD_GRPC_UNIMPLEMENTED, ask(&f, "/test.Echo/Nope", "x", 1, &a));
    TD_STR("unknown method /test.Echo/Nope", a.message);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a));
    fixture_close(&f);
}

TEST(metadata_goes_both_ways)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    td_rpc_header headers[] = {{"x-request-id", "id-0815"}, {"x-other", "with inner space"}};
    td_rpc_request_args args = answer_args("/test.Echo/Unary", &a);
    args.headers = headers;
    args.n_headers = 2;
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "m", 1, &a.req, NULL));
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("id-0815", a.header);
    td_rpc_header bad[] = {
        {"grpc-timeout", "1S"}, {"X-Upper", "x"}, {"x-nl", "a\nb"}, {":path", "/"}};
    for (int i = 0; i < 4; i++) {
        args.headers = &bad[i];
        args.n_headers = 1;
        TD_EQ(TD_INVALID, td_rpc_request_start(f.client, &args, "m", 1, &a.req, NULL));
    }
    fixture_close(&f);
}

TEST(messages_over_the_limit_are_refused_on_either_side)
{
    fixture f;
    answer a;
    td_rpc_server_conf sc = {.max_message_bytes = 1000};
    td_rpc_client_conf cc = {.max_message_bytes = 2000};
    static char msg[3000];
    fixture_open(&f, &sc, &cc);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", msg, 1000, &a));
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, ask(&f, "/test.Echo/Unary", msg, 1001, &a));
    TD_STR("message over the size limit: 1001 bytes, at most 1000", a.message);
    td_rpc_request_args args = answer_args("/test.Echo/Unary", &a);
    TD_EQ(TD_TOO_LARGE, td_rpc_request_start(f.client, &args, msg, 2001, &a.req, NULL));
    fixture_close(&f);
    /* and the client's limit on what comes back */
    sc.max_message_bytes = 5000;
    fixture_open(&f, &sc, &cc);
    echo_stream_args sa = {.n_messages = 1, .n_bytes = 2001};
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, ask(&f, "/test.Echo/Stream", &sa, sizeof(sa), &a));
    fixture_run_for(&f, 20);
    fixture_close(&f);
}

TEST(client_cancel_reaches_the_handler_and_nothing_comes_after)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Hang", &a);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    fixture_run_until_eq(&f, &f.echo.n_live, 1);
    td_rpc_request_cancel(a.req);
    td_rpc_request_cancel(NULL);
    fixture_run_until_eq(&f, &f.echo.n_live, 0);
    TD_EQ(TD_GRPC_CANCELLED, f.echo.last_cancel);
    TD_EQ(0, a.n_finished);
    /* before it was ever sent */
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    td_rpc_request_cancel(a.req);
    /* in the middle of a stream, inside on_message */
    answer b;
    args = answer_args("/test.Echo/Stream", &b);
    b.cancel_after = 10;
    echo_stream_args sa = {.n_messages = 1000000, .n_bytes = 100};
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, &sa, sizeof(sa), &b.req, NULL));
    fixture_run_until_eq(&f, &b.n_messages, 10);
    fixture_run_until(&f, fixture_has_no_calls, &f);
    fixture_run_for(&f, 20);
    TD_EQ(10, b.n_messages);
    TD_EQ(0, b.n_finished);
    TD_EQ(0, f.echo.n_live);
    fixture_close(&f);
}

TEST(deadline_is_sent_and_enforced_on_both_sides)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Wait", &a);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "", 0, &a.req, NULL));
    fixture_run_until(&f, answer_done, &a);
    TD_STR("none", a.last);
    args = answer_args("/test.Echo/Wait", &a);
    args.deadline_ns = td_now_ns() + 5000 * TD_NS_PER_MS;
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "", 0, &a.req, NULL));
    fixture_run_until(&f, answer_done, &a);
    long ms = strtol(a.last, NULL, 10);
    TD_TRUE(ms > 3000 && ms <= 5001);
    args = answer_args("/test.Echo/Hang", &a);
    int64_t t0 = td_now_ns();
    args.deadline_ns = t0 + 50 * TD_NS_PER_MS;
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_DEADLINE_EXCEEDED, a.status);
    TD_TRUE(a.finished_ns - t0 >= 50 * TD_NS_PER_MS && a.finished_ns - t0 < 2 * TD_NS_PER_S);
    fixture_run_until(&f, fixture_has_no_calls, &f);
    TD_EQ(0, f.echo.n_live);
    TD_EQ(1, f.echo.n_cancelled); /* by its own clock, or by the client's reset */
    args.deadline_ns = td_now_ns();
    TD_EQ(TD_DEADLINE, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    fixture_close(&f);
}

typedef struct {
    answer *answers;
    int n;
} crowd;

static bool crowd_done(void *arg)
{
    crowd *c = arg;
    for (int i = 0; i < c->n; i++)
        if (c->answers[i].n_finished == 0)
            return false;
    return true;
}

TEST(thousand_streams_at_once_on_one_connection)
{
    fixture f;
    crowd c = {calloc(1000, sizeof(answer)), 1000};
    fixture_open(&f, NULL, NULL);
    echo_stream_args sa = {.n_messages = 50, .n_bytes = 64, .pause_ms = 1};
    for (int i = 0; i < c.n; i++) {
        td_rpc_request_args args = answer_args("/test.Echo/Stream", &c.answers[i]);
        TD_EQ(TD_OK,
              td_rpc_request_start(f.client, &args, &sa, sizeof(sa), &c.answers[i].req, NULL));
    }
    fixture_run_until(&f, crowd_done, &c);
    for (int i = 0; i < c.n; i++) {
        TD_EQ(TD_GRPC_OK, c.answers[i].status);
        TD_EQ(50, c.answers[i].n_messages);
    }
    td_rpc_server_stats stats;
    td_rpc_server_get_stats(f.server, &stats);
    TD_EQ(1, stats.n_connections);
    TD_EQ(1000, stats.n_started);
    free(c.answers);
    fixture_close(&f);
}

TEST(requests_over_the_servers_limit_wait_for_their_turn)
{
    fixture f;
    crowd c = {calloc(200, sizeof(answer)), 200};
    td_rpc_server_conf sc = {.max_streams = 8};
    fixture_open(&f, &sc, NULL);
    for (int i = 0; i < c.n; i++) {
        td_rpc_request_args args = answer_args("/test.Echo/Unary", &c.answers[i]);
        TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &c.answers[i].req, NULL));
    }
    fixture_run_until(&f, crowd_done, &c);
    int n_ok = 0;
    for (int i = 0; i < c.n; i++) {
        /* those sent before the server's SETTINGS came may be refused, which says "try again" */
        n_ok += c.answers[i].status == TD_GRPC_OK;
        TD_TRUE(c.answers[i].status == TD_GRPC_OK || c.answers[i].status == TD_GRPC_UNAVAILABLE);
    }
    TD_TRUE(n_ok >= 100);
    free(c.answers);
    fixture_close(&f);
}

TEST(max_requests_bounds_the_client)
{
    fixture f;
    answer a[3];
    td_rpc_client_conf cc = {.max_requests = 2};
    fixture_open(&f, NULL, &cc);
    for (int i = 0; i < 3; i++) {
        td_rpc_request_args args = answer_args("/test.Echo/Unary", &a[i]);
        TD_EQ(i < 2 ? TD_OK : TD_FULL,
              td_rpc_request_start(f.client, &args, "x", 1, &a[i].req, NULL));
    }
    fixture_run_until(&f, answer_done, &a[1]);
    fixture_run_until(&f, answer_done, &a[0]);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a[2]));
    fixture_close(&f);
}
