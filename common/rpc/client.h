/* client.h - a gRPC client: one address, one HTTP/2 connection that is made again when it breaks.
 * Opaque message bytes; everything runs on the loop thread; nothing blocks.
 *
 * A request ends exactly once: by on_finish(), or by its owner's td_rpc_request_cancel(). After
 * either, the handle is gone. No callback ever runs inside a function of this header, so any may be
 * called in any callback. */
#ifndef TD_RPC_CLIENT_H
#define TD_RPC_CLIENT_H
#include "common/loop/loop.h"
#include "common/rpc/addr.h"
#include "common/rpc/grpc_status.h"

#include <stddef.h>

typedef struct td_rpc_client td_rpc_client;
typedef struct td_rpc_request td_rpc_request;

typedef enum {
    /* Requests may be started: they wait for the connection. Also for a moment after a healthy
       server has said GOAWAY. */
    TD_RPC_CONNECTING,
    TD_RPC_READY,  /* the peer's SETTINGS have come */
    TD_RPC_BROKEN, /* waiting before the next try; requests are refused with TD_PEER_LOST */
} td_rpc_state;

typedef struct { /* 0 takes the default in brackets */
    td_addr peer;
    td_security security; /* [TD_PLAINTEXT] */
    const char *name;     /* in log lines; ["rpc"] */
    /* Each change of state; why is set for BROKEN, which comes before on_finish of the requests
     * that it ends. May be NULL. The first state is CONNECTING, without a callback. */
    void (*on_state)(td_rpc_client *client, void *user, td_rpc_state state, const td_err *why);
    void *user;
    int64_t connect_ms;     /* [5 s] for resolving, connecting and the peer's SETTINGS, together */
    int64_t backoff_min_ms; /* [100 ms] before the second try, doubling, with jitter */
    int64_t backoff_max_ms; /* [2 s] */
    int64_t keepalive_ms; /* [0: off] silence from the peer before a PING, while calls run or not */
    int64_t keepalive_reply_ms; /* [keepalive_ms] for any byte after that PING, else every request
                                   is UNAVAILABLE */
    int64_t stall_ms;           /* [20 s] bytes to send and the peer takes none */
    uint32_t max_requests;      /* [4096] at a time */
    size_t max_message_bytes;   /* [4 MiB] of one message, either way */
    size_t max_backlog_bytes;   /* [4 MiB] of one request's messages that the peer has not taken */
    size_t max_header_bytes;    /* [16 KiB] of one response's headers */
} td_rpc_client_conf;

/* Starts connecting and goes on trying until closed. conf is copied. */
td_status td_rpc_client_open(td_loop *loop, const td_rpc_client_conf *conf, td_rpc_client **out,
                             td_err *err);
/* Every request ends with on_finish(CANCELLED), from the loop; gone when on_closed (may be NULL)
 * runs. NULL is fine (on_closed is not called). No on_state after this. A resolver that hangs
 * delays on_closed. */
void td_rpc_client_close(td_rpc_client *client, void (*on_closed)(void *user), void *user);
td_rpc_state td_rpc_client_state(const td_rpc_client *client);
/* BROKEN: try now instead of waiting. Otherwise nothing. */
void td_rpc_client_retry(td_rpc_client *client);

typedef struct {
    const char *name, *value; /* lower-case name */
} td_rpc_header;

typedef struct {
    const char *path;    /* "/tandem.v1.Inference/Generate" */
    int64_t deadline_ns; /* absolute; 0: none. Sent to the server and enforced here as well */
    const td_rpc_header *headers; /* x-request-id and the like; copied */
    uint32_t n_headers;
    /* The response's headers are in (td_rpc_request_header() works). May be NULL. */
    void (*on_headers)(td_rpc_request *req, void *user);
    /* msg is valid during the call only. */
    void (*on_message)(td_rpc_request *req, void *user, const void *msg, size_t len);
    /* Last use of the handle. message is never NULL and valid during the call only. UNAVAILABLE:
     * the connection broke, or never came up. */
    void (*on_finish)(td_rpc_request *req, void *user, td_grpc_status status, const char *message);
    void *user;
} td_rpc_request_args;

/* A unary or server-streaming request: one message, then half-closed. args and msg are copied. On
 * any refusal no callback comes: TD_PEER_LOST (BROKEN), TD_FULL (max_requests), TD_DEADLINE (passed
 * already), TD_TOO_LARGE, TD_NOMEM, TD_INVALID (path, header). */
td_status td_rpc_request_start(td_rpc_client *client, const td_rpc_request_args *args,
                               const void *msg, size_t len, td_rpc_request **out, td_err *err);
/* A bidi or client-streaming request: send() and half_close() follow. */
td_status td_rpc_stream_start(td_rpc_client *client, const td_rpc_request_args *args,
                              td_rpc_request **out, td_err *err);
/* TD_FULL: over max_backlog_bytes, nothing was queued. TD_CANCELLED: it is over, on_finish follows;
 * also after half_close(). TD_TOO_LARGE, TD_NOMEM: nothing was queued. */
td_status td_rpc_request_send(td_rpc_request *req, const void *msg, size_t len);
void td_rpc_request_half_close(td_rpc_request *req);
/* No callback comes any more and the handle is gone; the server is told. NULL is fine. */
void td_rpc_request_cancel(td_rpc_request *req);

size_t td_rpc_request_queued_bytes(const td_rpc_request *req);
const char *td_rpc_request_header(const td_rpc_request *req, const char *name); /* response's */
#endif
