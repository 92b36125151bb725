#include "tests/common/rpc/echo.h"

#include "common/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POLITE_BYTES = 1024 * 1024 }; /* the server's default backlog */

typedef struct {
    echo_service *echo;
    td_rpc_call *call;
    td_timer timer;
    echo_stream_args args;
    uint32_t n_sent;
    size_t n_swallowed;
    uint8_t *msg;
} echo_call;

static echo_call *new_call(td_rpc_call *call, echo_service *echo)
{
    echo_call *c = calloc(1, sizeof(*c));
    c->echo = echo;
    c->call = call;
    td_rpc_call_set_data(call, c);
    echo->n_live++;
    return c;
}

static void drop_call(echo_call *c)
{
    td_timer_stop(&c->timer);
    free(c->msg);
    c->echo->n_live--;
    free(c);
}

static void on_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    echo_service *echo = user;
    echo_call *c = td_rpc_call_data(call);
    echo->n_cancelled++;
    echo->last_cancel = why;
    if (c != NULL)
        drop_call(c);
}

static void on_unary(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    const char *id = td_rpc_call_header(call, "x-request-id");
    (void)user;
    if (id != NULL)
        td_rpc_call_set_header(call, "x-echo", id);
    td_rpc_call_reply(call, msg, len);
}

static void send_more(td_timer *timer, void *user)
{
    echo_call *c = user;
    (void)timer;
    int n_turn = 0;
    while (c->n_sent < c->args.n_messages) {
        size_t queued = td_rpc_call_queued_bytes(c->call);
        if (!c->args.rude && queued > 0 && queued + c->args.n_bytes + 5 > POLITE_BYTES)
            break;
        if (c->args.pause_ms > 0 && n_turn++ > 0)
            break;
        memcpy(c->msg, &c->n_sent, c->args.n_bytes < 4 ? c->args.n_bytes : 4);
        c->echo->last_send = td_rpc_call_send(c->call, c->msg, c->args.n_bytes);
        if (c->echo->last_send < 0)
            return; /* on_cancelled follows */
        c->n_sent++;
        c->echo->n_sent++;
    }
    if (c->n_sent == c->args.n_messages) {
        td_rpc_call_finish(c->call, TD_GRPC_OK, NULL);
        drop_call(c);
    } else {
        int64_t ms = c->args.pause_ms > 0 ? c->args.pause_ms : 0;
        td_timer_at(&c->timer, td_now_ns() + ms * TD_NS_PER_MS);
    }
}

static void on_stream(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    echo_call *c = new_call(call, user);
    if (len != sizeof(c->args)) {
        td_rpc_call_finish(call, TD_GRPC_INVALID_ARGUMENT, "not an echo_stream_args");
        drop_call(c);
        return;
    }
    memcpy(&c->args, msg, len);
    c->msg = calloc(1, c->args.n_bytes + 1);
    td_timer_init(&c->timer, c->echo->loop, send_more, c);
    send_more(&c->timer, c);
}

static void on_bidi(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    (void)user;
    td_rpc_call_send(call, msg, len);
}

static void on_bidi_end(td_rpc_call *call, void *user)
{
    echo_service *echo = user;
    echo->n_half_closed++;
    td_rpc_call_finish(call, TD_GRPC_OK, NULL);
}

static void on_hang(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    (void)msg;
    (void)len;
    new_call(call, user);
}

static void on_fail(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    char text[2048];
    (void)user;
    snprintf(text, sizeof(text), "%.*s", (int)len, (const char *)msg);
    char *space = strchr(text, ' ');
    td_rpc_call_finish(call, (td_grpc_status)strtol(text, NULL, 10), space ? space + 1 : NULL);
}

static void on_wait(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    char text[64];
    int64_t deadline = td_rpc_call_deadline_ns(call);
    (void)user;
    (void)msg;
    (void)len;
    if (deadline == 0)
        snprintf(text, sizeof(text), "none");
    else
        snprintf(text, sizeof(text), "%lld",
                 (long long)((deadline - td_now_ns() + TD_NS_PER_MS / 2) / TD_NS_PER_MS));
    td_rpc_call_reply(call, text, strlen(text));
}

static void on_swallow_open(td_rpc_call *call, void *user)
{
    new_call(call, user);
}

static void on_swallow(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    echo_call *c = td_rpc_call_data(call);
    (void)user;
    (void)msg;
    c->n_swallowed += len;
}

static void on_swallow_end(td_rpc_call *call, void *user)
{
    echo_call *c = td_rpc_call_data(call);
    char text[32];
    (void)user;
    snprintf(text, sizeof(text), "%zu", c->n_swallowed);
    drop_call(c);
    td_rpc_call_reply(call, text, strlen(text));
}

static void on_early(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    (void)user;
    td_rpc_call_send(call, msg, len);
    td_rpc_call_finish(call, TD_GRPC_OK, "enough");
}

void echo_init(echo_service *echo, td_loop *loop)
{
    memset(echo, 0, sizeof(*echo));
    echo->loop = loop;
    td_rpc_method methods[ECHO_METHODS] = {
        {.path = "/test.Echo/Unary", .kind = TD_RPC_UNARY, .on_message = on_unary},
        {.path = "/test.Echo/Stream", .kind = TD_RPC_SERVER_STREAMING, .on_message = on_stream},
        {.path = "/test.Echo/Bidi",
         .kind = TD_RPC_BIDI,
         .on_message = on_bidi,
         .on_half_close = on_bidi_end},
        {.path = "/test.Echo/Hang", .kind = TD_RPC_SERVER_STREAMING, .on_message = on_hang},
        {.path = "/test.Echo/Fail", .kind = TD_RPC_UNARY, .on_message = on_fail},
        {.path = "/test.Echo/Wait", .kind = TD_RPC_UNARY, .on_message = on_wait},
        {.path = "/test.Echo/Swallow",
         .kind = TD_RPC_BIDI,
         .on_open = on_swallow_open,
         .on_message = on_swallow,
         .on_half_close = on_swallow_end},
        {.path = "/test.Echo/Early", .kind = TD_RPC_BIDI, .on_message = on_early},
    };
    for (int i = 0; i < ECHO_METHODS; i++) {
        echo->methods[i] = methods[i];
        echo->methods[i].on_cancelled = on_cancelled;
        echo->methods[i].user = echo;
    }
}
