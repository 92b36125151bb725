/* Peers that send more, or read less, than is decent: what they cost is bounded, and others are
 * served. */
#include "tests/common/rpc/raw.h"

TD_TEST_MAIN

static void expect_end(raw_client *c, int goaway)
{
    raw_answer *a = malloc(sizeof(*a));
    raw_read_answer(c, 999999, a, 5000);
    TD_TRUE(a->closed);
    if (goaway >= 0 && a->goaway >= 0)
        TD_EQ(goaway, a->goaway);
    free(a);
}

TEST(floods_of_frames_that_cost_nothing_end_the_connection)
{
    static const bad_frame floods[] = {
        {"PING", NGHTTP2_PING, 0, 0, "12345678", 8},
        {"SETTINGS", NGHTTP2_SETTINGS, 0, 0, NULL, 0},
        {"empty DATA", NGHTTP2_DATA, 0, 1, NULL, 0},
        {"PRIORITY", NGHTTP2_PRIORITY, 0, 1, "\0\0\0\0\1", 5},
        {"unknown type", 0x77, 0, 0, "x", 1},
    };
    raw_server s;
    raw_client c;
    raw_server_start(&s, NULL);
    for (int i = 0; i < 4; i++) {
        raw_connect(&c, s.port);
        raw_hello(&c);
        raw_request(&c, 1, 0, "/test.Echo/Bidi", NULL, 0);
        bool alive = true;
        for (int n = 0; n < 2000000 && alive; n++)
            alive = raw_frame(&c, floods[i].type, floods[i].flags, floods[i].id, floods[i].payload,
                              floods[i].len);
        if (alive)
            fail_msg("%s: two million taken", floods[i].what);
        raw_close(&c);
        still_serves(&s);
    }
    raw_server_stop(&s);
}

TEST(rapid_resets_end_the_connection)
{
    raw_server s;
    raw_client c;
    open_both(&s, &c, NULL);
    raw_hello(&c);
    bool alive = true;
    uint32_t id = 1;
    for (; id < 4000000 && alive; id += 2) /* more than all socket buffers hold */
        alive = raw_request(&c, id, 0, "/test.Echo/Bidi", NULL, 0) &&
                raw_frame(&c, NGHTTP2_RST_STREAM, 0, id, "\0\0\0\x8", 4);
    TD_TRUE(!alive);
    TD_TRUE(id > 2 * 8 * 1024); /* a cancel storm of a full house is no attack */
    still_serves(&s);
    close_both(&s, &c);
}

TEST(endless_continuations_end_the_connection)
{
    raw_server s;
    raw_client c;
    open_both(&s, &c, NULL);
    raw_hello(&c);
    raw_frame(&c, NGHTTP2_HEADERS, 0, 1, "\x83", 1);
    for (int i = 0; i < 100000; i++)
        if (!raw_frame(&c, NGHTTP2_CONTINUATION, 0, 1, "\x83", 1))
            break;
    expect_end(&c, -1);
    still_serves(&s);
    close_both(&s, &c);
}

TEST(more_streams_than_announced_are_refused)
{
    raw_server s;
    raw_client c;
    td_rpc_server_conf conf = {.max_streams = 4};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    raw_answer *a = malloc(sizeof(*a));
    for (uint32_t id = 1; id <= 7; id += 2)
        raw_request(&c, id, 0, "/test.Echo/Hang", NULL, 0);
    raw_frame(&c, NGHTTP2_PING, 0, 0, "12345678", 8);
    while (raw_read_frame(&c, 3000) && c.in_type != NGHTTP2_PING)
        if (c.in_type == NGHTTP2_SETTINGS && !(c.in_flags & NGHTTP2_FLAG_ACK))
            raw_frame(&c, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, NULL, 0);
    raw_request(&c, 9, 0, "/test.Echo/Hang", NULL, 0);
    raw_read_answer(&c, 9, a, 3000);
    TD_TRUE(a->reset == NGHTTP2_REFUSED_STREAM || a->goaway > 0);
    free(a);
    close_both(&s, &c);
}

