#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/server_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* OPEN: the handler may send and finish. CUT_OFF: the handler was told so by send(); on_cancelled
 * comes from the loop. ENDED: the handler is through with it; what is queued still goes out, and
 * the memory goes with the stream. */
typedef enum { CALL_OPEN, CALL_CUT_OFF, CALL_ENDED } call_state;

#define BIT(s) (1U << (s))

enum { MAX_HEADERS = 36 }; /* of an answer */

static const struct {
    const char *name;
    unsigned may_enter; /* one bit per next state */
} call_states[] = {
    [CALL_OPEN] = {"open", BIT(CALL_CUT_OFF) | BIT(CALL_ENDED)},
    [CALL_CUT_OFF] = {"cut-off", BIT(CALL_ENDED)},
    [CALL_ENDED] = {"ended", 0},
};

struct td_rpc_call {
    td_h2_stream s; /* first */
    td_rpc_server *server;
    const td_rpc_method *method;
    const char *peer;
    void *data;
    td_deframer in;
    td_meta reply_headers;
    td_timer timer; /* the nearest of deadline, unfinished request, unread tail */
    td_task cut_off;
    int64_t deadline_ns, request_by_ns;
    size_t tail_bytes; /* ENDED: queued when the timer was last set */
    call_state state;
    bool known;         /* the handler has seen the handle */
    bool half_closed;   /* the client has sent its last byte */
    const uint8_t *msg; /* UNARY, SERVER_STREAMING: the request, until half_closed */
    size_t msg_len;
    td_grpc_status status;
    char *message; /* percent-encoded; NULL: none */
};

static td_rpc_call *call_of(td_h2_stream *s)
{
    return (td_rpc_call *)s;
}

static bool one_request(const td_rpc_call *call)
{
    return call->method->kind != TD_RPC_BIDI;
}

static void enter(td_rpc_call *call, call_state next)
{
    td_assert((call_states[call->state].may_enter & BIT(next)) != 0);
    if (td_log_enabled(TD_LOG_DEBUG))
        td_debug("rpc.call", "peer=%s stream=%d from=%s to=%s", call->peer, call->s.id,
                 call_states[call->state].name, call_states[next].name);
    call->state = next;
}

/* ---- ending ---- */

/* The first headers of an answer, [MAX_HEADERS]; leaves room for two more. */
static size_t head_of_answer(const td_rpc_call *call, nghttp2_nv *nv)
{
    size_t n = 0;
    uint32_t pos = 0;
    const char *name, *value;
    nv[n++] = td_h2_nv(":status", "200");
    nv[n++] = td_h2_nv("content-type", "application/grpc");
    while (n < MAX_HEADERS - 2 && td_meta_next(&call->reply_headers, &pos, &name, &value))
        nv[n++] = td_h2_nv(name, value);
    return n;
}

/* Last words to the client: what is queued, then the status. */
static void say_goodbye(td_rpc_call *call, td_grpc_status status, const char *message)
{
    call->status = status;
    if (message != NULL && message[0] != '\0') {
        char encoded[TD_GRPC_MESSAGE_ENCODED_MAX];
        td_grpc_message_encode(message, encoded);
        call->message = strdup(encoded); /* no memory: the code must do */
    }
    if (call->s.started) {
        call->s.eof = true;
        td_h2_wake(&call->s);
    } else {
        char code[4];
        snprintf(code, sizeof(code), "%d", (int)status);
        nghttp2_nv nv[MAX_HEADERS];
        size_t n = head_of_answer(call, nv);
        nv[n++] = td_h2_nv("grpc-status", code);
        if (call->message != NULL)
            nv[n++] = td_h2_nv("grpc-message", call->message);
        td_h2_respond(&call->s, nv, n, true);
    }
    call->tail_bytes = td_sendq_bytes(&call->s.out);
    td_timer_at(&call->timer, td_now_ns() + call->server->conf.stall_ms * TD_NS_PER_MS);
}

bool td_rpc_call_on_eof(td_h2_stream *s)
{
    td_rpc_call *call = call_of(s);
    char code[4];
    snprintf(code, sizeof(code), "%d", (int)call->status);
    nghttp2_nv nv[2] = {td_h2_nv("grpc-status", code)};
    if (call->message != NULL)
        nv[1] = td_h2_nv("grpc-message", call->message);
    td_h2_trailers(s, nv, call->message != NULL ? 2 : 1);
    return true;
}

static void tell_cancelled(td_rpc_call *call, td_grpc_status why)
{
    if (call->known && call->method->on_cancelled != NULL)
        call->method->on_cancelled(call, call->method->user, why);
}

