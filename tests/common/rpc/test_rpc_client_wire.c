/* What a broken or hostile server may send to our client: every request ends, once, with a status
 * that fits. */
#include "tests/common/rpc/raw.h"

#include "common/rpc/client.h"

TD_TEST_MAIN

typedef void (*script)(raw_client *c,
                       uint32_t seed); /* c: the accepted connection; stream 1 is open */

typedef struct {
    int listener;
    uint16_t port;
    script play;
    uint32_t seed;
    pthread_t thread;
} fake_server;

static void *play_one(void *arg)
{
    fake_server *s = arg;
    raw_client c;
    char magic[NGHTTP2_CLIENT_MAGIC_LEN];
    memset(&c, 0, sizeof(c));
    c.fd = accept(s->listener, NULL, NULL);
    nghttp2_hd_deflate_new(&c.deflater, 4096);
    nghttp2_hd_inflate_new(&c.inflater);
    raw_frame(&c, NGHTTP2_SETTINGS, 0, 0, NULL, 0);
    if (raw_read_bytes(&c, magic, sizeof(magic), 3000)) {
        while (raw_read_frame(&c, 3000) && c.in_type != NGHTTP2_HEADERS)
            ;
        s->play(&c, s->seed);
        shutdown(c.fd, SHUT_WR);
        while (raw_read_frame(&c, 2000)) /* until the client is through with us */
            ;
    }
    raw_close(&c);
    return NULL;
}

static void listen_anywhere(fake_server *s)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    socklen_t len = sizeof(sa);
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->listener = socket(AF_INET, SOCK_STREAM, 0);
    TD_EQ(0, bind(s->listener, (struct sockaddr *)&sa, sizeof(sa)));
    TD_EQ(0, listen(s->listener, 16));
    TD_EQ(0, getsockname(s->listener, (struct sockaddr *)&sa, &len));
    s->port = ntohs(sa.sin_port);
}

typedef struct {
    td_loop *loop;
    td_timer patience;
    int n_messages, n_finished;
    td_grpc_status status;
    char message[300];
} outcome;

static void on_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    outcome *o = user;
    const volatile char *p = msg;
    (void)req;
    for (size_t i = 0; i < len; i++)
        (void)p[i];
    o->n_messages++;
}

static void on_finish(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    outcome *o = user;
    (void)req;
    o->n_finished++;
    o->status = status;
    snprintf(o->message, sizeof(o->message), "%s", message);
    td_loop_stop(o->loop);
}

static void hangs(td_timer *timer, void *user)
{
    (void)timer;
    (void)user;
    fprintf(stderr, "the request hangs\n");
    abort();
}

/* One request on a connection of its own, against one play of the script. */
static td_grpc_status ask_fake(fake_server *s, script play, outcome *o)
{
    td_rpc_client *client;
    td_rpc_request *req;
    td_rpc_client_conf cc = {
        .max_message_bytes = 1000, .backoff_min_ms = 5000, .backoff_max_ms = 5000};
    td_rpc_request_args args = {
        .path = "/test.Fake/Do", .on_message = on_message, .on_finish = on_finish, .user = o};
    memset(o, 0, sizeof(*o));
    s->play = play;
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &cc.peer, NULL));
    cc.peer.port = s->port;
    TD_EQ(0, pthread_create(&s->thread, NULL, play_one, s));
    TD_EQ(TD_OK, td_loop_create(&o->loop, NULL));
    td_timer_init(&o->patience, o->loop, hangs, NULL);
    td_timer_at(&o->patience, td_now_ns() + 30 * TD_NS_PER_S);
    TD_EQ(TD_OK, td_rpc_client_open(o->loop, &cc, &client, NULL));
    TD_EQ(TD_OK, td_rpc_request_start(client, &args, "ask", 3, &req, NULL));
    td_loop_run(o->loop);
    td_timer_stop(&o->patience);
    td_rpc_client_close(client, NULL, NULL);
    td_loop_destroy(o->loop);
    pthread_join(s->thread, NULL);
    TD_EQ(1, o->n_finished);
    return o->status;
}

