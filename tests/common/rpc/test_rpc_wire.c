/* What peers send that no well-behaved client would: the server answers, resets or closes, and
 * nothing is left. */
#include "tests/common/rpc/raw.h"

TD_TEST_MAIN

TEST(a_byte_at_a_time_is_understood)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    open_both(&s, &c, NULL);
    c.byte_at_a_time = 1;
    raw_hello(&c);
    raw_request(&c, 1, 0, NULL, NULL, 0);
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, "slowly", 6);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(200, a.http);
    TD_EQ(0, a.grpc);
    TD_MEM("\0\0\0\0\6slowly", a.data, 11);
    close_both(&s, &c);
}

TEST(a_message_may_be_spread_over_many_frames)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    open_both(&s, &c, NULL);
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Bidi", NULL, 0);
    const uint8_t bytes[] = "\0\0\0\0\3abc\0\0\0\0\0\0\0\0\0\4defg";
    for (size_t i = 0; i < sizeof(bytes) - 1; i++)
        raw_frame(&c, NGHTTP2_DATA, 0, 1, bytes + i, 1);
    raw_frame(&c, NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, 1, NULL, 0);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(0, a.grpc);
    TD_EQ(sizeof(bytes) - 1, a.n_data);
    TD_MEM(bytes, a.data, a.n_data);
    close_both(&s, &c);
}

