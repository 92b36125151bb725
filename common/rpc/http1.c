#include "common/rpc/http1.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/conn.h"
#include "common/rpc/http1_parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* READING: waiting for the rest of a request. WRITING: the peer takes the answer, reading is
 * paused. CLOSING. */
typedef enum { HTTP_READING, HTTP_WRITING, HTTP_CLOSING } http_state;

#define BIT(s) (1U << (s))

static const struct {
    const char *name;
    unsigned may_enter; /* one bit per next state */
} http_states[] = {
    [HTTP_READING] = {"reading", BIT(HTTP_WRITING) | BIT(HTTP_CLOSING)},
    [HTTP_WRITING] = {"writing", BIT(HTTP_READING) | BIT(HTTP_CLOSING)},
    [HTTP_CLOSING] = {"closing", 0},
};

typedef struct http_conn http_conn;

struct http_conn {
    td_http_server *server;
    td_conn *conn;
    http_conn *prev, *next;
    http_state state;
    bool last; /* close when the answer is out */
    td_timer timer;
    size_t len;
    char buf[]; /* [max_request_bytes]; the first len came from the peer */
};

struct td_http_server {
    td_loop *loop;
    td_http_server_conf conf;
    td_listener *listener;
    bool listener_gone, closing;
    http_conn *conns;
    uint32_t n_conns;
    td_task settle;
    void (*on_closed)(void *user);
    void *closed_user;
};

static void settle(td_task *task, void *user)
{
    td_http_server *server = user;
    (void)task;
    if (!server->closing || !server->listener_gone || server->conns != NULL)
        return;
    if (server->on_closed != NULL)
        server->on_closed(server->closed_user);
    free(server);
}

/* ---- a connection ---- */

static void enter(http_conn *c, http_state next)
{
    td_assert((http_states[c->state].may_enter & BIT(next)) != 0);
    if (td_log_enabled(TD_LOG_DEBUG))
        td_debug("http.conn", "peer=%s from=%s to=%s", c->conn->peer, http_states[c->state].name,
                 http_states[next].name);
    c->state = next;
}

static void shut(http_conn *c)
{
    if (c->state == HTTP_CLOSING)
        return;
    enter(c, HTTP_CLOSING);
    td_timer_stop(&c->timer);
    td_conn_close(c->conn);
}

static void set_timer(http_conn *c, int64_t ms)
{
    td_timer_at(&c->timer, td_now_ns() + ms * TD_NS_PER_MS);
}

static void on_timer(td_timer *timer, void *user)
{
    (void)timer;
    shut(user);
}

/* The answer has left: the next request, or the end. */
static void answered(http_conn *c)
{
    if (c->last) {
        shut(c);
    } else {
        if (c->state == HTTP_WRITING)
            enter(c, HTTP_READING);
        set_timer(c, c->len > 0 ? c->server->conf.request_ms : c->server->conf.idle_ms);
    }
}

static void respond(http_conn *c, const td_http_response *res, bool head_only)
{
    char head[512];
    int n_head = snprintf(head, sizeof(head),
                          "HTTP/1.1 %d %s\r\nContent-Type: %.128s\r\nContent-Length: %zu\r\n"
                          "Connection: %s\r\n%s\r\n",
                          res->status, td_http1_reason(res->status), res->content_type,
                          res->n_bytes, c->last ? "close" : "keep-alive",
                          res->status == 405 ? "Allow: GET, HEAD\r\n" : "");
    size_t n_body = head_only ? 0 : res->n_bytes, n = (size_t)n_head + n_body;
    uint8_t *bytes = malloc(n);
    if (bytes == NULL) {
        shut(c);
        return;
    }
    memcpy(bytes, head, (size_t)n_head);
    if (n_body > 0)
        memcpy(bytes + n_head, res->body, n_body);
    td_status st = td_conn_write(c->conn, bytes, n);
    free(bytes);
    if (st == TD_PENDING) {
        enter(c, HTTP_WRITING);
        td_conn_pause(c->conn, true);
        set_timer(c, c->server->conf.write_ms);
    } else if (st < 0) {
        shut(c);
    } else {
        answered(c);
    }
}

static void respond_error(http_conn *c, int status, bool head_only)
{
    char body[64];
    snprintf(body, sizeof(body), "%d %s\n", status, td_http1_reason(status));
    td_http_response res = {.status = status,
                            .content_type = "text/plain; charset=utf-8",
                            .body = body,
                            .n_bytes = strlen(body)};
    respond(c, &res, head_only);
}

static void serve(http_conn *c, const td_http1_head *head)
{
    const td_http_server_conf *conf = &c->server->conf;
    bool head_only = strcmp(head->method, "HEAD") == 0;
    c->last = !head->keep_alive;
    if (head->content_length > 0) { /* its bytes would be taken for the next request */
        c->last = true;
        respond_error(c, 413, head_only);
        return;
    }
    if (!head_only && strcmp(head->method, "GET") != 0) {
        respond_error(c, 405, false);
        return;
    }
    for (uint32_t i = 0; i < conf->n_routes; i++) {
        if (strcmp(conf->routes[i].path, head->path) != 0)
            continue;
        td_http_request req = {head->path, head->query, c->conn->peer};
        td_http_response res = {.status = 200, .content_type = "text/plain; charset=utf-8"};
        conf->routes[i].handler(conf->routes[i].user, &req, &res);
        if (c->state == HTTP_READING) /* the handler may have closed the server */
            respond(c, &res, head_only);
        if (res.free_body != NULL)
            res.free_body((void *)res.body);
        return;
    }
    respond_error(c, 404, head_only);
}