static void headers(raw_client *c, uint8_t flags, const char *http, const char *type,
                    const char *grpc)
{
    raw_header h[3];
    size_t n = 0;
    uint8_t block[512];
    if (http != NULL)
        h[n++] = (raw_header){":status", http};
    if (type != NULL)
        h[n++] = (raw_header){"content-type", type};
    if (grpc != NULL)
        h[n++] = (raw_header){"grpc-status", grpc};
    size_t len = raw_deflate(c, h, n, block, sizeof(block));
    raw_frame(c, NGHTTP2_HEADERS, flags | NGHTTP2_FLAG_END_HEADERS, 1, block, len);
}

#define GRPC "application/grpc"
#define END NGHTTP2_FLAG_END_STREAM
#define SCRIPT(name, ...)                                                                          \
    static void play_##name(raw_client *c, uint32_t seed)                                          \
    {                                                                                              \
        (void)seed;                                                                                \
        __VA_ARGS__;                                                                               \
    }

SCRIPT(fine, headers(c, 0, "200", GRPC, NULL), raw_message(c, 1, 0, 0, "yes", 3),
       headers(c, END, NULL, NULL, "0"))
SCRIPT(early_hints, headers(c, 0, "103", NULL, NULL), play_fine(c, 0))
SCRIPT(trailers_only, headers(c, END, "200", GRPC, "7"))
SCRIPT(http_503, headers(c, END, "503", NULL, NULL))
SCRIPT(http_404, headers(c, 0, "404", "text/html", NULL), raw_frame(c, 0, END, 1, "<html>", 6))
SCRIPT(not_grpc, headers(c, END, "200", "text/plain", NULL))
SCRIPT(no_status, headers(c, 0, "200", GRPC, NULL), raw_message(c, 1, END, 0, "yes", 3))
SCRIPT(odd_status, headers(c, END, "200", GRPC, "17"))
SCRIPT(nonsense_status, headers(c, END, "200", GRPC, "ok"))
SCRIPT(half_message, headers(c, 0, "200", GRPC, NULL), raw_frame(c, 0, 0, 1, "\0\0\0\0\7abc", 8),
       headers(c, END, NULL, NULL, "0"))
SCRIPT(compressed, headers(c, 0, "200", GRPC, NULL), raw_message(c, 1, 0, 1, "yes", 3))
SCRIPT(too_long, headers(c, 0, "200", GRPC, NULL), raw_frame(c, 0, 0, 1, "\0\0\0\x03\xe9", 5))
SCRIPT(reset_refused, raw_frame(c, NGHTTP2_RST_STREAM, 0, 1, "\0\0\0\7", 4))
SCRIPT(reset_calm, raw_frame(c, NGHTTP2_RST_STREAM, 0, 1, "\0\0\0\13", 4))
SCRIPT(reset_internal, raw_frame(c, NGHTTP2_RST_STREAM, 0, 1, "\0\0\0\2", 4))
SCRIPT(goaway, raw_frame(c, NGHTTP2_GOAWAY, 0, 0, "\0\0\0\0\0\0\0\0", 8))
SCRIPT(hangup, headers(c, 0, "200", GRPC, NULL))
SCRIPT(broken_frame, raw_frame(c, NGHTTP2_WINDOW_UPDATE, 0, 0, "\0\0\0\0", 4))
SCRIPT(http1, raw_send(c, "HTTP/1.1 400 Bad Request\r\n\r\n", 28))
SCRIPT(push, raw_frame(c, NGHTTP2_PUSH_PROMISE, 4, 1, "\0\0\0\2\x82\x84\x87\x41\1x", 10))

