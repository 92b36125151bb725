#include "client/client_internal.h"

#include "common/base/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define DEFAULT_ROUTER "127.0.0.1:7400"
#define DEFAULT_CONNECT_MS 5000
#define DEFAULT_KEEPALIVE_MS 10000
#define DEFAULT_KEEPALIVE_REPLY_MS 5000
#define DEFAULT_MAX_MESSAGE ((size_t)64 << 20)
#define CONNECT_GRACE_MS 1000 /* the connection's own deadline speaks first: it knows why */

struct td_client {
    td_loop *loop;
    td_rpc_client *rpc;
    uv_async_t wake;
    bool wake_open;
    atomic_bool cancelled; /* set by td_client_cancel(), taken by the call that it ends */
    int64_t timeout_ms, connect_ms;
    char router[272];
    td_timer patience; /* while connecting */
    td_task pause;
    /* the call that runs */
    const td_client_call *call; /* NULL: none */
    td_rpc_request *req;        /* NULL: it has not been sent, or is over */
    bool connecting, patience_is_deadline;
    bool done;
    td_client_error outcome; /* once done */
};

_Static_assert((int)TD_CLIENT_UNAUTHENTICATED == (int)TD_GRPC_UNAUTHENTICATED &&
                   (int)TD_CLIENT_UNAVAILABLE == (int)TD_GRPC_UNAVAILABLE,
               "td_client_code has gRPC's numbers");

const char *td_client_code_name(td_client_code code)
{
    return td_grpc_status_name((td_grpc_status)code);
}

td_client_code td_call_fail(td_client_error *err, td_client_code code, const char *fmt, ...)
{
    if (err == NULL)
        return code;
    va_list ap;
    va_start(ap, fmt);
    err->code = code;
    err->unreachable = false;
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    return code;
}

/* ---- how a call ends ---- */

static void end_call(td_client *c, td_client_code code, bool unreachable, const char *text)
{
    if (c->done || c->call == NULL)
        return;
    td_call_fail(&c->outcome, code, "%s", text);
    c->outcome.unreachable = unreachable;
    c->done = true;
    td_loop_stop(c->loop);
}

static void take_cancel(td_client *c)
{
    if (c->call == NULL || c->done || !atomic_exchange(&c->cancelled, false))
        return;
    td_rpc_request_cancel(c->req);
    c->req = NULL;
    end_call(c, TD_CLIENT_CANCELLED, false, "cancelled");
}

static void on_wake(uv_async_t *wake)
{
    take_cancel(wake->data);
}

static void on_state(td_rpc_client *rpc, void *user, td_rpc_state state, const td_err *why)
{
    td_client *c = user;
    (void)rpc;
    if (!c->connecting)
        return;
    if (state == TD_RPC_READY)
        td_loop_stop(c->loop);
    if (state != TD_RPC_BROKEN)
        return;
    char text[800];
    snprintf(text, sizeof(text), "%s: %s", c->router, why->text);
    end_call(c, TD_CLIENT_UNAVAILABLE, true, text);
}

static void on_headers(td_rpc_request *req, void *user)
{
    td_client *c = user;
    if (c->call->on_headers != NULL)
        c->call->on_headers(c->call->user, req);
}

static void on_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    td_client *c = user;
    td_client_code code = c->call->on_message(c->call->user, msg, len);
    if (code == TD_CLIENT_OK)
        return;
    td_rpc_request_cancel(req);
    c->req = NULL;
    end_call(c, code, false,
             code == TD_CLIENT_CANCELLED            ? "cancelled"
             : code == TD_CLIENT_RESOURCE_EXHAUSTED ? "client: out of memory"
                                                    : "the router's answer is malformed");
}

static void on_finish(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    td_client *c = user;
    (void)req;
    c->req = NULL;
    bool broken = status == TD_GRPC_UNAVAILABLE && td_rpc_client_state(c->rpc) != TD_RPC_READY;
    end_call(c, (td_client_code)status, broken, message);
}

static void on_patience(td_timer *timer, void *user)
{
    td_client *c = user;
    char text[400];
    (void)timer;
    snprintf(text, sizeof(text), "%s: not connected in time", c->router);
    end_call(c, c->patience_is_deadline ? TD_CLIENT_DEADLINE_EXCEEDED : TD_CLIENT_UNAVAILABLE, true,
             text);
}

/* ---- a call ---- */

static void on_pause(td_task *task, void *user)
{
    (void)task;
    td_loop_stop(((td_client *)user)->loop);
}

/* One turn of the loop without waiting: news of the connection comes in, what is to be sent goes
 * out. */
static void turn(td_client *c)
{
    td_task_defer(&c->pause);
    td_loop_run(c->loop);
    td_task_cancel(&c->pause);
}

static void connect_first(td_client *c, int64_t deadline_ns)
{
    int64_t until = td_now_ns() + (c->connect_ms + CONNECT_GRACE_MS) * TD_NS_PER_MS;
    c->patience_is_deadline = deadline_ns != 0 && deadline_ns < until;
    td_timer_at(&c->patience, c->patience_is_deadline ? deadline_ns : until);
    c->connecting = true;
    td_rpc_client_retry(c->rpc);
    while (!c->done && td_rpc_client_state(c->rpc) != TD_RPC_READY)
        td_loop_run(c->loop);
    c->connecting = false;
    td_timer_stop(&c->patience);
}