/* The call cannot go on: tells both sides. Never inside a function that the handler called. */
static void fail_call(td_rpc_call *call, td_grpc_status why, const char *text)
{
    if (call->state != CALL_OPEN)
        return;
    enter(call, CALL_ENDED);
    if (td_h2_at_boundary(&call->s)) {
        td_sendq_clear(&call->s.out);
        say_goodbye(call, why, text);
    } else { /* trailers after half a message would be taken for a broken server */
        td_timer_stop(&call->timer);
        td_h2_reset(&call->s, NGHTTP2_CANCEL);
    }
    tell_cancelled(call, why);
}

static void run_cut_off(td_task *task, void *user)
{
    td_rpc_call *call = user;
    (void)task;
    enter(call, CALL_ENDED);
    tell_cancelled(call, TD_GRPC_RESOURCE_EXHAUSTED);
}

static void on_timer(td_timer *timer, void *user)
{
    td_rpc_call *call = user;
    int64_t now = td_now_ns();
    if (call->state == CALL_ENDED) { /* the tail of the answer */
        size_t left = td_sendq_bytes(&call->s.out);
        if (left < call->tail_bytes) {
            call->tail_bytes = left;
            td_timer_at(timer, now + call->server->conf.stall_ms * TD_NS_PER_MS);
        } else {
            td_h2_reset(&call->s, NGHTTP2_CANCEL);
        }
    } else if (call->deadline_ns != 0 && now >= call->deadline_ns) {
        fail_call(call, TD_GRPC_DEADLINE_EXCEEDED, "deadline exceeded");
    } else {
        fail_call(call, TD_GRPC_DEADLINE_EXCEEDED, "the request did not come to its end in time");
    }
}

static void set_timer(td_rpc_call *call)
{
    int64_t at = call->deadline_ns;
    if (call->request_by_ns != 0 && (at == 0 || call->request_by_ns < at))
        at = call->request_by_ns;
    if (at != 0)
        td_timer_at(&call->timer, at);
    else
        td_timer_stop(&call->timer);
}

/* ---- events of the stream ---- */

td_h2_stream *td_rpc_call_begin(td_h2 *h2)
{
    td_rpc_server *server = h2->owner;
    if (server->draining || server->closing)
        return NULL;
    td_rpc_call *call = calloc(1, sizeof(*call));
    if (call == NULL)
        return NULL;
    call->server = server;
    call->peer = h2->conn->peer;
    call->s.out.budget = &h2->queued;
    td_timer_init(&call->timer, server->loop, on_timer, call);
    td_task_init(&call->cut_off, server->loop, run_cut_off, call);
    server->stats.n_calls++;
    server->stats.n_started++;
    return &call->s;
}

/* Not gRPC at all: an HTTP status, and that is all. */
static void refuse_http(td_rpc_call *call, const char *status)
{
    nghttp2_nv nv[2] = {td_h2_nv(":status", status), td_h2_nv("allow", "POST")};
    enter(call, CALL_ENDED);
    td_h2_respond(&call->s, nv, strcmp(status, "405") == 0 ? 2 : 1, true);
    td_timer_at(&call->timer, td_now_ns() + call->server->conf.stall_ms * TD_NS_PER_MS);
}

static void refuse(td_rpc_call *call, td_grpc_status status, const char *text)
{
    enter(call, CALL_ENDED);
    say_goodbye(call, status, text);
}

static void add_reply_header(td_rpc_call *call, const char *name, const char *value)
{
    td_meta_add(&call->reply_headers, name, strlen(name), value, strlen(value),
                call->server->conf.max_header_bytes);
}