TEST(http1_and_garbage_close_only_their_own_connection)
{
    raw_server s;
    raw_client c;
    raw_server_start(&s, NULL);
    const char *greetings[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                               "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
                               "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                               "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS hello"};
    for (int i = 0; i < 4; i++) {
        char byte;
        raw_connect(&c, s.port);
        raw_send(&c, greetings[i], i == 2 ? 24 : strlen(greetings[i]));
        while (raw_read_bytes(&c, &byte, 1, 3000)) /* its SETTINGS may still come */
            ;
        raw_close(&c);
        still_serves(&s);
    }
    raw_server_stop(&s);
}

TEST(broken_frames_end_the_connection_with_goaway)
{
    static const bad_frame frames[] = {
        {"DATA on stream 0", NGHTTP2_DATA, 0, 0, "x", 1},
        {"DATA on an idle stream", NGHTTP2_DATA, 0, 5, "x", 1},
        {"HEADERS on an even stream", NGHTTP2_HEADERS, 5, 2, "\x82", 1},
        {"HEADERS with nonsense HPACK", NGHTTP2_HEADERS, 5, 1, "\xff\xff\xff\xff\xff\xff", 6},
        {"SETTINGS of odd length", NGHTTP2_SETTINGS, 0, 0,
         "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 3},
        {"SETTINGS on a stream", NGHTTP2_SETTINGS, 0, 1, NULL, 0},
        {"SETTINGS with a window over 2^31-1", NGHTTP2_SETTINGS, 0, 0, "\0\4\xff\xff\xff\xff", 6},
        {"PING of 7 bytes", NGHTTP2_PING, 0, 0, "1234567", 7},
        {"WINDOW_UPDATE of 0", NGHTTP2_WINDOW_UPDATE, 0, 0, "\0\0\0\0", 4},
        {"CONTINUATION out of nowhere", NGHTTP2_CONTINUATION, 4, 1, "x", 1},
        {"RST_STREAM of an idle stream", NGHTTP2_RST_STREAM, 0, 9, "\0\0\0\0", 4},
        {"PUSH_PROMISE from a client", NGHTTP2_PUSH_PROMISE, 4, 1, "\0\0\0\2\x82", 5},
        {"GOAWAY on a stream", NGHTTP2_GOAWAY, 0, 1, "\0\0\0\0\0\0\0\0", 8},
    };
    raw_server s;
    raw_client c;
    raw_answer a;
    raw_server_start(&s, NULL);
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
        const bad_frame *f = &frames[i];
        raw_connect(&c, s.port);
        raw_hello(&c);
        raw_frame(&c, f->type, f->flags, f->id, f->payload, f->len);
        raw_read_answer(&c, 99, &a, 3000);
        if (!a.closed || a.goaway <= 0)
            fail_msg("%s: closed %d goaway %d", f->what, a.closed, a.goaway);
        raw_close(&c);
    }
    /* longer than SETTINGS_MAX_FRAME_SIZE */
    char *big = calloc(1, 100000);
    raw_connect(&c, s.port);
    raw_hello(&c);
    raw_request(&c, 1, 0, NULL, NULL, 0);
    raw_frame(&c, NGHTTP2_DATA, 0, 1, big, 100000);
    raw_read_answer(&c, 1, &a, 3000);
    TD_EQ(NGHTTP2_FRAME_SIZE_ERROR, a.goaway);
    raw_close(&c);
    free(big);
    still_serves(&s);
    raw_server_stop(&s);
}

typedef struct {
    raw_header header;
    int http, grpc;
} refusal;

TEST(requests_that_are_not_ours_get_the_right_status)
{
    static const refusal refusals[] = {
        {{":method", "GET"}, 405, -1},
        {{":method", "PUT"}, 405, -1},
        {{"content-type", "application/json"}, 415, -1},
        {{"content-type", "application/grpc-web"}, 415, -1},
        {{":path", "/test.Echo/None"}, 200, 12},
        {{"grpc-encoding", "gzip"}, 200, 12},
        {{"grpc-timeout", "100"}, 200, 3},
        {{"grpc-timeout", "123456789m"}, 200, 3},
        {{"grpc-timeout", "-1S"}, 200, 3},
    };
    raw_server s;
    raw_client c;
    raw_answer a;
    open_both(&s, &c, NULL);
    raw_hello(&c);
    uint32_t id = 1;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++, id += 2) {
        raw_request(&c, id, 0, NULL, &refusals[i].header, 1);
        raw_message(&c, id, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
        raw_read_answer(&c, id, &a, 5000);
        if (a.http != refusals[i].http || a.grpc != refusals[i].grpc)
            fail_msg("%s: http %d grpc %d", refusals[i].header.value, a.http, a.grpc);
        TD_STR(strcmp(refusals[i].header.name, "grpc-encoding") == 0 ? "identity" : "",
               a.accept_encoding);
    }
    static const raw_header fine[] = {{"content-type", "application/grpc+proto"},
                                      {"content-type", "application/grpc; x=y"},
                                      {"grpc-encoding", "identity"},
                                      {"grpc-timeout", "99999999H"}};
    for (size_t i = 0; i < 4; i++, id += 2) {
        raw_request(&c, id, 0, NULL, &fine[i], 1);
        raw_message(&c, id, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
        raw_read_answer(&c, id, &a, 5000);
        TD_EQ(0, a.grpc);
    }
    close_both(&s, &c);
}

TEST(bad_messages_end_their_call_and_only_that)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    td_rpc_server_conf conf = {.max_message_bytes = 1000};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    raw_request(&c, 1, 0, NULL, NULL, 0); /* compressed, without a grpc-encoding */
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 1, "x", 1);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(13, a.grpc);
    raw_request(&c, 3, 0, NULL, NULL, 0); /* a flag that does not exist */
    raw_message(&c, 3, NGHTTP2_FLAG_END_STREAM, 7, "x", 1);
    raw_read_answer(&c, 3, &a, 5000);
    TD_EQ(13, a.grpc);
    raw_request(&c, 5, 0, NULL, NULL,
                0); /* announces more than the limit: refused by its head alone */
    raw_frame(&c, NGHTTP2_DATA, 0, 5, "\0\xff\xff\xff\xff", 5);
    raw_read_answer(&c, 5, &a, 5000);
    TD_EQ(8, a.grpc);
    raw_request(&c, 7, 0, NULL, NULL, 0); /* ends within a message */
    raw_frame(&c, NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, 7, "\0\0\0\0\7abc", 8);
    raw_read_answer(&c, 7, &a, 5000);
    TD_EQ(13, a.grpc);
    raw_request(&c, 9, NGHTTP2_FLAG_END_STREAM, NULL, NULL, 0); /* no message */
    raw_read_answer(&c, 9, &a, 5000);
    TD_EQ(12, a.grpc);
    raw_request(&c, 11, 0, NULL, NULL, 0); /* two messages */
    raw_message(&c, 11, 0, 0, "x", 1);
    raw_message(&c, 11, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 11, &a, 5000);
    TD_EQ(12, a.grpc);
    raw_request(&c, 13, 0, "/test.Echo/Bidi", NULL, 0); /* and the handler is told */
    raw_message(&c, 13, 0, 0, "x", 1);
    raw_message(&c, 13, 0, 1, "x", 1);
    raw_read_answer(&c, 13, &a, 5000);
    TD_EQ(13, a.grpc);
    raw_server_stats(&s);
    TD_EQ(1, s.echo.n_cancelled);
    TD_EQ(TD_GRPC_INTERNAL, s.echo.last_cancel);
    raw_request(&c, 15, 0, NULL, NULL, 0); /* the connection is none the worse */
    raw_message(&c, 15, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 15, &a, 5000);
    TD_EQ(0, a.grpc);
    close_both(&s, &c);
}

