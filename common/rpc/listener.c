/* listener.c - a listening socket. libuv stops listening until a connection that it has announced
 * is accepted, so one that is not wanted (or for which there is no memory) is accepted into `spare`
 * and closed. */
#include "common/rpc/tcp.h"

#include "common/base/clock.h"
#include "common/base/log.h"

#include <stdlib.h>
#include <string.h>
#include <uv.h>

struct td_listener {
    td_loop *loop;
    uv_tcp_t handle, spare;
    bool spare_busy, refuse_again, closing;
    int n_live; /* handles not closed */
    uint16_t port;
    int64_t warned_ns;
    void (*on_conn)(void *user);
    void (*on_closed)(void *user);
    void *user;
};

enum { BACKLOG = 511 };

static void on_uv_conn(uv_stream_t *server, int status)
{
    td_listener *l = server->data;
    if (status == 0) {
        l->on_conn(l->user);
        return;
    }
    int64_t now = td_now_ns(); /* out of descriptors, most likely: libuv sheds the connection */
    if (now - l->warned_ns < TD_NS_PER_S)
        return;
    l->warned_ns = now;
    td_warn("listen.accept", "port=%u why=\"%s\"", (unsigned)l->port, uv_strerror(status));
}

static void on_part_closed(uv_handle_t *handle)
{
    td_listener *l = handle->data;
    bool was_spare = handle == (uv_handle_t *)&l->spare;
    l->n_live--;
    if (was_spare)
        l->spare_busy = false;
    if (l->closing) {
        if (l->n_live > 0)
            return;
        if (l->on_closed != NULL)
            l->on_closed(l->user);
        free(l);
    } else if (was_spare && l->refuse_again) {
        l->refuse_again = false;
        td_listener_refuse(l);
    }
}

void td_listener_refuse(td_listener *l)
{
    if (l->spare_busy) {
        l->refuse_again = true;
        return;
    }
    uv_tcp_init(td_loop_uv(l->loop), &l->spare);
    l->spare.data = l;
    l->spare_busy = true;
    l->n_live++;
    uv_accept((uv_stream_t *)&l->handle, (uv_stream_t *)&l->spare);
    uv_close((uv_handle_t *)&l->spare, on_part_closed);
}

td_status td_listener_accept(td_listener *l, const td_conn_events *events, void *user,
                             td_conn **out, td_err *err)
{
    td_tcp *tcp = td_tcp_new(l->loop, events, user);
    if (tcp == NULL) {
        td_listener_refuse(l);
        return td_fail(err, TD_NOMEM, "accepted connection: out of memory");
    }
    int rc = uv_accept((uv_stream_t *)&l->handle, td_tcp_stream(tcp));
    td_status st =
        rc == 0 ? td_tcp_start(tcp, err) : td_fail(err, TD_IO, "accept: %s", uv_strerror(rc));
    if (st < 0) {
        td_tcp_abandon(tcp);
        return st;
    }
    *out = td_tcp_conn(tcp);
    return TD_OK;
}

/* Boot may wait for a name server; run time never comes here. */
static int resolve(td_loop *loop, const td_addr *addr, struct sockaddr_storage *out)
{
    if (uv_ip4_addr(addr->host, addr->port, (struct sockaddr_in *)out) == 0 ||
        uv_ip6_addr(addr->host, addr->port, (struct sockaddr_in6 *)out) == 0)
        return 0;
    uv_getaddrinfo_t req;
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    int rc = uv_getaddrinfo(td_loop_uv(loop), &req, NULL, addr->host, NULL, &hints);
    if (rc != 0)
        return rc;
    memcpy(out, req.addrinfo->ai_addr, req.addrinfo->ai_addrlen);
    uv_freeaddrinfo(req.addrinfo);
    if (out->ss_family == AF_INET)
        ((struct sockaddr_in *)out)->sin_port = htons(addr->port);
    else
        ((struct sockaddr_in6 *)out)->sin6_port = htons(addr->port);
    return 0;
}

static int bind_and_listen(td_listener *l, const struct sockaddr_storage *sa)
{
    struct sockaddr_storage got;
    int len = sizeof(got);
    int rc = uv_tcp_bind(&l->handle, (const struct sockaddr *)sa, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)&l->handle, BACKLOG, on_uv_conn);
    if (rc == 0)
        rc = uv_tcp_getsockname(&l->handle, (struct sockaddr *)&got, &len);
    if (rc != 0)
        return rc;
    l->port = ntohs(got.ss_family == AF_INET ? ((struct sockaddr_in *)&got)->sin_port
                                             : ((struct sockaddr_in6 *)&got)->sin6_port);
    return 0;
}

td_status td_listener_open(td_loop *loop, const td_addr *addr, td_security security,
                           void (*on_conn)(void *user), void *user, td_listener **out, td_err *err)
{
    struct sockaddr_storage sa;
    char text[272];
    td_addr_format(addr, text);
    if (security != TD_PLAINTEXT)
        return td_fail(err, TD_UNSUPPORTED, "%s: TLS is not supported yet", text);
    int rc = resolve(loop, addr, &sa);
    if (rc != 0)
        return td_fail(err, TD_CONFIG, "cannot resolve %s: %s", text, uv_strerror(rc));
    td_listener *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return td_fail(err, TD_NOMEM, "listener: out of memory");
    l->loop = loop;
    l->on_conn = on_conn;
    l->user = user;
    rc = uv_tcp_init(td_loop_uv(loop), &l->handle);
    if (rc != 0) {
        free(l);
        return td_fail(err, TD_IO, "cannot listen on %s: %s", text, uv_strerror(rc));
    }
    l->handle.data = l;
    l->n_live = 1;
    rc = bind_and_listen(l, &sa);
    if (rc != 0) {
        td_listener_close(l, NULL);
        return td_fail(err, TD_IO, "cannot listen on %s: %s", text, uv_strerror(rc));
    }
    *out = l;
    return TD_OK;
}

uint16_t td_listener_port(const td_listener *l)
{
    return l->port;
}

void td_listener_close(td_listener *l, void (*on_closed)(void *user))
{
    l->closing = true;
    l->on_closed = on_closed;
    uv_close((uv_handle_t *)&l->handle, on_part_closed);
}
