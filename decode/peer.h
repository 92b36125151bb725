/* peer.h - the prefill daemons that this decode daemon draws from: a control connection each, the
 * handshake, the links to every rank of it, lease renewal. Made when a request first names an
 * address, gone when none has named it for long; a peer that is lost or restarted is greeted anew
 * when the next request names it. Loop thread. */
#ifndef TD_DECODE_PEER_H
#define TD_DECODE_PEER_H
#include "common/rpc/client.h"
#include "common/serve/ident.h"
#include "common/transfer/xfer.h"
#include "decode/conf.h"
#include "model/fingerprint.h"

#include <stdbool.h>

#define TD_MAX_PEERS 64
#define TD_PEER_MAX_RANKS 64

typedef enum {
    TD_PEER_DOWN,     /* no handshake yet, or lost */
    TD_PEER_GREETING, /* Connect is under way, or waits for the connection */
    TD_PEER_UP,       /* fingerprints agree, links are open */
} td_peer_state;

typedef struct td_peers td_peers;
typedef struct td_peer {
    td_peers *peers;
    char address[272]; /* "": free row */
    td_rpc_client *client;
    bool closing; /* the row is free when the client is gone */
    td_peer_state state;
    td_rpc_request *greeting, *renewing;
    int64_t dialed_ns; /* GREETING: since when */
    char incarnation[TD_INCARNATION_BYTES];
    uint32_t n_ranks;
    td_xfer_link links[TD_PEER_MAX_RANKS]; /* [n_ranks] */
    bool link_open[TD_PEER_MAX_RANKS];
    int64_t lease_ms, renewed_ns;
    uint32_t n_requests; /* that use it now */
    int64_t used_ns;     /* when a request last named it */
} td_peer;

typedef struct {
    td_loop *loop;
    td_xfer *xfer; /* once the engine is ready */
    const td_decode_conf *conf;
    const char *incarnation; /* ours */
    const char *address;     /* ours, told to peers */
    const td_fingerprint *fingerprint;
    size_t blob_bytes;
    /* The peer is up: requests that waited for it may start. */
    void (*on_up)(void *user, td_peer *peer);
    /* Handshake refused or connection, link or process lost: every request that uses it must end.
     * st: TD_PEER_LOST, TD_MISMATCH, ... */
    void (*on_down)(void *user, td_peer *peer, const td_err *why);
    /* Fills numbers of requests whose pages the peer still holds for us; returns how many. */
    uint32_t (*held_numbers)(void *user, const td_peer *peer, uint64_t *numbers, uint32_t max);
    /* The peer does not hold this request's pages any more. */
    void (*on_unknown)(void *user, td_peer *peer, uint64_t number);
    void *user;
} td_peers_conf;

td_status td_peers_create(const td_peers_conf *conf, td_peers **out, td_err *err);
/* on_closed when every connection is gone and the table is freed. */
void td_peers_close(td_peers *peers, void (*on_closed)(void *user), void *user);
/* The row for an address, made if need be, and greeted unless it is up: on_up or on_down follows.
 * TD_EXHAUSTED: every row is in use. */
td_status td_peers_get(td_peers *peers, const char *address, td_peer **out, td_err *err);
/* Its Release RPC; best effort, the lease is behind it. id: the request's. */
void td_peer_release(td_peer *peer, uint64_t number, const char *id);
/* It is up, but does not know us any more: on_up follows, or on_down. */
void td_peer_greet_again(td_peer *peer);
/* A LINK_UP or LINK_DOWN of the transfer layer. */
void td_peers_on_link(td_peers *peers, const td_xfer_event *event);
#endif
