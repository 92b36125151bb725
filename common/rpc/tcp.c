#include "common/rpc/tcp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

/* An outgoing connection walks over the addresses its name resolves to; each try has a fresh
 * socket, so the handle may be closed and opened again (TCP_BETWEEN). The memory goes when neither
 * handle nor resolver use it. */
typedef enum { TCP_RESOLVING, TCP_CONNECTING, TCP_BETWEEN, TCP_OPEN, TCP_ENDED } tcp_state;

struct td_tcp {
    td_conn conn;
    td_loop *loop;
    tcp_state state;
    bool closed;      /* by the owner */
    bool handle_live; /* uv_close() has not finished */
    bool resolving;   /* the resolver's callback is yet to come */
    uv_tcp_t handle;
    uv_connect_t connect;
    uv_getaddrinfo_t resolve;
    struct addrinfo *addrs, *next_addr;
    struct sockaddr_storage numeric;
    td_addr peer;
    td_task start;
    uv_write_t write;
    uint8_t *tail; /* of a write that the kernel did not take; NULL: none */
    int last_error;
};

static void try_next_address(td_tcp *tcp);

static void free_if_done(td_tcp *tcp)
{
    if (!tcp->closed || tcp->handle_live || tcp->resolving)
        return;
    td_task_cancel(&tcp->start);
    if (tcp->addrs != NULL)
        uv_freeaddrinfo(tcp->addrs);
    free(tcp->tail);
    if (tcp->conn.events != NULL)
        tcp->conn.events->on_closed(tcp->conn.user);
    free(tcp);
}

static void on_handle_closed(uv_handle_t *handle)
{
    td_tcp *tcp = handle->data;
    tcp->handle_live = false;
    if (tcp->closed)
        free_if_done(tcp);
    else if (tcp->state == TCP_BETWEEN)
        try_next_address(tcp);
}

static void end(td_tcp *tcp, td_status st, const char *what, const char *detail)
{
    td_err why;
    if (tcp->closed || tcp->state == TCP_ENDED)
        return;
    tcp->state = TCP_ENDED;
    td_fail(&why, st, "%s%s%s", what, detail[0] != '\0' ? ": " : "", detail);
    tcp->conn.events->on_end(tcp->conn.user, &why);
}

/* ---- reading ---- */

static void give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    td_tcp *tcp = handle->data;
    td_loop_scratch *scratch = td_loop_get_scratch(tcp->loop);
    (void)suggested;
    buf->base = (char *)scratch->read;
    buf->len = sizeof(scratch->read);
}

static void on_uv_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    td_tcp *tcp = stream->data;
    if (n > 0) {
        tcp->conn.events->on_read(tcp->conn.user, (const uint8_t *)buf->base, (size_t)n);
    } else if (n == UV_EOF) {
        uv_read_stop(stream);
        end(tcp, TD_PEER_LOST, "closed by the peer", "");
    } else if (n < 0) {
        uv_read_stop(stream);
        end(tcp, TD_PEER_LOST, "read failed", uv_strerror((int)n));
    }
}

static td_status go_open(td_tcp *tcp)
{
    uv_tcp_nodelay(&tcp->handle, 1);
    tcp->state = TCP_OPEN;
    int rc = uv_read_start((uv_stream_t *)&tcp->handle, give_buffer, on_uv_read);
    tcp->last_error = rc;
    return rc == 0 ? TD_OK : TD_IO;
}

/* ---- connecting ---- */

static void on_uv_connect(uv_connect_t *req, int rc)
{
    td_tcp *tcp = req->data;
    if (tcp->closed)
        return; /* the handle is being closed */
    if (rc == 0 && go_open(tcp) == TD_OK) {
        tcp->conn.events->on_open(tcp->conn.user);
        return;
    }
    tcp->last_error = rc != 0 ? rc : tcp->last_error;
    tcp->state = TCP_BETWEEN;
    uv_close((uv_handle_t *)&tcp->handle, on_handle_closed);
}

static int connect_to(td_tcp *tcp, const struct sockaddr *sa)
{
    int rc = uv_tcp_init(td_loop_uv(tcp->loop), &tcp->handle);
    if (rc != 0)
        return rc;
    tcp->handle.data = tcp->connect.data = tcp;
    tcp->handle_live = true;
    tcp->state = TCP_CONNECTING;
    rc = uv_tcp_connect(&tcp->connect, &tcp->handle, sa, on_uv_connect);
    if (rc != 0) {
        tcp->state = TCP_BETWEEN;
        tcp->last_error = rc;
        uv_close((uv_handle_t *)&tcp->handle, on_handle_closed);
    }
    return 0;
}