static void send_request(td_client *c, int64_t deadline_ns)
{
    td_rpc_header header = {"x-request-id", c->call->request_id};
    td_rpc_request_args args = {
        .path = c->call->path,
        .deadline_ns = deadline_ns,
        .headers = &header,
        .n_headers = c->call->request_id != NULL ? 1 : 0,
        .on_headers = on_headers,
        .on_message = on_message,
        .on_finish = on_finish,
        .user = c,
    };
    td_err err;
    td_status st = td_rpc_request_start(c->rpc, &args, c->call->msg, c->call->len, &c->req, &err);
    if (st == TD_OK)
        return;
    c->req = NULL;
    end_call(c, (td_client_code)td_grpc_from_status(st), st == TD_PEER_LOST, err.text);
}

td_client_code td_call_run(td_client *c, const td_client_call *call, td_client_error *err)
{
    if (c->call != NULL)
        return td_call_fail(err, TD_CLIENT_FAILED_PRECONDITION, "a call of this client runs");
    int64_t deadline_ns = c->timeout_ms > 0 ? td_now_ns() + c->timeout_ms * TD_NS_PER_MS : 0;
    c->call = call;
    c->done = false;
    turn(c); /* a connection that broke since the last call says so in the first turn ... */
    turn(c); /* ... and is given up in the second */
    take_cancel(c);
    if (!c->done)
        connect_first(c, deadline_ns);
    if (!c->done)
        send_request(c, deadline_ns);
    while (!c->done)
        td_loop_run(c->loop);
    c->call = NULL;
    turn(c);
    if (err != NULL)
        *err = c->outcome;
    return c->outcome.code;
}

/* ---- life ---- */

static td_client_code open_failed(td_client_error *err, const td_err *why)
{
    return td_call_fail(err, (td_client_code)td_grpc_from_status(why->status), "%s", why->text);
}

static td_status open_rpc(td_client *c, const td_client_conf *conf, const td_addr *peer,
                          td_err *err)
{
    td_rpc_client_conf rpc = {
        .peer = *peer,
        .name = "router",
        .on_state = on_state,
        .user = c,
        .connect_ms = c->connect_ms,
        .keepalive_ms = conf->keepalive_ms > 0 ? conf->keepalive_ms : DEFAULT_KEEPALIVE_MS,
        .keepalive_reply_ms =
            conf->keepalive_reply_ms > 0 ? conf->keepalive_reply_ms : DEFAULT_KEEPALIVE_REPLY_MS,
        .max_message_bytes =
            conf->max_message_bytes > 0 ? conf->max_message_bytes : DEFAULT_MAX_MESSAGE,
    };
    td_status st = td_loop_create(&c->loop, err);
    if (st != TD_OK)
        return st;
    td_timer_init(&c->patience, c->loop, on_patience, c);
    td_task_init(&c->pause, c->loop, on_pause, c);
    c->wake.data = c;
    if (uv_async_init(td_loop_uv(c->loop), &c->wake, on_wake) != 0)
        return td_fail(err, TD_EXHAUSTED, "no descriptor for the client's loop");
    c->wake_open = true;
    return td_rpc_client_open(c->loop, &rpc, &c->rpc, err);
}

td_client_code td_client_open(const td_client_conf *conf, td_client **out, td_client_error *err)
{
    td_addr peer;
    td_err why;
    const char *router = conf->router != NULL ? conf->router : DEFAULT_ROUTER;
    td_status st = td_addr_parse(router, &peer, &why);
    if (st == TD_OK && peer.port == 0)
        st = td_fail(&why, TD_INVALID, "%s: port 0 is nobody's", router);
    if (st != TD_OK)
        return open_failed(err, &why);
    td_client *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return td_call_fail(err, TD_CLIENT_RESOURCE_EXHAUSTED, "client: out of memory");
    c->timeout_ms = conf->timeout_ms;
    c->connect_ms = conf->connect_ms > 0 ? conf->connect_ms : DEFAULT_CONNECT_MS;
    td_addr_format(&peer, c->router);
    st = open_rpc(c, conf, &peer, &why);
    if (st != TD_OK) {
        td_client_close(c);
        return open_failed(err, &why);
    }
    *out = c;
    return TD_CLIENT_OK;
}

void td_client_close(td_client *c)
{
    if (c == NULL)
        return;
    td_rpc_client_close(c->rpc, NULL, NULL);
    if (c->wake_open)
        uv_close((uv_handle_t *)&c->wake, NULL);
    td_loop_destroy(c->loop);
    free(c);
}

void td_client_set_timeout(td_client *c, int64_t timeout_ms)
{
    c->timeout_ms = timeout_ms;
}

void td_client_cancel(td_client *c)
{
    int saved = errno; /* of the code that a signal handler interrupted */
    atomic_store(&c->cancelled, true);
    uv_async_send(&c->wake);
    errno = saved;
}
