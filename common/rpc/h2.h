/* h2.h - one HTTP/2 connection: a td_conn with its nghttp2 session. Gathers what a turn of the loop
 * wants to send into one write, keeps the deadlines of the connection (handshake, header block,
 * keepalive, stall, idle), and turns frames into events of streams. Server and client stand on it;
 * for the files of this folder.
 *
 * A connection ends by td_h2_kill(), from inside or outside: on_dead, then on_close for each
 * stream, then on_gone, all from the loop. Streams belong to the owner, which frees them in
 * on_close. */
#ifndef TD_RPC_H2_H
#define TD_RPC_H2_H
#include "common/rpc/conn.h"
#include "common/rpc/frame.h"
#include "common/rpc/headers.h"

#include <nghttp2/nghttp2.h>

typedef struct td_h2 td_h2;
typedef struct td_h2_stream td_h2_stream;

/* The first member of a call or a request. Zeroed, then begun by on_begin or td_h2_request(). */
struct td_h2_stream {
    td_h2 *h2; /* NULL: the stream is closed */
    int32_t id;
    td_sendq out;
    td_meta headers, trailers;
    bool headers_done; /* what comes now are trailers */
    bool started;      /* our headers have been submitted */
    bool asleep;       /* nghttp2 waits for td_h2_wake() */
    bool eof;          /* set by the owner: end when `out` is empty */
    bool reset;        /* td_h2_reset() was called */
    size_t promised;   /* bytes of `out` in a DATA frame that nghttp2 has begun */
    td_h2_stream *prev, *next;
};

/* Of td_loop_scratch's write: kept free for what nghttp2 hands out after DATA (one frame at most 16
 * KiB). */
enum { TD_H2_SLACK = 32 * 1024 };

typedef struct {
    /* Server: a request begins. NULL: refused (the client may try again elsewhere). */
    td_h2_stream *(*on_begin)(td_h2 *h2);
    void (*on_headers)(td_h2_stream *s);
    void (*on_trailers)(td_h2_stream *s);
    void (*on_data)(td_h2_stream *s, const uint8_t *data, size_t len);
    void (*on_end_stream)(td_h2_stream *s); /* the peer's last word */
    /* eof is set and `out` is empty: true when trailers have been submitted, false to end without.
     */
    bool (*on_eof)(td_h2_stream *s);
    /* Frees s. lost: the whole connection is; otherwise h2_error tells (NGHTTP2_NO_ERROR: both
     * sides have ended). */
    void (*on_close)(td_h2_stream *s, bool lost, uint32_t h2_error);
    void (*on_ready)(td_h2 *h2);  /* the peer's SETTINGS have come; may be NULL */
    void (*on_goaway)(td_h2 *h2); /* the peer wants no new streams; may be NULL */
    void (*on_dead)(td_h2 *h2, const td_err *why);
    void (*on_gone)(td_h2 *h2); /* the memory goes when it returns */
} td_h2_events;

typedef struct {
    bool server;
    uint32_t max_streams; /* of the peer */
    uint32_t
        max_queue; /* frames, other than DATA, that wait because the peer does not read; 0: off */
    size_t max_header_bytes;
    int64_t handshake_ms, header_ms, idle_ms, stall_ms, keepalive_ms,
        keepalive_reply_ms; /* 0: off */
} td_h2_limits;

struct td_h2 {
    td_loop *loop;
    td_conn *conn;
    nghttp2_session *session;
    const td_h2_events *events;
    void *owner;
    td_h2_limits limits;
    td_h2 *prev, *next; /* for the owner's list */

    td_h2_stream *streams;
    uint32_t n_streams;
    td_budget assembly, queued; /* a server's: this connection's share of its bounds */
    td_task flush, reap;
    td_timer watch;
    td_loop_scratch *scratch;
    size_t n_out; /* bytes in scratch->write, while flushing */

    bool open;    /* the socket stands */
    bool writing; /* td_conn_write() said TD_PENDING */
    bool ready, dying, goaway_sent, goaway_seen;
    bool second_look; /* a reply is late: what waits in the socket is read before judging */
    bool broken;      /* nghttp2 has ended the session for an error */
    bool rearm;       /* a deadline has come nearer */
    td_err why;       /* once dying; before that, nghttp2's last complaint (or "") */

    int64_t born_ns, heard_ns, ping_ns, header_ns, idle_ns; /* since when; 0: not now */
    int64_t stall_ns;
    size_t stall_bytes; /* unsent at stall_ns */
    int64_t control_ns; /* this second's count of frames that cost the peer nothing */
    uint32_t n_control;
};

extern const td_conn_events td_h2_conn_events;
/* Makes the session; the owner then makes the connection, with td_h2_conn_events and *out as their
 * user, and hands it to td_h2_start(). If there is no connection: td_h2_discard(). */
td_status td_h2_new(td_loop *loop, const td_h2_limits *limits, const td_h2_events *events,
                    void *owner, td_h2 **out, td_err *err);
void td_h2_start(td_h2 *h2, td_conn *conn, bool open);
void td_h2_discard(td_h2 *h2); /* never started */

void td_h2_kill(td_h2 *h2, td_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Asks for no new streams. notice: a first warning, streams underway are still taken; otherwise
 * those that run may end, and the connection with the last of them. */
void td_h2_goaway(td_h2 *h2, bool notice);
bool td_h2_usable(const td_h2 *h2); /* a client may start a stream */

/* Client. TD_PEER_LOST: no stream ids left (or not usable); TD_NOMEM. */
td_status td_h2_request(td_h2 *h2, td_h2_stream *s, const nghttp2_nv *nv, size_t n_nv);
/* Server: response headers; alone: they end the stream. */
void td_h2_respond(td_h2_stream *s, const nghttp2_nv *nv, size_t n_nv, bool alone);
void td_h2_trailers(td_h2_stream *s, const nghttp2_nv *nv, size_t n_nv); /* only in on_eof */
void td_h2_wake(td_h2_stream *s); /* `out` or eof has changed */
void td_h2_reset(td_h2_stream *s, uint32_t h2_error);
/* The peer has got no part of a message, or whole messages only. */
bool td_h2_at_boundary(const td_h2_stream *s);

/* ---- between h2.c and h2_frames.c ---- */
td_status td_h2_make_session(td_h2 *h2);
nghttp2_data_provider td_h2_provider(td_h2_stream *s);
void td_h2_unlink(td_h2_stream *s);
void td_h2_link(td_h2 *h2, td_h2_stream *s, int32_t id);
void td_h2_schedule(td_h2 *h2);
/* One NV of two C strings that stay as they are until the frame is packed (nghttp2 copies unless
 * told otherwise). */
nghttp2_nv td_h2_nv(const char *name, const char *value);
#endif
