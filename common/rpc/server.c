#include "common/rpc/server.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/server_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DRAIN_NOTICE_MS = 100, /* streams that were underway at the first GOAWAY arrive within it */
    STREAM_FRAMES = 2,     /* other than DATA, that an open stream may have in the queue */
    MORE_QUEUED = 2048,    /* frames of a connection that belong to no stream, or to refused ones */
    SHARES = 8,            /* that it takes to use up a server's bound */
};

static void settle(td_task *task, void *user)
{
    td_rpc_server *server = user;
    (void)task;
    if (server->conns != NULL || !server->listener_gone)
        return;
    if (server->closing) {
        if (server->on_closed != NULL)
            server->on_closed(server->closed_user);
        free(server->by_path);
        free(server);
    } else if (server->draining && server->on_drained != NULL) {
        void (*on_drained)(void *) = server->on_drained;
        server->on_drained = NULL; /* once */
        on_drained(server->drained_user);
    }
}

/* ---- connections ---- */

static void on_trailers(td_h2_stream *s)
{
    (void)s; /* a request's trailers mean nothing in gRPC */
}

static void on_dead(td_h2 *h2, const td_err *why)
{
    td_rpc_server *server = h2->owner;
    const char *name = server->conf.name, *peer = h2->conn->peer;
    if (why->status == TD_PROTOCOL || why->status == TD_NOMEM)
        td_warn("rpc.conn.end", "name=%s peer=%s calls=%u why=\"%s\"", name, peer, h2->n_streams,
                why->text);
    else if (h2->n_streams > 0 && why->status != TD_CANCELLED)
        td_info("rpc.conn.end", "name=%s peer=%s calls=%u why=\"%s\"", name, peer, h2->n_streams,
                why->text);
    else
        td_debug("rpc.conn.end", "name=%s peer=%s why=\"%s\"", name, peer, why->text);
}

static void on_gone(td_h2 *h2)
{
    td_rpc_server *server = h2->owner;
    if (h2->prev != NULL)
        h2->prev->next = h2->next;
    else
        server->conns = h2->next;
    if (h2->next != NULL)
        h2->next->prev = h2->prev;
    td_metric_set(server->m_connections, --server->stats.n_connections);
    td_task_defer(&server->settle);
}

const td_h2_events td_rpc_server_h2_events = {
    .on_begin = td_rpc_call_begin,
    .on_headers = td_rpc_call_on_headers,
    .on_trailers = on_trailers,
    .on_data = td_rpc_call_on_data,
    .on_end_stream = td_rpc_call_on_end_stream,
    .on_eof = td_rpc_call_on_eof,
    .on_close = td_rpc_call_on_close,
    .on_dead = on_dead,
    .on_gone = on_gone,
};

static void on_conn(void *user)
{
    td_rpc_server *server = user;
    const td_rpc_server_conf *c = &server->conf;
    td_h2 *h2 = NULL;
    td_conn *conn;
    td_err err;
    if (server->stats.n_connections >= c->max_connections) {
        td_listener_refuse(server->listener);
        td_metric_add(server->m_refused, 1);
        if (server->stats.n_refused++ == 0)
            td_warn("rpc.conn.refused", "name=%s connections=%u", c->name,
                    server->stats.n_connections);
        return;
    }
    td_h2_limits limits = {
        .server = true,
        .max_streams = c->max_streams,
        .max_queue = STREAM_FRAMES * c->max_streams + MORE_QUEUED,
        .max_header_bytes = c->max_header_bytes,
        .handshake_ms = c->handshake_ms,
        .header_ms = c->header_ms,
        .idle_ms = c->idle_ms,
        .stall_ms = c->stall_ms,
        .keepalive_ms = c->keepalive_ms,
        .keepalive_reply_ms = c->keepalive_reply_ms,
    };
    td_status st = td_h2_new(server->loop, &limits, &td_rpc_server_h2_events, server, &h2, &err);
    if (st < 0)
        td_listener_refuse(server->listener);
    else
        st = td_listener_accept(server->listener, &td_h2_conn_events, h2, &conn, &err);
    if (st < 0) {
        td_h2_discard(h2);
        td_metric_add(server->m_refused, 1);
        server->stats.n_refused++;
        td_warn("rpc.conn.refused", "name=%s why=\"%s\"", c->name, err.text);
        return;
    }
    h2->assembly = (td_budget){.max = c->max_connection_assembly_bytes, .whole = &server->assembly};
    h2->queued = (td_budget){.max = c->max_connection_queued_bytes, .whole = &server->queued};
    h2->next = server->conns;
    if (h2->next != NULL)
        h2->next->prev = h2;
    server->conns = h2;
    td_metric_set(server->m_connections, ++server->stats.n_connections);
    server->stats.n_accepted++;
    td_h2_start(h2, conn, true);
}

