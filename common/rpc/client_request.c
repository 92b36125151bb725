#include "common/base/clock.h"
#include "common/rpc/client_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* on_finish runs once, or the owner cancels: `over` is set by whichever comes first. The memory
 * goes with the stream. */
struct td_rpc_request {
    td_h2_stream s; /* first */
    td_rpc_client *client;
    td_rpc_request_args args; /* path and headers are not kept */
    td_deframer in;
    td_timer deadline;
    bool over;
    bool half_closed; /* by us */
    bool grpc;        /* the response's headers are those of a gRPC server */
};

static td_rpc_request *request_of(td_h2_stream *s)
{
    return (td_rpc_request *)s;
}

/* ---- ending ---- */

static void finish(td_rpc_request *req, td_grpc_status status, const char *message)
{
    if (req->over)
        return;
    req->over = true;
    td_timer_stop(&req->deadline);
    if (req->args.on_finish != NULL)
        req->args.on_finish(req, req->args.user, status, message);
}

/* Ends it here and tells the server, which may not know yet. */
static void give_up(td_rpc_request *req, td_grpc_status status, const char *message)
{
    td_h2_reset(&req->s, NGHTTP2_CANCEL);
    finish(req, status, message);
}

static void on_deadline(td_timer *timer, void *user)
{
    (void)timer;
    give_up(user, TD_GRPC_DEADLINE_EXCEEDED, "deadline exceeded");
}

/* ---- events of the stream ---- */

void td_rpc_request_on_headers(td_h2_stream *s)
{
    td_rpc_request *req = request_of(s);
    const char *status = td_meta_get(&s->headers, ":status");
    const char *encoding = td_meta_get(&s->headers, "grpc-encoding");
    char text[64];
    if (req->over)
        return;
    if (s->headers.overflow) {
        give_up(req, TD_GRPC_RESOURCE_EXHAUSTED, "response headers over the size limit");
        return;
    }
    if (status == NULL || strcmp(status, "200") != 0 ||
        !td_grpc_content_type_ok(td_meta_get(&s->headers, "content-type"))) {
        int http = status == NULL ? 0 : (int)strtol(status, NULL, 10);
        snprintf(text, sizeof(text), "not a gRPC answer: HTTP status %d", http);
        give_up(req, td_grpc_from_http(http), text);
        return;
    }
    if (encoding != NULL && strcmp(encoding, "identity") != 0) {
        give_up(req, TD_GRPC_INTERNAL, "the server compresses although it was not asked to");
        return;
    }
    if (req->args.on_headers != NULL)
        req->args.on_headers(req, req->args.user);
}

void td_rpc_request_on_trailers(td_h2_stream *s)
{
    (void)s; /* on_end_stream follows */
}

void td_rpc_request_on_data(td_h2_stream *s, const uint8_t *data, size_t len)
{
    td_rpc_request *req = request_of(s);
    const uint8_t *msg;
    size_t msg_len;
    td_grpc_status code;
    const char *why;
    while (!req->over) {
        td_status st = td_deframer_next(&req->in, &data, &len, &msg, &msg_len, &code, &why);
        if (st == TD_EMPTY)
            return;
        if (st < 0)
            give_up(req, code, why);
        else if (req->args.on_message != NULL)
            req->args.on_message(req, req->args.user, msg, msg_len);
    }
}

void td_rpc_request_on_end_stream(td_h2_stream *s)
{
    td_rpc_request *req = request_of(s);
    const td_meta *meta = s->trailers.len > 0 ? &s->trailers : &s->headers; /* or trailers-only */
    const char *code = td_meta_get(meta, "grpc-status");
    const char *encoded = td_meta_get(meta, "grpc-message");
    char message[TD_GRPC_MESSAGE_MAX + 1] = "";
    if (!req->half_closed || td_sendq_bytes(&s->out) > 0)
        td_h2_reset(s, NGHTTP2_NO_ERROR); /* it listens no more */
    if (req->over)
        return;
    if (code == NULL || code[0] == '\0') {
        finish(req, TD_GRPC_INTERNAL, "the answer ends without a status");
        return;
    }
    char *end;
    long number = strtol(code, &end, 10);
    if (*end != '\0' || number < TD_GRPC_OK || number > TD_GRPC_UNAUTHENTICATED)
        number = TD_GRPC_UNKNOWN;
    if (encoded != NULL)
        td_grpc_message_decode(encoded, message, sizeof(message));
    if (number == TD_GRPC_OK && td_deframer_mid_message(&req->in))
        finish(req, TD_GRPC_INTERNAL, "the answer ends within a message");
    else
        finish(req, (td_grpc_status)number, message);
}

bool td_rpc_request_on_eof(td_h2_stream *s)
{
    (void)s;
    return false;
}

void td_rpc_request_on_close(td_h2_stream *s, bool lost, uint32_t h2_error)
{
    td_rpc_request *req = request_of(s);
    td_rpc_client *client = req->client;
    char text[64];
    if (lost && client->closing) {
        finish(req, TD_GRPC_CANCELLED, "the client closes");
    } else if (lost) {
        finish(req, TD_GRPC_UNAVAILABLE, client->lost);
    } else {
        snprintf(text, sizeof(text), "stream reset: %s", nghttp2_http2_strerror(h2_error));
        finish(req, td_grpc_from_h2(h2_error), text);
    }
    td_timer_stop(&req->deadline);
    client->n_requests--;
    td_deframer_fini(&req->in);
    td_sendq_fini(&s->out);
    td_meta_clear(&s->headers);
    td_meta_clear(&s->trailers);
    free(req);
}