TEST(more_connections_than_allowed_are_closed_at_once)
{
    raw_server s;
    raw_client c[5];
    raw_answer *a = malloc(sizeof(*a));
    td_metrics *metrics;
    TD_EQ(TD_OK, td_metrics_create(8, &metrics, NULL));
    td_rpc_server_conf conf = {.max_connections = 3, .name = "test", .metrics = metrics};
    raw_server_start(&s, &conf);
    for (int i = 0; i < 3; i++) {
        raw_connect(&c[i], s.port);
        raw_hello(&c[i]);
        TD_TRUE(raw_read_frame(&c[i], 3000));
    }
    for (int i = 3; i < 5; i++) {
        raw_connect(&c[i], s.port);
        TD_TRUE(!raw_read_frame(&c[i], 3000));
    }
    raw_server_stats(&s);
    TD_EQ(3, s.stats.n_connections);
    TD_EQ(2, s.stats.n_refused);
    TD_EQ(3, td_metric_value(td_metrics_get(metrics, TD_GAUGE, "tandem_rpc_connections",
                                            "server=\"test\"", "")));
    TD_EQ(2,
          td_metric_value(td_metrics_get(
              metrics, TD_COUNTER, "tandem_rpc_connections_refused_total", "server=\"test\"", "")));
    for (int i = 0; i < 5; i++)
        raw_close(&c[i]);
    raw_server_settles(&s);
    still_serves(&s);
    free(a);
    raw_server_stop(&s);
    td_metrics_destroy(metrics);
}

TEST(answers_nobody_reads_are_bounded)
{
    raw_server s;
    raw_client c;
    td_rpc_server_conf conf = {.max_streams = 16,
                               .stall_ms = 600000,
                               .keepalive_ms = 600000,
                               .idle_ms = 600000}; /* none of them may be what ends it */
    raw_server_start(&s, &conf);
    raw_connect_small(&c, s.port, 16384);
    raw_hello(&c); /* SETTINGS not acknowledged: streams beyond 16 are refused one by one */
    bool alive = true;
    raw_header get = {":method", "GET"}; /* each is answered with HEADERS or RST_STREAM */
    for (uint32_t id = 1; id < 4000000 && alive; id += 2)
        alive = raw_request(&c, id, NGHTTP2_FLAG_END_STREAM, NULL, &get, 1);
    TD_TRUE(!alive);
    still_serves(&s);
    close_both(&s, &c);
}

TEST(many_answers_at_once_are_fine_for_a_client_that_reads)
{
    enum { N = 20000 };
    raw_server s;
    raw_client c;
    td_rpc_server_conf conf = {.max_streams = 16};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    uint32_t n_answers = 0;
    raw_header get = {":method", "GET"};
    for (uint32_t i = 0, id = 1; i < N; i += 4000) {
        for (uint32_t k = 0; k < 4000; k++, id += 2) /* far more than may be open: refused */
            TD_TRUE(raw_request(&c, id, NGHTTP2_FLAG_END_STREAM, NULL, &get, 1));
        while (n_answers < i + 4000 && raw_read_frame(&c, 5000))
            n_answers += (c.in_type == NGHTTP2_HEADERS || c.in_type == NGHTTP2_RST_STREAM) &&
                         (c.in_id & 1) != 0;
    }
    TD_TRUE(n_answers >= N);
    still_serves(&s);
    close_both(&s, &c);
}