/* ---- configuration ---- */

static void default_ms(int64_t *value, int64_t ms)
{
    if (*value == 0)
        *value = ms;
}

static void default_size(size_t *value, size_t n)
{
    if (*value == 0)
        *value = n;
}

/* Of a bound over all connections; a message of the largest size must fit. */
static size_t share_of(size_t bound, size_t max_message_bytes)
{
    size_t one = max_message_bytes + TD_FRAME_HEAD_BYTES;
    return bound / SHARES > one ? bound / SHARES : one;
}

static void set_defaults(td_rpc_server_conf *c)
{
    if (c->name == NULL)
        c->name = "rpc";
    if (c->max_connections == 0)
        c->max_connections = 1024;
    if (c->max_streams == 0)
        c->max_streams = 1024;
    default_size(&c->max_message_bytes, (size_t)4 << 20);
    default_size(&c->max_backlog_bytes, (size_t)1 << 20);
    default_size(&c->max_header_bytes, (size_t)16 << 10);
    default_size(&c->max_assembly_bytes, (size_t)256 << 20);
    default_size(&c->max_queued_bytes, (size_t)512 << 20);
    default_size(&c->max_connection_assembly_bytes,
                 share_of(c->max_assembly_bytes, c->max_message_bytes));
    default_size(&c->max_connection_queued_bytes,
                 share_of(c->max_queued_bytes, c->max_message_bytes));
    default_ms(&c->handshake_ms, 10000);
    default_ms(&c->header_ms, 10000);
    default_ms(&c->request_ms, 60000);
    default_ms(&c->idle_ms, 600000);
    default_ms(&c->stall_ms, 20000);
    default_ms(&c->keepalive_ms, 20000);
    default_ms(&c->keepalive_reply_ms, 10000);
}

static int compare_paths(const void *a, const void *b)
{
    const td_rpc_method *const *x = a, *const *y = b;
    return strcmp((*x)->path, (*y)->path);
}

static td_status sort_methods(td_rpc_server *server, td_err *err)
{
    const td_rpc_server_conf *c = &server->conf;
    if (c->n_methods == 0)
        return td_fail(err, TD_CONFIG, "rpc server: no methods");
    server->by_path = malloc(c->n_methods * sizeof(*server->by_path));
    if (server->by_path == NULL)
        return td_fail(err, TD_NOMEM, "rpc server: out of memory");
    for (uint32_t i = 0; i < c->n_methods; i++) {
        const td_rpc_method *m = &c->methods[i];
        if (m->path == NULL || m->path[0] != '/' || m->on_message == NULL)
            return td_fail(err, TD_CONFIG, "rpc server: bad row %u in the method table", i);
        server->by_path[i] = m;
    }
    qsort(server->by_path, c->n_methods, sizeof(*server->by_path), compare_paths);
    for (uint32_t i = 1; i < c->n_methods; i++)
        if (strcmp(server->by_path[i - 1]->path, server->by_path[i]->path) == 0)
            return td_fail(err, TD_CONFIG, "rpc server: %s is there twice",
                           server->by_path[i]->path);
    return TD_OK;
}

const td_rpc_method *td_rpc_server_find(const td_rpc_server *server, const char *path)
{
    td_rpc_method key = {.path = path};
    const td_rpc_method *p = &key;
    const td_rpc_method **row = bsearch(&p, server->by_path, server->conf.n_methods,
                                        sizeof(*server->by_path), compare_paths);
    return row == NULL ? NULL : *row;
}

