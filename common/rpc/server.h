/* server.h - a gRPC server: HTTP/2 cleartext with prior knowledge over nghttp2, on one loop. It
 * moves opaque message bytes. Everything runs on the loop thread; nothing here blocks.
 *
 * A call ends exactly once: by the handler's td_rpc_call_finish() (or reply()), or by
 * on_cancelled(). After either, the handle is gone for the handler. No callback ever runs inside a
 * td_rpc_call_*() or td_rpc_server_*() function, so any of them may be called in any callback. */
#ifndef TD_RPC_SERVER_H
#define TD_RPC_SERVER_H
#include "common/base/metrics.h"
#include "common/loop/loop.h"
#include "common/rpc/addr.h"
#include "common/rpc/grpc_status.h"

#include <stddef.h>

typedef struct td_rpc_server td_rpc_server;
typedef struct td_rpc_call td_rpc_call;

typedef enum {
    TD_RPC_UNARY,            /* one request message; the handler answers with one */
    TD_RPC_SERVER_STREAMING, /* one request message; any number of answers */
    TD_RPC_BIDI,             /* any number both ways; client streaming too */
} td_rpc_kind;

typedef struct {
    const char *path; /* "/tandem.v1.Inference/Generate" */
    td_rpc_kind kind;
    /* Headers are in, no message yet. May be NULL. */
    void (*on_open)(td_rpc_call *call, void *user);
    /* msg is valid during the call only. UNARY and SERVER_STREAMING: called once, when the whole
     * request is in. */
    void (*on_message)(td_rpc_call *call, void *user, const void *msg, size_t len);
    /* BIDI: the client will send no more. May be NULL. */
    void (*on_half_close)(td_rpc_call *call, void *user);
    /* The call is over without the handler: the client reset it (CANCELLED), its connection is lost
     * or the server closes (UNAVAILABLE), its deadline passed (DEADLINE_EXCEEDED), it does not read
     * (RESOURCE_EXHAUSTED), it broke the protocol (INTERNAL, ...). Last use of the handle. May be
     * NULL only if the handler always ends the call before it returns. */
    void (*on_cancelled)(td_rpc_call *call, void *user, td_grpc_status why);
    void *user;
} td_rpc_method;

typedef struct {                  /* 0 takes the default in brackets */
    td_addr listen;               /* port 0: any free one, see td_rpc_server_port() */
    td_security security;         /* [TD_PLAINTEXT] */
    const td_rpc_method *methods; /* must outlive the server */
    uint32_t n_methods;
    const char *name;    /* in log lines and metrics' labels; ["rpc"]; must outlive the server */
    td_metrics *metrics; /* [NULL: none] connections, refused ones, calls cut off */

    uint32_t max_connections;  /* [1024] one more is accepted and closed at once */
    uint32_t max_streams;      /* [1024] calls at a time on one connection */
    size_t max_message_bytes;  /* [4 MiB] of one message, either way */
    size_t max_backlog_bytes;  /* [1 MiB] queued for a client; one message alone may be larger */
    size_t max_header_bytes;   /* [16 KiB] of one request's headers */
    size_t max_assembly_bytes; /* [256 MiB] of half-received messages, over all connections */
    size_t max_queued_bytes;   /* [512 MiB] of unsent messages, over all connections */
    size_t max_connection_assembly_bytes; /* [an eighth, or one message] of the first, for one */
    size_t max_connection_queued_bytes;   /* [an eighth, or one message] of the second, for one */

    int64_t handshake_ms; /* [10 s] from accept to the client's SETTINGS */
    int64_t header_ms;    /* [10 s] from a request's first header frame to its last */
    int64_t request_ms;   /* [60 s] from there to the end of a UNARY or SERVER_STREAMING request;
                             BIDI: from a message's first byte to its last */
    int64_t idle_ms;      /* [10 min] a connection without a call; then GOAWAY */
    int64_t stall_ms;     /* [20 s] there are bytes to send and the peer takes none */
    int64_t keepalive_ms; /* [20 s] silence from the peer before a PING */
    int64_t keepalive_reply_ms; /* [10 s] for any byte after it, else the connection is closed */
} td_rpc_server_conf;

typedef struct {
    uint32_t n_connections;         /* now */
    uint32_t n_calls;               /* now: until the last byte has left or the stream was reset */
    uint64_t n_accepted, n_refused; /* connections, ever */
    uint64_t n_started, n_cut_off;  /* calls, ever; cut off: for not reading */
    size_t assembly_bytes;          /* now */
    size_t queued_bytes;            /* now */
    size_t unsent_bytes;            /* now: past the queues, not yet taken by the kernel */
} td_rpc_server_stats;

/* Listens when it returns TD_OK. conf is copied (the methods are not). TD_CONFIG: bad table or
 * address; TD_IO: cannot listen. */
td_status td_rpc_server_open(td_loop *loop, const td_rpc_server_conf *conf, td_rpc_server **out,
                             td_err *err);
uint16_t td_rpc_server_port(const td_rpc_server *server);
void td_rpc_server_get_stats(const td_rpc_server *server, td_rpc_server_stats *out);
/* Stops listening, tells every peer (GOAWAY) and lets running calls end; on_drained (may be NULL)
 * when none is left. This is the last step of a shutdown: new calls are refused from here on, on
 * old connections too. */
void td_rpc_server_drain(td_rpc_server *server, void (*on_drained)(void *user), void *user);
/* Ends every call (on_cancelled with UNAVAILABLE, from the loop) and connection. The server is gone
 * when on_closed (may be NULL) runs. NULL server is fine (on_closed is not called). */
void td_rpc_server_close(td_rpc_server *server, void (*on_closed)(void *user), void *user);

/* ---- a call, as its handler sees it ---- */

/* Queues one message (bytes are copied); it leaves when the handler is back in the loop, so what a
 * handler sends within one callback counts in full against max_backlog_bytes. TD_EXHAUSTED: the
 * client does not read and is cut off; on_cancelled follows. TD_CANCELLED: the call is over
 * already, on_cancelled follows. TD_TOO_LARGE, TD_NOMEM: nothing was queued, the call goes on. */
td_status td_rpc_call_send(td_rpc_call *call, const void *msg, size_t len);
/* What was queued still goes out. message (NULL is fine) is UTF-8, cut at 1 KiB. */
void td_rpc_call_finish(td_rpc_call *call, td_grpc_status status, const char *message);
/* send() and finish(OK); what send() refuses becomes the call's status. */
void td_rpc_call_reply(td_rpc_call *call, const void *msg, size_t len);
/* finish() with err's status and text. */
void td_rpc_call_fail(td_rpc_call *call, const td_err *err);

size_t td_rpc_call_queued_bytes(const td_rpc_call *call); /* not yet handed to the connection */
int64_t td_rpc_call_deadline_ns(const td_rpc_call *call); /* absolute; 0: the client gave none */
const char *td_rpc_call_peer(const td_rpc_call *call);    /* "127.0.0.1:40312" */
/* A request header by its lower-case name; NULL: not there. Valid as long as the call. */
const char *td_rpc_call_header(const td_rpc_call *call, const char *name);
/* A response header; before the first send(). Lower-case name. TD_INVALID: too late or not a legal
 * name or value. */
td_status td_rpc_call_set_header(td_rpc_call *call, const char *name, const char *value);
void td_rpc_call_set_data(td_rpc_call *call,
                          void *data); /* one pointer for the handler's own use */
void *td_rpc_call_data(const td_rpc_call *call);
#endif