/* ---- the owner's side ---- */

static td_status check_args(td_rpc_client *client, const td_rpc_request_args *args, td_err *err)
{
    if (args->path == NULL || args->path[0] != '/' || !td_header_value_ok(args->path))
        return td_fail(err, TD_INVALID, "rpc: bad path");
    for (uint32_t i = 0; i < args->n_headers; i++)
        if (!td_header_name_ok(args->headers[i].name) ||
            !td_header_value_ok(args->headers[i].value))
            return td_fail(err, TD_INVALID, "rpc: header %u is not legal", i);
    if (client->closing || !td_h2_usable(client->current))
        return td_fail(err, TD_PEER_LOST, "%s: not connected", client->authority);
    if (client->n_requests >= client->conf.max_requests)
        return td_fail(err, TD_FULL, "%s: %u requests are running", client->authority,
                       client->n_requests);
    if (args->deadline_ns != 0 && args->deadline_ns <= td_now_ns())
        return td_fail(err, TD_DEADLINE, "%s: deadline exceeded", args->path);
    return TD_OK;
}

static td_status submit(td_rpc_request *req, const td_rpc_request_args *args)
{
    enum { OURS = 8, MAX_HEADERS = OURS + 32 };
    nghttp2_nv nv[MAX_HEADERS] = {
        td_h2_nv(":method", "POST"),   td_h2_nv(":scheme", "http"),
        td_h2_nv(":path", args->path), td_h2_nv(":authority", req->client->authority),
        td_h2_nv("te", "trailers"),    td_h2_nv("content-type", "application/grpc"),
    };
    size_t n = 6;
    char timeout[16];
    if (args->deadline_ns != 0) {
        td_grpc_timeout_format(args->deadline_ns - td_now_ns(), timeout);
        nv[n++] = td_h2_nv("grpc-timeout", timeout);
    }
    if (args->n_headers > MAX_HEADERS - OURS)
        return TD_INVALID;
    for (uint32_t i = 0; i < args->n_headers; i++)
        nv[n++] = td_h2_nv(args->headers[i].name, args->headers[i].value);
    return td_h2_request(req->client->current, &req->s, nv, n);
}

/* msg NULL and len 0 with stream: nothing is sent yet. */
static td_status start(td_rpc_client *client, const td_rpc_request_args *args, bool stream,
                       const void *msg, size_t len, td_rpc_request **out, td_err *err)
{
    td_status st = check_args(client, args, err);
    if (st < 0)
        return st;
    if (len > client->conf.max_message_bytes || len > UINT32_MAX)
        return td_fail(err, TD_TOO_LARGE, "%s: message of %zu bytes", args->path, len);
    td_rpc_request *req = calloc(1, sizeof(*req));
    if (req == NULL)
        return td_fail(err, TD_NOMEM, "%s: out of memory", args->path);
    req->client = client;
    req->args = *args;
    td_deframer_init(&req->in, &client->assembly, client->conf.max_message_bytes, false);
    td_timer_init(&req->deadline, client->loop, on_deadline, req);
    st = stream ? TD_OK : td_sendq_push(&req->s.out, msg, (uint32_t)len);
    req->s.eof = req->half_closed = !stream;
    if (st == TD_OK)
        st = submit(req, args);
    if (st < 0) {
        td_sendq_fini(&req->s.out);
        free(req);
        return td_fail(err, st, "%s: %s", args->path, td_status_text(st));
    }
    client->n_requests++;
    if (args->deadline_ns != 0)
        td_timer_at(&req->deadline, args->deadline_ns);
    *out = req;
    return TD_OK;
}

td_status td_rpc_request_start(td_rpc_client *client, const td_rpc_request_args *args,
                               const void *msg, size_t len, td_rpc_request **out, td_err *err)
{
    return start(client, args, false, msg, len, out, err);
}

td_status td_rpc_stream_start(td_rpc_client *client, const td_rpc_request_args *args,
                              td_rpc_request **out, td_err *err)
{
    return start(client, args, true, NULL, 0, out, err);
}

td_status td_rpc_request_send(td_rpc_request *req, const void *msg, size_t len)
{
    const td_rpc_client_conf *conf = &req->client->conf;
    if (req->over || req->half_closed)
        return TD_CANCELLED;
    if (len > conf->max_message_bytes || len > UINT32_MAX)
        return TD_TOO_LARGE;
    size_t queued = td_sendq_bytes(&req->s.out);
    if (queued > 0 && queued + len + TD_FRAME_HEAD_BYTES > conf->max_backlog_bytes)
        return TD_FULL;
    if (td_sendq_push(&req->s.out, msg, (uint32_t)len) < 0)
        return TD_NOMEM;
    if (queued == 0)
        td_h2_wake(&req->s);
    return TD_OK;
}

void td_rpc_request_half_close(td_rpc_request *req)
{
    if (req->half_closed || req->over)
        return;
    req->half_closed = true;
    req->s.eof = true;
    td_h2_wake(&req->s);
}

void td_rpc_request_cancel(td_rpc_request *req)
{
    if (req == NULL || req->over)
        return;
    req->over = true;
    td_timer_stop(&req->deadline);
    td_h2_reset(&req->s, NGHTTP2_CANCEL);
}

size_t td_rpc_request_queued_bytes(const td_rpc_request *req)
{
    return td_sendq_bytes(&req->s.out);
}

const char *td_rpc_request_header(const td_rpc_request *req, const char *name)
{
    return td_meta_get(&req->s.headers, name);
}
