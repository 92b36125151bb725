/* conn.h - a byte stream to a peer: what HTTP/2 and HTTP/1.1 stand on, for the files of this
 * folder. A vtable, so that TLS can take its place between them and the socket; plaintext TCP is
 * the only implementation today. Loop thread only. Callbacks come from the loop, never inside a
 * function of this header. */
#ifndef TD_RPC_CONN_H
#define TD_RPC_CONN_H
#include "common/loop/loop.h"
#include "common/rpc/addr.h"

#include <stddef.h>

typedef struct td_conn td_conn;
typedef struct td_listener td_listener;

typedef struct {
    void (*on_open)(void *user); /* the outgoing connection stands; not for an accepted one */
    /* data is valid during the call only. */
    void (*on_read)(void *user, const uint8_t *data, size_t len);
    void (*on_drained)(void *user); /* once after each TD_PENDING of write() */
    /* The peer has closed, or the connection failed or could not be made. At most once; the owner
     * closes. */
    void (*on_end)(void *user, const td_err *why);
    void (*on_closed)(void *user); /* after close(); the connection is gone when it returns */
} td_conn_events;

typedef struct {
    td_status (*write)(td_conn *conn, const uint8_t *data, size_t len);
    size_t (*unsent_bytes)(const td_conn *conn);
    void (*pause)(td_conn *conn, bool paused);
    void (*close)(td_conn *conn);
} td_conn_ops;

struct td_conn { /* the first member of each implementation */
    const td_conn_ops *ops;
    const td_conn_events *events;
    void *user;
    char peer[272]; /* "127.0.0.1:40312" */
};

/* Resolves (in libuv's thread pool, unless the host is numeric) and tries one address after the
 * other. No deadline of its own: the owner closes. TD_UNSUPPORTED: TLS. */
td_status td_conn_connect(td_loop *loop, const td_addr *peer, td_security security,
                          const td_conn_events *events, void *user, td_conn **out, td_err *err);
/* All bytes are taken, data is the caller's again. TD_OK: they are with the kernel. TD_PENDING:
 * some wait; no write until on_drained. TD_PEER_LOST, TD_NOMEM: the connection is of no more use;
 * close it. */
td_status td_conn_write(td_conn *conn, const uint8_t *data, size_t len);
size_t td_conn_unsent_bytes(const td_conn *conn);
void td_conn_pause(td_conn *conn, bool paused); /* stops and starts reading */
void td_conn_close(td_conn *conn);              /* only on_closed comes after this */

/* on_conn: one connection waits; td_listener_accept() or td_listener_refuse() must be called in it,
 * once. */
td_status td_listener_open(td_loop *loop, const td_addr *addr, td_security security,
                           void (*on_conn)(void *user), void *user, td_listener **out, td_err *err);
uint16_t td_listener_port(const td_listener *listener);
/* On failure (TD_NOMEM, TD_IO) the connection has been refused. */
td_status td_listener_accept(td_listener *listener, const td_conn_events *events, void *user,
                             td_conn **out, td_err *err);
void td_listener_refuse(td_listener *listener); /* closes it at once */
void td_listener_close(td_listener *listener, void (*on_closed)(void *user));
#endif