TEST(clients_that_read_nothing_share_one_bound)
{
    raw_server s;
    raw_client c;
    td_rpc_server_conf conf = {.max_queued_bytes = 3 << 20};
    open_both(&s, &c, &conf);
    raw_hello(&c);
    echo_stream_args args = {.n_messages = 1000, .n_bytes = 10000}; /* polite: stays below 1 MiB */
    for (uint32_t id = 1; id < 20; id += 2) {
        raw_request(&c, id, 0, "/test.Echo/Stream", NULL, 0);
        raw_message(&c, id, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    }
    do {
        raw_server_stats(&s);
        TD_TRUE(s.stats.queued_bytes <= 3 << 20);
    } while (s.stats.n_cut_off < 7);
    raw_close(&c);
    raw_server_settles(&s);
    raw_server_stats(&s);
    TD_EQ(0, s.stats.queued_bytes);
    raw_server_stop(&s);
}

TEST(one_client_that_reads_nothing_leaves_room_for_others)
{
    raw_server s;
    raw_client hoarder, c;
    raw_answer *a = malloc(sizeof(*a));
    td_rpc_server_conf conf = {.max_queued_bytes = 8 << 20, .max_message_bytes = 100000};
    open_both(&s, &hoarder, &conf);
    raw_hello(&hoarder);
    echo_stream_args args = {.n_messages = 1000, .n_bytes = 10000}; /* polite: stays below 1 MiB */
    for (uint32_t id = 1; id < 40; id += 2) {
        raw_request(&hoarder, id, 0, "/test.Echo/Stream", NULL, 0);
        raw_message(&hoarder, id, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    }
    do {
        raw_server_stats(&s);
        TD_TRUE(s.stats.queued_bytes <= 1 << 20); /* its share, not all there is */
    } while (s.stats.n_cut_off < 19);
    raw_connect(&c, s.port);
    raw_hello(&c);
    args = (echo_stream_args){.n_messages = 6, .n_bytes = 10000};
    raw_request(&c, 1, 0, "/test.Echo/Stream", NULL, 0);
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    raw_read_answer(&c, 1, a, 5000);
    TD_EQ(0, a->grpc);
    TD_EQ(60030, a->n_data);
    raw_close(&c);
    free(a);
    close_both(&s, &hoarder);
}

/* Streams have their full windows only when the server's SETTINGS are acknowledged. */
static void shake_hands(raw_client *c)
{
    raw_hello(c);
    while (raw_read_frame(c, 5000))
        if (c->in_type == NGHTTP2_SETTINGS && !(c->in_flags & NGHTTP2_FLAG_ACK))
            break;
    raw_frame(c, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, NULL, 0);
}

/* The first n_bytes of a message of a million bytes. */
static void send_part(raw_client *c, uint32_t id, size_t n_bytes, uint8_t flags)
{
    static const uint8_t piece[15000];
    raw_frame(c, NGHTTP2_DATA, 0, id, "\0\0\x0f\x42\x40", 5);
    for (size_t n, at = 0; at < n_bytes; at += n) {
        n = n_bytes - at < sizeof(piece) ? n_bytes - at : sizeof(piece);
        raw_frame(c, NGHTTP2_DATA, at + n == n_bytes ? flags : 0, id, piece, n);
    }
}

TEST(one_client_that_hoards_half_messages_does_not_stop_another)
{
    enum { WHOLE = 1000000, HALF = 900000, SHARE = (9 << 20) / 8 };
    static raw_client hoarder, c;
    static raw_answer a;
    raw_server s;
    td_rpc_server_conf conf = {.max_assembly_bytes = 9 << 20, .max_message_bytes = WHOLE};
    open_both(&s, &hoarder, &conf);
    shake_hands(&hoarder);
    for (uint32_t id = 1; id < 40; id += 2) {
        raw_request(&hoarder, id, 0, id % 4 == 1 ? NULL : "/test.Echo/Bidi", NULL, 0);
        send_part(&hoarder, id, HALF, 0);
    }
    raw_frame(&hoarder, NGHTTP2_PING, 0, 0, "12345678", 8); /* answered: all of it was read */
    while (raw_read_frame(&hoarder, 5000) && hoarder.in_type != NGHTTP2_PING)
        ;
    raw_server_stats(&s);
    TD_TRUE(s.stats.assembly_bytes >= HALF && s.stats.assembly_bytes <= SHARE);
    raw_connect(&c, s.port);
    shake_hands(&c);
    raw_request(&c, 1, 0, "/test.Echo/Swallow", NULL, 0);
    send_part(&c, 1, WHOLE, NGHTTP2_FLAG_END_STREAM);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(0, a.grpc);
    TD_EQ(5 + 7, a.n_data);
    TD_MEM("1000000", a.data + 5, 7);
    raw_close(&c);
    close_both(&s, &hoarder);
}