static void try_next_address(td_tcp *tcp)
{
    int rc = tcp->last_error;
    if (tcp->numeric.ss_family != AF_UNSPEC) {
        struct sockaddr_storage sa = tcp->numeric;
        tcp->numeric.ss_family = AF_UNSPEC; /* one try */
        rc = connect_to(tcp, (const struct sockaddr *)&sa);
        if (rc == 0)
            return;
    } else if (tcp->next_addr != NULL) {
        const struct sockaddr *sa = tcp->next_addr->ai_addr;
        tcp->next_addr = tcp->next_addr->ai_next;
        rc = connect_to(tcp, sa);
        if (rc == 0)
            return;
    }
    end(tcp, TD_PEER_LOST, "cannot connect", rc == 0 ? "no address" : uv_strerror(rc));
}

static void on_resolved(uv_getaddrinfo_t *req, int rc, struct addrinfo *res)
{
    td_tcp *tcp = req->data;
    tcp->resolving = false;
    tcp->addrs = tcp->next_addr = res;
    if (tcp->closed) {
        free_if_done(tcp);
        return;
    }
    if (rc != 0)
        end(tcp, TD_PEER_LOST, "cannot resolve the name", uv_strerror(rc));
    else
        try_next_address(tcp);
}

static void start_connecting(td_task *task, void *user)
{
    td_tcp *tcp = user;
    (void)task;
    if (uv_ip4_addr(tcp->peer.host, tcp->peer.port, (struct sockaddr_in *)&tcp->numeric) == 0 ||
        uv_ip6_addr(tcp->peer.host, tcp->peer.port, (struct sockaddr_in6 *)&tcp->numeric) == 0) {
        try_next_address(tcp);
        return;
    }
    tcp->numeric.ss_family = AF_UNSPEC;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    char port[8];
    snprintf(port, sizeof(port), "%u", (unsigned)tcp->peer.port);
    tcp->resolve.data = tcp;
    int rc = uv_getaddrinfo(td_loop_uv(tcp->loop), &tcp->resolve, on_resolved, tcp->peer.host, port,
                            &hints);
    if (rc != 0)
        end(tcp, TD_PEER_LOST, "cannot resolve the name", uv_strerror(rc));
    else
        tcp->resolving = true;
}

/* ---- the vtable ---- */

static void on_uv_written(uv_write_t *req, int rc)
{
    td_tcp *tcp = req->data;
    free(tcp->tail);
    tcp->tail = NULL;
    if (tcp->closed)
        return;
    if (rc != 0)
        end(tcp, TD_PEER_LOST, "write failed", uv_strerror(rc));
    else
        tcp->conn.events->on_drained(tcp->conn.user);
}

static td_status tcp_write(td_conn *conn, const uint8_t *data, size_t len)
{
    td_tcp *tcp = (td_tcp *)conn;
    td_assert(tcp->tail == NULL);
    if (tcp->state != TCP_OPEN)
        return TD_PEER_LOST;
    uv_stream_t *stream = (uv_stream_t *)&tcp->handle;
    uv_buf_t buf = uv_buf_init((char *)data, (unsigned)len);
    int n = uv_try_write(stream, &buf, 1);
    if (n == UV_EAGAIN)
        n = 0;
    if (n < 0)
        return TD_PEER_LOST;
    if ((size_t)n == len)
        return TD_OK;
    len -= (size_t)n;
    tcp->tail = malloc(len);
    if (tcp->tail == NULL)
        return TD_NOMEM;
    memcpy(tcp->tail, data + n, len);
    buf = uv_buf_init((char *)tcp->tail, (unsigned)len);
    tcp->write.data = tcp;
    if (uv_write(&tcp->write, stream, &buf, 1, on_uv_written) != 0) {
        free(tcp->tail);
        tcp->tail = NULL;
        return TD_PEER_LOST;
    }
    return TD_PENDING;
}

static size_t tcp_unsent_bytes(const td_conn *conn)
{
    const td_tcp *tcp = (const td_tcp *)conn;
    return tcp->tail == NULL ? 0
                             : uv_stream_get_write_queue_size((const uv_stream_t *)&tcp->handle);
}

