/* raw.h - an HTTP/2 client made by hand over a blocking socket, for everything that a well-behaved
 * client never sends, and an echo server on a thread of its own to send it to. Include in one file
 * of a test program. */
#ifndef TD_TESTS_RPC_RAW_H
#define TD_TESTS_RPC_RAW_H
#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/loop/mailbox.h"
#include "common/rpc/server.h"
#include "tests/common/rpc/echo.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the server ---- */

typedef struct {
    td_loop *loop;
    td_rpc_server *server;
    td_mailbox *box;
    echo_service echo;
    pthread_t thread;
    uint16_t port;
    td_rpc_server_stats stats; /* as of the last raw_server_stats() */
    _Atomic int n_answers;     /* to messages in the box */
} raw_server;

static inline void raw_server_message(void *user, const void *msg, size_t len)
{
    raw_server *s = user;
    (void)len;
    if (*(const char *)msg == 's') {
        td_rpc_server_get_stats(s->server, &s->stats);
        s->n_answers++;
    } else {
        td_rpc_server_close(s->server, NULL, NULL);
        td_mailbox_close(s->box);
    }
}

static inline void *raw_server_run(void *arg)
{
    raw_server *s = arg;
    td_loop_run(s->loop);
    return NULL;
}

static inline void raw_server_start(raw_server *s, const td_rpc_server_conf *conf)
{
    td_rpc_server_conf sc = {0};
    td_err err = {0};
    memset(s, 0, sizeof(*s));
    td_log_init("test", getenv("TD_TEST_DEBUG") ? TD_LOG_DEBUG : TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&s->loop, &err));
    TD_EQ(TD_OK, td_mailbox_open(s->loop, 4096, raw_server_message, s, &s->box, &err));
    echo_init(&s->echo, s->loop);
    if (conf != NULL)
        sc = *conf;
    sc.methods = s->echo.methods;
    sc.n_methods = ECHO_METHODS;
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &sc.listen, &err));
    TD_EQ(TD_OK, td_rpc_server_open(s->loop, &sc, &s->server, &err));
    s->port = td_rpc_server_port(s->server);
    TD_EQ(0, pthread_create(&s->thread, NULL, raw_server_run, s));
}

static inline void raw_server_stats(raw_server *s)
{
    int before = s->n_answers;
    TD_EQ(TD_OK, td_mailbox_push(s->box, "s", 1));
    while (s->n_answers == before)
        td_sleep_ms(1);
}

/* Waits until nothing is left of any connection: calls, connections, assembled bytes. */
static inline void raw_server_settles(raw_server *s)
{
    for (int i = 0; i < 5000; i++) {
        raw_server_stats(s);
        if (s->stats.n_calls == 0 && s->stats.n_connections == 0 && s->stats.assembly_bytes == 0)
            return;
        td_sleep_ms(2);
    }
    fail_msg("left: %u calls, %u connections, %zu bytes", s->stats.n_calls, s->stats.n_connections,
             s->stats.assembly_bytes);
}

static inline void raw_server_stop(raw_server *s)
{
    raw_server_settles(s);
    TD_EQ(TD_OK, td_mailbox_push(s->box, "q", 1));
    pthread_join(s->thread, NULL);
    td_loop_destroy(s->loop);
    TD_EQ(0, s->echo.n_live);
}

/* ---- the client ---- */

typedef struct {
    int fd;
    nghttp2_hd_deflater *deflater;
    nghttp2_hd_inflater *inflater;
    int byte_at_a_time;
    int mute; /* acknowledges no SETTINGS */
    /* what came back */
    uint32_t in_id;
    uint8_t in_type, in_flags;
    uint32_t in_len;
    uint8_t in[65536];
} raw_client;

/* rcvbuf: bytes that wait unread in the socket, set before the window is announced; 0: as usual. */
static inline void raw_connect_small(raw_client *c, uint16_t port, int rcvbuf)
{
    memset(c, 0, sizeof(*c));
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    TD_TRUE(c->fd >= 0);
    if (rcvbuf > 0)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof(rcvbuf));
    TD_EQ(0, connect(c->fd, (struct sockaddr *)&sa, sizeof(sa)));
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    TD_EQ(0, nghttp2_hd_deflate_new(&c->deflater, 4096));
    TD_EQ(0, nghttp2_hd_inflate_new(&c->inflater));
}

static inline void raw_connect(raw_client *c, uint16_t port)
{
    raw_connect_small(c, port, 0);
}

