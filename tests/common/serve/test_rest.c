/* A draining daemon's last minute: slow readers get what was written for them, idle streams end. */
#include "common/serve/rest.h"
#include "tests/common/rpc/raw.h"

#include <signal.h>

TD_TEST_MAIN

typedef struct { /* a daemon without work, on a thread of its own */
    td_loop *loop;
    td_metrics *metrics;
    td_serve *serve;
    td_rpc_server *server;
    td_health health;
    td_rest rest;
    echo_service echo;
    pthread_t thread;
    uint16_t port;
    bool drained;
} resting;

static uint32_t nothing_active(void *user)
{
    (void)user;
    return 0;
}

static void on_drain(void *user)
{
    resting *d = user;
    d->rest = (td_rest){
        .serve = d->serve, .server = d->server, .health = &d->health, .active = nothing_active};
    td_rest_begin(&d->rest, d->loop);
}

static void on_server_closed(void *user)
{
    td_serve_close(((resting *)user)->serve, NULL, NULL);
}

static void on_exit_now(void *user, bool drained)
{
    resting *d = user;
    d->drained = drained;
    td_rest_stop(&d->rest);
    td_rpc_server_close(d->server, on_server_closed, d);
}

static void *run_loop(void *user)
{
    td_loop_run(((resting *)user)->loop);
    return NULL;
}

static void begin(resting *d, int64_t drain_ms)
{
    td_err err;
    memset(d, 0, sizeof(*d));
    td_log_init("test", TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&d->loop, &err));
    TD_EQ(TD_OK, td_metrics_create(32, &d->metrics, &err));
    td_serve_conf conf = {.loop = d->loop,
                          .metrics = d->metrics,
                          .drain_ms = drain_ms,
                          .on_drain = on_drain,
                          .on_exit = on_exit_now,
                          .user = d};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &conf.admin, &err));
    TD_EQ(TD_OK, td_serve_open(&conf, &d->serve, &err));
    echo_init(&d->echo, d->loop);
    td_health_init(&d->health, NULL, 0);
    td_rpc_server_conf server = {.methods = d->echo.methods, .n_methods = ECHO_METHODS};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &server.listen, &err));
    TD_EQ(TD_OK, td_rpc_server_open(d->loop, &server, &d->server, &err));
    d->port = td_rpc_server_port(d->server);
    TD_EQ(0, pthread_create(&d->thread, NULL, run_loop, d));
}

/* How long it took, in ms. */
static int64_t end(resting *d, int64_t since_ns)
{
    pthread_join(d->thread, NULL);
    int64_t took_ms = (td_now_ns() - since_ns) / TD_NS_PER_MS;
    td_loop_destroy(d->loop);
    td_metrics_destroy(d->metrics);
    return took_ms;
}

/* Reads n_data bytes of DATA in all; true: the stream has ended with status 0. */
static bool read_some(raw_client *c, raw_answer *a, size_t n_data)
{
    while (a->n_data < n_data) {
        if (!raw_read_frame(c, 5000))
            return false;
        if (c->in_type == NGHTTP2_DATA)
            a->n_data += c->in_len;
        if (c->in_type == NGHTTP2_HEADERS) {
            raw_take_headers(c, a);
            if (c->in_flags & NGHTTP2_FLAG_END_STREAM)
                return a->grpc == 0;
        }
    }
    return false;
}

static void open_window(raw_client *c)
{
    static const char more[] = "\0\0\x9c\x40"; /* 40,000 bytes */
    raw_frame(c, NGHTTP2_WINDOW_UPDATE, 0, 0, more, 4);
    raw_frame(c, NGHTTP2_WINDOW_UPDATE, 0, 1, more, 4);
}

TEST(a_slow_reader_gets_all_that_was_written_for_it)
{
    enum { N = 300, BYTES = 1000, WINDOW = 65535, STEP = 40000 };
    static raw_client c;
    static raw_answer a;
    resting d;
    begin(&d, 60000);
    a.grpc = -1;
    raw_connect(&c, d.port);
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Stream", NULL, 0);
    echo_stream_args args = {.n_messages = N, .n_bytes = BYTES};
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    TD_TRUE(!read_some(&c, &a, WINDOW));
    int64_t since = td_now_ns();
    kill(getpid(), SIGTERM);
    bool ended = false;
    for (int i = 1; i <= 6 && !ended; i++) {
        td_sleep_ms(i == 1 ? 1700 : 400); /* longer than streams without bytes are waited for */
        open_window(&c);
        ended = read_some(&c, &a, i < 6 ? WINDOW + (size_t)i * STEP : SIZE_MAX);
    }
    TD_TRUE(ended);
    TD_EQ(N * (BYTES + 5), a.n_data);
    raw_close(&c);
    TD_TRUE(end(&d, since) < 20000);
    TD_TRUE(d.drained);
}

TEST(a_stream_that_nobody_ends_is_cut_off_soon)
{
    static raw_client c;
    resting d;
    begin(&d, 60000);
    raw_connect(&c, d.port);
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Bidi", NULL, 0);
    raw_message(&c, 1, 0, 0, "x", 1);
    while (raw_read_frame(&c, 5000) && c.in_type != NGHTTP2_DATA)
        ;
    int64_t since = td_now_ns();
    kill(getpid(), SIGTERM);
    TD_TRUE(end(&d, since) < 20000);
    TD_TRUE(d.drained);
    raw_close(&c);
}

TEST(a_reader_that_takes_nothing_does_not_outlast_the_drain_timeout)
{
    static raw_client c;
    resting d;
    begin(&d, 2500);
    raw_connect(&c, d.port);
    raw_hello(&c);
    raw_request(&c, 1, 0, "/test.Echo/Stream", NULL, 0);
    echo_stream_args args = {.n_messages = 300, .n_bytes = 1000};
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, &args, sizeof(args));
    while (raw_read_frame(&c, 5000) && c.in_type != NGHTTP2_DATA)
        ;
    int64_t since = td_now_ns();
    kill(getpid(), SIGTERM);
    int64_t took_ms = end(&d, since);
    TD_TRUE(took_ms >= 2400 && took_ms < 15000);
    TD_TRUE(!d.drained);
    raw_close(&c);
}