static void tcp_pause(td_conn *conn, bool paused)
{
    td_tcp *tcp = (td_tcp *)conn;
    if (tcp->state != TCP_OPEN || tcp->closed)
        return;
    if (paused)
        uv_read_stop((uv_stream_t *)&tcp->handle);
    else
        uv_read_start((uv_stream_t *)&tcp->handle, give_buffer, on_uv_read); /* cannot fail now */
}

static void finish_close(td_task *task, void *user)
{
    (void)task;
    free_if_done(user);
}

static void tcp_close(td_conn *conn)
{
    td_tcp *tcp = (td_tcp *)conn;
    if (tcp->closed)
        return;
    tcp->closed = true;
    if (tcp->resolving)
        uv_cancel((uv_req_t *)&tcp->resolve); /* if it runs already, it ends when it ends */
    if (tcp->handle_live) {
        if (!uv_is_closing((uv_handle_t *)&tcp->handle))
            uv_close((uv_handle_t *)&tcp->handle, on_handle_closed);
    } else if (!tcp->resolving) { /* nothing in libuv: on_closed still comes from the loop */
        td_task_cancel(&tcp->start);
        td_task_init(&tcp->start, tcp->loop, finish_close, tcp);
        td_task_defer(&tcp->start);
    }
}

static const td_conn_ops tcp_ops = {tcp_write, tcp_unsent_bytes, tcp_pause, tcp_close};

/* ---- for conn.c and listener.c ---- */

static td_tcp *new_tcp(td_loop *loop, const td_conn_events *events, void *user)
{
    td_tcp *tcp = calloc(1, sizeof(*tcp));
    if (tcp == NULL)
        return NULL;
    tcp->conn.ops = &tcp_ops;
    tcp->conn.events = events;
    tcp->conn.user = user;
    tcp->loop = loop;
    return tcp;
}

td_status td_tcp_connect(td_loop *loop, const td_addr *peer, const td_conn_events *events,
                         void *user, td_conn **out, td_err *err)
{
    td_tcp *tcp = new_tcp(loop, events, user);
    if (tcp == NULL)
        return td_fail(err, TD_NOMEM, "connection: out of memory");
    tcp->peer = *peer;
    td_addr_format(peer, tcp->conn.peer);
    td_task_init(&tcp->start, loop, start_connecting, tcp);
    td_task_defer(&tcp->start);
    *out = &tcp->conn;
    return TD_OK;
}

td_tcp *td_tcp_new(td_loop *loop, const td_conn_events *events, void *user)
{
    td_tcp *tcp = new_tcp(loop, events, user);
    if (tcp == NULL)
        return NULL;
    if (uv_tcp_init(td_loop_uv(loop), &tcp->handle) != 0) {
        free(tcp);
        return NULL;
    }
    tcp->handle.data = tcp;
    tcp->handle_live = true;
    return tcp;
}

uv_stream_t *td_tcp_stream(td_tcp *tcp)
{
    return (uv_stream_t *)&tcp->handle;
}

td_conn *td_tcp_conn(td_tcp *tcp)
{
    return &tcp->conn;
}

td_status td_tcp_start(td_tcp *tcp, td_err *err)
{
    struct sockaddr_storage sa;
    int len = sizeof(sa);
    if (uv_tcp_getpeername(&tcp->handle, (struct sockaddr *)&sa, &len) == 0)
        td_tcp_name((const struct sockaddr *)&sa, tcp->conn.peer, sizeof(tcp->conn.peer));
    else /* gone already: reading will tell */
        snprintf(tcp->conn.peer, sizeof(tcp->conn.peer), "unknown");
    if (go_open(tcp) != TD_OK)
        return td_fail(err, TD_IO, "accepted connection: %s", uv_strerror(tcp->last_error));
    return TD_OK;
}

void td_tcp_abandon(td_tcp *tcp)
{
    tcp->conn.events = NULL;
    tcp_close(&tcp->conn);
}

void td_tcp_name(const struct sockaddr *sa, char *out, size_t out_size)
{
    char ip[64] = "?";
    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
        uv_ip4_name(in, ip, sizeof(ip));
        snprintf(out, out_size, "%s:%u", ip, (unsigned)ntohs(in->sin_port));
    } else {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
        uv_ip6_name(in6, ip, sizeof(ip));
        snprintf(out, out_size, "[%s]:%u", ip, (unsigned)ntohs(in6->sin6_port));
    }
}