static inline void raw_close(raw_client *c)
{
    close(c->fd);
    nghttp2_hd_deflate_del(c->deflater);
    nghttp2_hd_inflate_del(c->inflater);
}

/* False: the server has closed. */
static inline bool raw_send(raw_client *c, const void *bytes, size_t len)
{
    const char *p = bytes;
    while (len > 0) {
        size_t step = c->byte_at_a_time ? 1 : len;
        ssize_t n = send(c->fd, p, step, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static inline bool raw_frame(raw_client *c, uint8_t type, uint8_t flags, uint32_t id,
                             const void *payload, size_t len)
{
    uint8_t *frame = malloc(9 + len);
    frame[0] = (uint8_t)(len >> 16);
    frame[1] = (uint8_t)(len >> 8);
    frame[2] = (uint8_t)len;
    frame[3] = type;
    frame[4] = flags;
    frame[5] = (uint8_t)(id >> 24);
    frame[6] = (uint8_t)(id >> 16);
    frame[7] = (uint8_t)(id >> 8);
    frame[8] = (uint8_t)id;
    if (len > 0)
        memcpy(frame + 9, payload, len);
    bool ok = raw_send(c, frame, 9 + len);
    free(frame);
    return ok;
}

static inline void raw_hello(raw_client *c)
{
    TD_TRUE(raw_send(c, NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN));
    TD_TRUE(raw_frame(c, NGHTTP2_SETTINGS, 0, 0, NULL, 0));
}

typedef struct {
    const char *name, *value;
} raw_header;

static inline size_t raw_deflate(raw_client *c, const raw_header *h, size_t n, uint8_t *out,
                                 size_t cap)
{
    nghttp2_nv nv[64];
    for (size_t i = 0; i < n; i++)
        nv[i] = (nghttp2_nv){(uint8_t *)h[i].name, (uint8_t *)h[i].value, strlen(h[i].name),
                             strlen(h[i].value), NGHTTP2_NV_FLAG_NONE};
    ssize_t len = nghttp2_hd_deflate_hd(c->deflater, out, cap, nv, n);
    TD_TRUE(len > 0);
    return (size_t)len;
}

/* The usual request; path NULL: Unary; extra: more headers, or replacements for those of the same
 * name. */
static inline bool raw_request(raw_client *c, uint32_t id, uint8_t flags, const char *path,
                               const raw_header *extra, size_t n_extra)
{
    raw_header h[48] = {{":method", "POST"},
                        {":scheme", "http"},
                        {":path", path != NULL ? path : "/test.Echo/Unary"},
                        {":authority", "test"},
                        {"content-type", "application/grpc"},
                        {"te", "trailers"}};
    size_t n = 6;
    for (size_t i = 0; i < n_extra; i++) {
        size_t at = 0;
        while (at < 6 && strcmp(h[at].name, extra[i].name) != 0)
            at++;
        h[at < 6 ? at : n++] = extra[i];
    }
    uint8_t block[32768];
    size_t len = raw_deflate(c, h, n, block, sizeof(block));
    return raw_frame(c, NGHTTP2_HEADERS, flags | NGHTTP2_FLAG_END_HEADERS, id, block, len);
}

/* One gRPC message as one DATA frame. */
static inline bool raw_message(raw_client *c, uint32_t id, uint8_t flags, uint8_t compressed,
                               const void *msg, uint32_t len)
{
    uint8_t *p = malloc(5 + (size_t)len);
    p[0] = compressed;
    p[1] = (uint8_t)(len >> 24);
    p[2] = (uint8_t)(len >> 16);
    p[3] = (uint8_t)(len >> 8);
    p[4] = (uint8_t)len;
    if (len > 0)
        memcpy(p + 5, msg, len);
    bool ok = raw_frame(c, NGHTTP2_DATA, flags, id, p, 5 + (size_t)len);
    free(p);
    return ok;
}

static inline bool raw_read_bytes(raw_client *c, void *out, size_t len, int timeout_ms)
{
    char *p = out;
    while (len > 0) {
        struct pollfd pfd = {.fd = c->fd, .events = POLLIN};
        if (poll(&pfd, 1, timeout_ms) <= 0)
            return false;
        ssize_t n = recv(c->fd, p, len, 0);
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* False: closed, or nothing within the time. */
static inline bool raw_read_frame(raw_client *c, int timeout_ms)
{
    uint8_t head[9];
    if (!raw_read_bytes(c, head, 9, timeout_ms))
        return false;
    c->in_len = (uint32_t)head[0] << 16 | (uint32_t)head[1] << 8 | head[2];
    c->in_type = head[3];
    c->in_flags = head[4];
    c->in_id = (uint32_t)(head[5] & 127) << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 |
               head[8];
    TD_TRUE(c->in_len <= sizeof(c->in));
    return raw_read_bytes(c, c->in, c->in_len, timeout_ms);
}

typedef struct {
    int http, grpc; /* -1: none came */
    char message[256], accept_encoding[32];
    uint8_t data[65536];
    size_t n_data;
    int reset, goaway; /* the error code, or -1 */
    bool ended, closed;
} raw_answer;

static inline void raw_take_headers(raw_client *c, raw_answer *a)
{
    const uint8_t *p = c->in;
    size_t len = c->in_len;
    for (;;) {
        nghttp2_nv nv;
        int flags = 0;
        ssize_t n = nghttp2_hd_inflate_hd2(c->inflater, &nv, &flags, p, len, 1);
        TD_TRUE(n >= 0);
        p += n;
        len -= (size_t)n;
        if (flags & NGHTTP2_HD_INFLATE_EMIT) {
            if (strcmp((char *)nv.name, ":status") == 0)
                a->http = (int)strtol((char *)nv.value, NULL, 10);
            if (strcmp((char *)nv.name, "grpc-status") == 0)
                a->grpc = (int)strtol((char *)nv.value, NULL, 10);
            if (strcmp((char *)nv.name, "grpc-message") == 0)
                snprintf(a->message, sizeof(a->message), "%s", (char *)nv.value);
            if (strcmp((char *)nv.name, "grpc-accept-encoding") == 0)
                snprintf(a->accept_encoding, sizeof(a->accept_encoding), "%s", (char *)nv.value);
        }
        if (flags & NGHTTP2_HD_INFLATE_FINAL) {
            nghttp2_hd_inflate_end_headers(c->inflater);
            return;
        }
        if (len == 0 && (flags & NGHTTP2_HD_INFLATE_EMIT) == 0)
            return;
    }
}

/* Reads until stream id has ended, the server says GOAWAY with an error, or closes. Acknowledges
 * SETTINGS. */
static inline void raw_read_answer(raw_client *c, uint32_t id, raw_answer *a, int timeout_ms)
{
    memset(a, 0, sizeof(*a));
    a->http = a->grpc = a->reset = a->goaway = -1;
    while (!a->ended) {
        if (!raw_read_frame(c, timeout_ms)) {
            a->closed = true;
            return;
        }
        if (c->in_type == NGHTTP2_SETTINGS && (c->in_flags & NGHTTP2_FLAG_ACK) == 0 && !c->mute)
            raw_frame(c, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, NULL, 0);
        if (c->in_type == NGHTTP2_GOAWAY)
            a->goaway = (int)c->in[7];
        if (c->in_type == NGHTTP2_HEADERS)
            raw_take_headers(c, a);
        if (c->in_id != id)
            continue;
        if (c->in_type == NGHTTP2_DATA && a->n_data + c->in_len <= sizeof(a->data)) {
            memcpy(a->data + a->n_data, c->in, c->in_len);
            a->n_data += c->in_len;
        }
        if (c->in_type == NGHTTP2_RST_STREAM) {
            a->reset = (int)c->in[3];
            a->ended = true;
        }
        if ((c->in_type == NGHTTP2_HEADERS || c->in_type == NGHTTP2_DATA) &&
            (c->in_flags & NGHTTP2_FLAG_END_STREAM))
            a->ended = true;
    }
}

/* ---- both ---- */

static inline void open_both(raw_server *s, raw_client *c, const td_rpc_server_conf *conf)
{
    raw_server_start(s, conf);
    raw_connect(c, s->port);
}

static inline void close_both(raw_server *s, raw_client *c)
{
    raw_close(c);
    raw_server_stop(s);
}

/* The server still serves others. */
static inline void still_serves(raw_server *s)
{
    raw_client c;
    raw_answer a;
    raw_connect(&c, s->port);
    raw_hello(&c);
    raw_request(&c, 1, 0, NULL, NULL, 0);
    raw_message(&c, 1, NGHTTP2_FLAG_END_STREAM, 0, "alive", 5);
    raw_read_answer(&c, 1, &a, 5000);
    TD_EQ(0, a.grpc);
    TD_MEM("\0\0\0\0\5alive", a.data, 10);
    raw_close(&c);
}

typedef struct {
    const char *what;
    uint8_t type, flags;
    uint32_t id;
    const char *payload;
    size_t len;
} bad_frame;
#endif