static bool accept_headers(td_rpc_call *call)
{
    const td_meta *h = &call->s.headers;
    const char *method = td_meta_get(h, ":method"), *path = td_meta_get(h, ":path");
    const char *encoding = td_meta_get(h, "grpc-encoding");
    const char *timeout = td_meta_get(h, "grpc-timeout");
    char text[320];
    int64_t timeout_ns;
    if (h->overflow) {
        refuse(call, TD_GRPC_RESOURCE_EXHAUSTED, "headers over the size limit");
        return false;
    }
    if (method == NULL || strcmp(method, "POST") != 0) {
        refuse_http(call, "405");
        return false;
    }
    if (!td_grpc_content_type_ok(td_meta_get(h, "content-type"))) {
        refuse_http(call, "415");
        return false;
    }
    call->method = path == NULL ? NULL : td_rpc_server_find(call->server, path);
    if (call->method == NULL) {
        snprintf(text, sizeof(text), "unknown method %.256s", path == NULL ? "" : path);
        refuse(call, TD_GRPC_UNIMPLEMENTED, text);
        return false;
    }
    if (encoding != NULL && strcmp(encoding, "identity") != 0) {
        snprintf(text, sizeof(text), "grpc-encoding %.32s is not supported", encoding);
        add_reply_header(call, "grpc-accept-encoding", "identity");
        refuse(call, TD_GRPC_UNIMPLEMENTED, text);
        return false;
    }
    if (timeout != NULL) {
        if (!td_grpc_timeout_parse(timeout, &timeout_ns)) {
            refuse(call, TD_GRPC_INVALID_ARGUMENT, "malformed grpc-timeout");
            return false;
        }
        call->deadline_ns = td_now_ns() + timeout_ns;
    }
    return true;
}

void td_rpc_call_on_headers(td_h2_stream *s)
{
    td_rpc_call *call = call_of(s);
    if (!accept_headers(call))
        return;
    const td_rpc_server_conf *conf = &call->server->conf;
    td_deframer_init(&call->in, &s->h2->assembly, conf->max_message_bytes, one_request(call));
    if (one_request(call))
        call->request_by_ns = td_now_ns() + conf->request_ms * TD_NS_PER_MS;
    set_timer(call);
    if (call->method->on_open != NULL) {
        call->known = true;
        call->method->on_open(call, call->method->user);
    }
}

static void refuse_message(td_rpc_call *call, td_grpc_status code, const char *why)
{
    char text[128];
    if (call->in.want > call->in.max_message_bytes)
        snprintf(text, sizeof(text), "%s: %u bytes, at most %u", why, call->in.want,
                 call->in.max_message_bytes);
    else
        snprintf(text, sizeof(text), "%s", why);
    fail_call(call, code, text);
}

/* BIDI: the stream may be silent for as long as it likes, but not within a message. */
static void watch_message(td_rpc_call *call)
{
    if (one_request(call))
        return;
    if (!td_deframer_mid_message(&call->in))
        call->request_by_ns = 0;
    else if (call->request_by_ns == 0)
        call->request_by_ns = td_now_ns() + call->server->conf.request_ms * TD_NS_PER_MS;
    set_timer(call);
}

void td_rpc_call_on_data(td_h2_stream *s, const uint8_t *data, size_t len)
{
    td_rpc_call *call = call_of(s);
    const uint8_t *msg;
    size_t msg_len;
    td_grpc_status code;
    const char *why;
    while (call->state == CALL_OPEN) {
        if (call->msg != NULL && len > 0) { /* grpc/doc/statuscodes.md */
            fail_call(call, TD_GRPC_UNIMPLEMENTED, "more than one request message");
            return;
        }
        td_status st = td_deframer_next(&call->in, &data, &len, &msg, &msg_len, &code, &why);
        if (st == TD_EMPTY) {
            watch_message(call);
            return;
        }
        if (st < 0) {
            refuse_message(call, code, why);
            return;
        }
        if (one_request(call)) {
            call->msg = msg;
            call->msg_len = msg_len;
            if (len == 0)
                return;
        } else {
            call->known = true;
            call->method->on_message(call, call->method->user, msg, msg_len);
            call->request_by_ns = 0; /* this message has come to its end */
        }
    }
}

void td_rpc_call_on_end_stream(td_h2_stream *s)
{
    td_rpc_call *call = call_of(s);
    call->half_closed = true;
    if (call->state != CALL_OPEN)
        return;
    if (td_deframer_mid_message(&call->in)) {
        fail_call(call, TD_GRPC_INTERNAL, "the request ends within a message");
    } else if (!one_request(call)) {
        call->known = true;
        if (call->method->on_half_close != NULL)
            call->method->on_half_close(call, call->method->user);
    } else if (call->msg == NULL) {
        fail_call(call, TD_GRPC_UNIMPLEMENTED, "no request message");
    } else {
        call->request_by_ns = 0;
        set_timer(call);
        call->known = true;
        call->method->on_message(call, call->method->user, call->msg, call->msg_len);
        td_deframer_fini(&call->in); /* this was all of it */
    }
}