/* ---- the server's life ---- */

static void on_listener_closed(void *user)
{
    td_rpc_server *server = user;
    server->listener_gone = true;
    td_task_defer(&server->settle);
}

static void stop_listening(td_rpc_server *server)
{
    if (server->listener == NULL)
        return;
    td_listener_close(server->listener, on_listener_closed);
    server->listener = NULL;
}

static void on_drain_timer(td_timer *timer, void *user)
{
    td_rpc_server *server = user;
    (void)timer;
    for (td_h2 *h2 = server->conns; h2 != NULL; h2 = h2->next)
        td_h2_goaway(h2, false);
}

static void add_metrics(td_rpc_server *server)
{
    td_metrics *m = server->conf.metrics;
    char labels[80];
    if (m == NULL)
        return;
    snprintf(labels, sizeof(labels), "server=\"%.64s\"", server->conf.name);
    server->m_connections = td_metrics_get(m, TD_GAUGE, "tandem_rpc_connections", labels,
                                           "connections to the gRPC server");
    server->m_refused = td_metrics_get(m, TD_COUNTER, "tandem_rpc_connections_refused_total",
                                       labels, "connections refused for their number or memory");
    server->m_cut_off = td_metrics_get(m, TD_COUNTER, "tandem_rpc_calls_cut_off_total", labels,
                                       "calls whose client did not read its answer");
}

td_status td_rpc_server_open(td_loop *loop, const td_rpc_server_conf *conf, td_rpc_server **out,
                             td_err *err)
{
    td_rpc_server *server = calloc(1, sizeof(*server));
    if (server == NULL)
        return td_fail(err, TD_NOMEM, "rpc server: out of memory");
    server->loop = loop;
    server->conf = *conf;
    set_defaults(&server->conf);
    server->assembly.max = server->conf.max_assembly_bytes;
    server->queued.max = server->conf.max_queued_bytes;
    add_metrics(server);
    td_timer_init(&server->drain_timer, loop, on_drain_timer, server);
    td_task_init(&server->settle, loop, settle, server);
    td_status st = sort_methods(server, err);
    if (st == TD_OK)
        st = td_listener_open(loop, &conf->listen, conf->security, on_conn, server,
                              &server->listener, err);
    if (st < 0) {
        free(server->by_path);
        free(server);
        return st;
    }
    *out = server;
    return TD_OK;
}

uint16_t td_rpc_server_port(const td_rpc_server *server)
{
    return server->listener == NULL ? 0 : td_listener_port(server->listener);
}

void td_rpc_server_get_stats(const td_rpc_server *server, td_rpc_server_stats *out)
{
    *out = server->stats;
    out->assembly_bytes = server->assembly.used;
    out->queued_bytes = server->queued.used;
    for (const td_h2 *h2 = server->conns; h2 != NULL; h2 = h2->next)
        out->unsent_bytes += td_conn_unsent_bytes(h2->conn);
}

void td_rpc_server_drain(td_rpc_server *server, void (*on_drained)(void *user), void *user)
{
    if (server->draining || server->closing)
        return;
    server->draining = true;
    server->on_drained = on_drained;
    server->drained_user = user;
    stop_listening(server);
    for (td_h2 *h2 = server->conns; h2 != NULL; h2 = h2->next)
        td_h2_goaway(h2, true);
    td_timer_at(&server->drain_timer, td_now_ns() + DRAIN_NOTICE_MS * TD_NS_PER_MS);
}

void td_rpc_server_close(td_rpc_server *server, void (*on_closed)(void *user), void *user)
{
    if (server == NULL || server->closing)
        return;
    server->closing = true;
    server->on_closed = on_closed;
    server->closed_user = user;
    td_timer_stop(&server->drain_timer);
    stop_listening(server);
    for (td_h2 *h2 = server->conns; h2 != NULL; h2 = h2->next)
        td_h2_kill(h2, TD_CANCELLED, "the server closes");
    td_task_defer(&server->settle);
}