TEST(headers_over_the_limit_are_refused)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    char *big = malloc(20001);
    memset(big, 'a', 20000);
    big[20000] = '\0';
    open_both(&s, &c, NULL);
    raw_hello(&c);
    raw_header h = {"x-big", big};
    big[14000] = '\0'; /* a frame holds 16384; after Huffman less */
    raw_request(&c, 1, 0, NULL, &h, 1);
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(0, a.grpc);
    big[14000] = 'a';
    raw_request(&c, 3, 0, NULL, &h, 1);
    raw_message(&c, 3, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 3, &a, 5000);
    TD_EQ(8, a.grpc);
    free(big);
    close_both(&s, &c);
}

TEST(unfinished_headers_and_silent_peers_are_dropped_in_time)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    td_rpc_server_conf conf = {.handshake_ms = 400, .header_ms = 400, .request_ms = 400};
    raw_server_start(&s, &conf);
    raw_connect(&c, s.port); /* says nothing */
    c.mute = 1;
    raw_read_answer(&c, 1, &a, 3000);
    TD_TRUE(a.closed);
    raw_close(&c);
    raw_connect(&c, s.port); /* half a header block */
    c.mute = 1;
    raw_hello(&c);
    raw_frame(&c, NGHTTP2_HEADERS, 0, 1, "\x83", 1);
    raw_read_answer(&c, 1, &a, 3000);
    TD_TRUE(a.closed);
    raw_close(&c);
    raw_connect(&c, s.port); /* half a frame */
    c.mute = 1;
    raw_hello(&c);
    raw_send(&c, "\0\0\x20\1\4\0\0\0\1\x83", 10);
    raw_read_answer(&c, 1, &a, 3000);
    TD_TRUE(a.closed);
    raw_close(&c);
    raw_connect(&c, s.port); /* half a request: the call ends, the connection lives */
    raw_hello(&c);
    raw_request(&c, 1, 0, NULL, NULL, 0);
    raw_read_answer(&c, 1, &a, 3000);
    TD_EQ(4, a.grpc);
    raw_request(&c, 3, 0, NULL, NULL, 0);
    raw_message(&c, 3, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 3, &a, 3000);
    TD_EQ(0, a.grpc);
    close_both(&s, &c);
}

TEST(a_stream_may_be_silent_between_messages_but_not_within_one)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    td_rpc_server_conf conf = {.request_ms = 1500};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Swallow", NULL, 0);
    raw_request(&c, 3, 0, "/test.Echo/Bidi", NULL, 0);
    for (int i = 0; i < 3; i++) {
        raw_message(&c, 1, 0, 0, "x", 1);
        raw_frame(&c, NGHTTP2_DATA, 0, 1, "\0\0\0", 3); /* the next one begins ... */
        td_sleep_ms(500);
        raw_frame(&c, NGHTTP2_DATA, 0, 1, "\0\1y", 3); /* ... and ends in time */
        td_sleep_ms(i == 0 ? 1600 : 50);
    }
    raw_frame(&c, NGHTTP2_DATA, 0, 3, "\0\0\0\0\7abc", 8);
    raw_read_answer(&c, 3, &a, 5000);
    TD_EQ(4, a.grpc);
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, "z", 1);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(0, a.grpc);
    TD_MEM("\0\0\0\0\1"
           "7",
           a.data, 6);
    close_both(&s, &c);
}

TEST(idle_connections_are_sent_away)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    td_rpc_server_conf conf = {.idle_ms = 300};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    raw_request(&c, 1, 0, NULL, NULL, 0);
    td_sleep_ms(600); /* a call is open: not idle */
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 1, &a, 3000);
    TD_EQ(0, a.grpc);
    raw_read_answer(&c, 3, &a, 3000);
    TD_EQ(NGHTTP2_NO_ERROR, a.goaway);
    TD_TRUE(a.closed);
    close_both(&s, &c);
}

TEST(server_enforces_the_deadline_by_itself)
{
    raw_server s;
    raw_client c;
    raw_answer a;
    open_both(&s, &c, NULL);
    raw_hello(&c);
    raw_header h = {"grpc-timeout", "100m"};
    int64_t t0 = td_now_ns();
    raw_request(&c, 1, 0, "/test.Echo/Hang", &h, 1);
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 1, &a, 3000);
    TD_EQ(4, a.grpc);
    TD_TRUE(td_now_ns() - t0 >= 100 * TD_NS_PER_MS && td_now_ns() - t0 < 3 * TD_NS_PER_S);
    close_both(&s, &c);
    TD_EQ(TD_GRPC_DEADLINE_EXCEEDED, s.echo.last_cancel);
}