void td_rpc_call_on_close(td_h2_stream *s, bool lost, uint32_t h2_error)
{
    td_rpc_call *call = call_of(s);
    td_grpc_status why = lost                           ? TD_GRPC_UNAVAILABLE
                         : h2_error == NGHTTP2_NO_ERROR ? TD_GRPC_CANCELLED
                                                        : td_grpc_from_h2(h2_error);
    call_state state = call->state;
    td_timer_stop(&call->timer);
    td_task_cancel(&call->cut_off);
    if (state != CALL_ENDED) {
        enter(call, CALL_ENDED);
        tell_cancelled(call, state == CALL_CUT_OFF ? TD_GRPC_RESOURCE_EXHAUSTED : why);
    }
    td_timer_stop(&call->timer); /* again: nothing stops the handler from a late finish() */
    call->server->stats.n_calls--;
    td_deframer_fini(&call->in);
    td_sendq_fini(&s->out);
    td_meta_clear(&s->headers);
    td_meta_clear(&s->trailers);
    td_meta_clear(&call->reply_headers);
    free(call->message);
    free(call);
}

/* ---- the handler's side ---- */

static void start_response(td_rpc_call *call)
{
    nghttp2_nv nv[MAX_HEADERS];
    td_h2_respond(&call->s, nv, head_of_answer(call, nv), false);
}

static void cut_off(td_rpc_call *call, size_t queued)
{
    td_info("rpc.call.cut_off", "name=%s peer=%s path=%s queued=%zu", call->server->conf.name,
            call->peer, call->method->path, queued);
    call->server->stats.n_cut_off++;
    td_metric_add(call->server->m_cut_off, 1);
    enter(call, CALL_CUT_OFF);
    td_timer_stop(&call->timer);
    td_h2_reset(&call->s, NGHTTP2_ENHANCE_YOUR_CALM);
    td_task_defer(&call->cut_off);
}

td_status td_rpc_call_send(td_rpc_call *call, const void *msg, size_t len)
{
    const td_rpc_server_conf *conf = &call->server->conf;
    if (call->state != CALL_OPEN)
        return TD_CANCELLED;
    if (len > conf->max_message_bytes || len > UINT32_MAX)
        return TD_TOO_LARGE;
    size_t queued = td_sendq_bytes(&call->s.out);
    if (queued > 0 && queued + len + TD_FRAME_HEAD_BYTES > conf->max_backlog_bytes) {
        cut_off(call, queued);
        return TD_EXHAUSTED;
    }
    td_status st = td_sendq_push(&call->s.out, msg, (uint32_t)len);
    if (st == TD_FULL) { /* its connection, or all together, read too little */
        cut_off(call, queued);
        return TD_EXHAUSTED;
    }
    if (st < 0)
        return st;
    if (!call->s.started)
        start_response(call);
    else if (queued == 0)
        td_h2_wake(&call->s);
    return TD_OK;
}

void td_rpc_call_finish(td_rpc_call *call, td_grpc_status status, const char *message)
{
    if (call->state == CALL_ENDED)
        return;
    bool was_cut_off = call->state == CALL_CUT_OFF;
    td_task_cancel(&call->cut_off);
    enter(call, CALL_ENDED);
    if (!was_cut_off)
        say_goodbye(call, status, message);
}

void td_rpc_call_reply(td_rpc_call *call, const void *msg, size_t len)
{
    td_status st = td_rpc_call_send(call, msg, len);
    td_rpc_call_finish(call, td_grpc_from_status(st), st == TD_OK ? NULL : td_status_text(st));
}

void td_rpc_call_fail(td_rpc_call *call, const td_err *err)
{
    td_rpc_call_finish(call, td_grpc_from_status(err->status), err->text);
}

size_t td_rpc_call_queued_bytes(const td_rpc_call *call)
{
    return td_sendq_bytes(&call->s.out);
}

int64_t td_rpc_call_deadline_ns(const td_rpc_call *call)
{
    return call->deadline_ns;
}

const char *td_rpc_call_peer(const td_rpc_call *call)
{
    return call->peer;
}

const char *td_rpc_call_header(const td_rpc_call *call, const char *name)
{
    return td_meta_get(&call->s.headers, name);
}

td_status td_rpc_call_set_header(td_rpc_call *call, const char *name, const char *value)
{
    if (call->state != CALL_OPEN || call->s.started || !td_header_name_ok(name) ||
        !td_header_value_ok(value))
        return TD_INVALID;
    add_reply_header(call, name, value);
    return call->reply_headers.overflow ? TD_TOO_LARGE : TD_OK;
}

void td_rpc_call_set_data(td_rpc_call *call, void *data)
{
    call->data = data;
}

void *td_rpc_call_data(const td_rpc_call *call)
{
    return call->data;
}