TEST(servers_that_misbehave_get_a_fitting_status)
{
    static const struct {
        const char *name;
        script play;
        td_grpc_status want;
    } rows[] = {
        {"fine", play_fine, TD_GRPC_OK},
        {"early hints", play_early_hints, TD_GRPC_OK},
        {"trailers only", play_trailers_only, TD_GRPC_PERMISSION_DENIED},
        {"503", play_http_503, TD_GRPC_UNAVAILABLE},
        {"404", play_http_404, TD_GRPC_UNIMPLEMENTED},
        {"not grpc", play_not_grpc, TD_GRPC_UNKNOWN},
        {"no status", play_no_status, TD_GRPC_INTERNAL},
        {"odd status", play_odd_status, TD_GRPC_UNKNOWN},
        {"nonsense status", play_nonsense_status, TD_GRPC_UNKNOWN},
        {"half a message", play_half_message, TD_GRPC_INTERNAL},
        {"compressed", play_compressed, TD_GRPC_INTERNAL},
        {"too long", play_too_long, TD_GRPC_RESOURCE_EXHAUSTED},
        {"refused", play_reset_refused, TD_GRPC_UNAVAILABLE},
        {"calm", play_reset_calm, TD_GRPC_RESOURCE_EXHAUSTED},
        {"internal", play_reset_internal, TD_GRPC_INTERNAL},
        {"goaway", play_goaway, TD_GRPC_UNAVAILABLE},
        {"hang-up", play_hangup, TD_GRPC_UNAVAILABLE},
        {"broken frame", play_broken_frame, TD_GRPC_UNAVAILABLE},
        {"HTTP/1.1", play_http1, TD_GRPC_UNAVAILABLE},
        {"push", play_push, TD_GRPC_UNAVAILABLE},
    };
    fake_server s;
    outcome o;
    td_log_init("test", TD_LOG_ERROR, 0);
    listen_anywhere(&s);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        td_grpc_status got = ask_fake(&s, rows[i].play, &o);
        if (got != rows[i].want)
            fail_msg("%s: %s \"%s\"", rows[i].name, td_grpc_status_name(got), o.message);
        TD_TRUE(got == TD_GRPC_OK || got == TD_GRPC_PERMISSION_DENIED || got == TD_GRPC_UNKNOWN ||
                o.message[0] != '\0');
        TD_EQ(got == TD_GRPC_OK || i == 6 ? 1 : 0, o.n_messages);
    }
    close(s.listener);
}

/* A fine answer in which some bytes have changed. */
static void play_damaged(raw_client *c, uint32_t seed)
{
    uint8_t bytes[1024];
    size_t n = 0;
    int pair[2];
    ssize_t got;
    raw_client rec = *c;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return;
    rec.fd = pair[0];
    headers(&rec, 0, "200", GRPC, NULL);
    raw_message(&rec, 1, 0, 0, "first", 5);
    raw_frame(&rec, NGHTTP2_PING, 0, 0, "12345678", 8);
    raw_frame(&rec, NGHTTP2_SETTINGS, 0, 0, "\0\3\0\0\0\x64", 6);
    raw_message(&rec, 1, 0, 0, "second", 6);
    headers(&rec, END, NULL, NULL, "0");
    close(pair[0]);
    while ((got = recv(pair[1], bytes + n, sizeof(bytes) - n, 0)) > 0)
        n += (size_t)got;
    close(pair[1]);
    for (uint32_t i = 0; i <= seed % 5; i++) {
        seed = seed * 1664525 + 1013904223;
        bytes[(seed >> 8) % n] = (uint8_t)(seed >> 24);
    }
    raw_send(c, bytes, n);
}

TEST(damaged_answers_always_end_the_request)
{
    fake_server s;
    outcome o;
    int n_ok = 0;
    td_log_init("test", TD_LOG_ERROR, 0);
    listen_anywhere(&s);
    for (s.seed = 1; s.seed <= 300; s.seed++)
        n_ok += ask_fake(&s, play_damaged, &o) == TD_GRPC_OK;
    TD_TRUE(n_ok < 300);
    close(s.listener);
}