/* Answers the requests that are complete in the buffer, one after the other. */
static void serve_buffered(http_conn *c)
{
    while (c->state == HTTP_READING && c->len > 0) {
        td_http1_head head;
        int status = 400;
        td_status st = td_http1_parse(c->buf, c->len, &head, &status);
        if (st == TD_PENDING) {
            if (c->len < c->server->conf.max_request_bytes)
                return;
            st = TD_INVALID;
            status = 431;
        }
        if (st < 0) {
            c->last = true;
            respond_error(c, status, false);
            return;
        }
        c->len -= head.n_bytes;
        memmove(c->buf, c->buf + head.n_bytes, c->len);
        serve(c, &head);
        td_http1_head_fini(&head);
    }
}

static void on_read(void *user, const uint8_t *data, size_t len)
{
    http_conn *c = user;
    while (len > 0 && c->state != HTTP_CLOSING) {
        size_t room = c->server->conf.max_request_bytes - c->len;
        size_t take = len < room ? len : room;
        if (take == 0) { /* while an answer is being taken: a flood of requests */
            shut(c);
            return;
        }
        if (c->len == 0 && c->state == HTTP_READING)
            set_timer(c, c->server->conf.request_ms);
        memcpy(c->buf + c->len, data, take);
        c->len += take;
        data += take;
        len -= take;
        serve_buffered(c);
    }
}

static void on_drained(void *user)
{
    http_conn *c = user;
    if (c->state != HTTP_WRITING)
        return;
    td_conn_pause(c->conn, false);
    answered(c);
    serve_buffered(c);
}

static void on_end(void *user, const td_err *why)
{
    (void)why; /* scrapers come and go */
    shut(user);
}

static void on_closed(void *user)
{
    http_conn *c = user;
    td_http_server *server = c->server;
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        server->conns = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    server->n_conns--;
    free(c);
    td_task_defer(&server->settle);
}

static const td_conn_events conn_events = {NULL, on_read, on_drained, on_end, on_closed};

static void on_conn(void *user)
{
    td_http_server *server = user;
    td_err err;
    http_conn *c = NULL;
    if (server->n_conns < server->conf.max_connections)
        c = malloc(sizeof(*c) + server->conf.max_request_bytes);
    if (c == NULL) {
        td_listener_refuse(server->listener);
        return;
    }
    memset(c, 0, sizeof(*c));
    c->server = server;
    td_timer_init(&c->timer, server->loop, on_timer, c);
    if (td_listener_accept(server->listener, &conn_events, c, &c->conn, &err) < 0) {
        td_warn("http.conn.refused", "name=%s why=\"%s\"", server->conf.name, err.text);
        free(c);
        return;
    }
    c->next = server->conns;
    if (c->next != NULL)
        c->next->prev = c;
    server->conns = c;
    server->n_conns++;
    set_timer(c, server->conf.request_ms);
}

/* ---- the server ---- */

static void on_listener_closed(void *user)
{
    td_http_server *server = user;
    server->listener_gone = true;
    td_task_defer(&server->settle);
}

td_status td_http_server_open(td_loop *loop, const td_http_server_conf *conf, td_http_server **out,
                              td_err *err)
{
    td_http_server *server = calloc(1, sizeof(*server));
    if (server == NULL)
        return td_fail(err, TD_NOMEM, "http server: out of memory");
    td_http_server_conf *c = &server->conf;
    *c = *conf;
    c->name = c->name != NULL ? c->name : "http";
    c->max_connections = c->max_connections != 0 ? c->max_connections : 64;
    c->max_request_bytes = c->max_request_bytes != 0 ? c->max_request_bytes : 8192;
    c->request_ms = c->request_ms != 0 ? c->request_ms : 5000;
    c->idle_ms = c->idle_ms != 0 ? c->idle_ms : 30000;
    c->write_ms = c->write_ms != 0 ? c->write_ms : 10000;
    server->loop = loop;
    td_task_init(&server->settle, loop, settle, server);
    td_status st =
        td_listener_open(loop, &c->listen, TD_PLAINTEXT, on_conn, server, &server->listener, err);
    if (st < 0) {
        free(server);
        return st;
    }
    *out = server;
    return TD_OK;
}

uint16_t td_http_server_port(const td_http_server *server)
{
    return td_listener_port(server->listener);
}

void td_http_server_close(td_http_server *server, void (*on_closed_fn)(void *user), void *user)
{
    if (server == NULL || server->closing)
        return;
    server->closing = true;
    server->on_closed = on_closed_fn;
    server->closed_user = user;
    td_listener_close(server->listener, on_listener_closed);
    for (http_conn *c = server->conns; c != NULL; c = c->next)
        shut(c);
}