TEST(a_client_that_does_not_read_is_cut_off)
{
    raw_server s;
    raw_client c;
    raw_answer *a = malloc(sizeof(*a));
    td_metrics *metrics;
    TD_EQ(TD_OK, td_metrics_create(8, &metrics, NULL));
    open_both(&s, &c, &(td_rpc_server_conf){.metrics = metrics});
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Stream", NULL, 0);
    /* stream window 64 KiB by default; asks for 10 MB at once and never opens it */
    echo_stream_args args = {.n_messages = 10000, .n_bytes = 1000, .rude = 1};
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    raw_read_answer(&c, 1, a, 5000);
    TD_EQ(NGHTTP2_ENHANCE_YOUR_CALM, a->reset);
    raw_server_stats(&s);
    TD_EQ(1, s.stats.n_cut_off);
    TD_EQ(1, td_metric_value(td_metrics_get(metrics, TD_COUNTER, "tandem_rpc_calls_cut_off_total",
                                            "server=\"rpc\"", "")));
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, s.echo.last_cancel);
    TD_EQ(TD_EXHAUSTED, s.echo.last_send);
    TD_TRUE(s.echo.n_sent * 1005 <= (1 << 20) + 1005);
    raw_request(&c, 3, 0, NULL, NULL, 0); /* others on the connection go on */
    raw_message(&c, 3, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
    raw_read_answer(&c, 3, a, 5000);
    TD_EQ(0, a->grpc);
    free(a);
    close_both(&s, &c);
    td_metrics_destroy(metrics);
}

TEST(an_answer_nobody_takes_is_dropped_in_time)
{
    raw_server s;
    raw_client c;
    raw_answer *a = malloc(sizeof(*a));
    td_rpc_server_conf conf = {.stall_ms = 200};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Stream", NULL, 0);
    echo_stream_args args = {.n_messages = 200, .n_bytes = 1000}; /* 200 KB, the window is 64 KiB */
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    raw_read_answer(&c, 1, a, 5000);
    TD_EQ(NGHTTP2_CANCEL, a->reset);
    TD_EQ(65535, a->n_data);
    free(a);
    close_both(&s, &c);
}

TEST(a_socket_nobody_reads_is_closed_in_time)
{
    raw_server s;
    raw_client c;
    td_rpc_server_conf conf = {.stall_ms = 300, .keepalive_ms = 60000};
    open_both(&s, &c, &conf);
    int small = 4096;
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    raw_hello(&c);
    /* windows as wide as they go: only the socket holds the server back */
    raw_frame(&c, NGHTTP2_SETTINGS, 0, 0, "\0\4\x7f\xff\xff\xff", 6);
    raw_frame(&c, NGHTTP2_WINDOW_UPDATE, 0, 0, "\x70\0\0\0", 4);
    raw_request(&c, 1, 0, "/test.Echo/Stream", NULL, 0);
    echo_stream_args args = {.n_messages = 1000000, .n_bytes = 10000};
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    do {
        raw_server_stats(&s);
    } while (s.stats.n_calls == 0);
    raw_server_settles(&s);
    TD_EQ(0, s.echo.n_live);
    TD_EQ(TD_GRPC_UNAVAILABLE, s.echo.last_cancel);
    close_both(&s, &c);
}

/* ---- noise ---- */

static uint64_t rng_state = 88172645463325252ULL;

static uint32_t rnd(uint32_t n)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (uint32_t)(rng_state >> 11) % n;
}

TEST(damaged_conversations_never_harm_the_server)
{
    raw_server s;
    raw_client c;
    raw_server_start(&s, NULL);
    for (int round = 0; round < 400; round++) {
        uint8_t bytes[2048];
        size_t n = 0;
        raw_connect(&c, s.port);
        raw_hello(&c);
        /* a good conversation ... */
        int pair[2];
        TD_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
        raw_client rec = c;
        rec.fd = pair[0];
        raw_request(&rec, 1, 0, "/test.Echo/Bidi", NULL, 0);
        raw_message(&rec, 1, 0, 0, "hello", 5);
        raw_frame(&rec, NGHTTP2_PING, 0, 0, "12345678", 8);
        raw_request(&rec, 3, 0, "/test.Echo/Hang", NULL, 0);
        raw_message(&rec, 3, NGHTTP2_FLAG_END_STREAM, 0, "x", 1);
        raw_message(&rec, 1, NGHTTP2_FLAG_END_STREAM, 0, "bye", 3);
        close(pair[0]);
        ssize_t got;
        while ((got = recv(pair[1], bytes + n, sizeof(bytes) - n, 0)) > 0)
            n += (size_t)got;
        close(pair[1]);
        /* ... in which some bytes have changed, or are missing */
        for (uint32_t i = 0, hits = 1 + rnd(6); i < hits; i++)
            bytes[rnd((uint32_t)n)] = (uint8_t)rnd(256);
        raw_send(&c, bytes, rnd(4) == 0 ? rnd((uint32_t)n) : n);
        if (rnd(2) == 0)
            raw_read_frame(&c, 5);
        raw_close(&c);
    }
    still_serves(&s);
    raw_server_stop(&s);
}
