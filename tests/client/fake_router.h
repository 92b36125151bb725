/* fake_router.h - tandem.v1.Inference, Admin and health on a thread of its own, whose answers the
 * prompt chooses:
 *   "fail CODE TEXT"   ends with that gRPC status       "late CODE"  after one piece
 *   "slow"             a piece every 10 ms until it is cancelled
 *   "hang"             nothing, ever                     "vanish"     one piece, then all
 * connections break "nolast"           OK without a last message         "junk"       bytes that
 * are no message "many N"           N pieces at once                  anything else: echoed byte by
 * byte, id = byte Tokenize gives the bytes as ids, Detokenize the ids as bytes. */
#ifndef TD_TESTS_CLIENT_FAKE_ROUTER_H
#define TD_TESTS_CLIENT_FAKE_ROUTER_H
#include "common/rpc/server.h"
#include "proto/tandem/v1/admin.pb-c.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

typedef struct {
    uint16_t port; /* 0: a free one, filled in */
    char address[32];
    int64_t idle_ms;                         /* of a connection; 0: the server's default */
    bool not_serving;                        /* what health says */
    bool no_pair;                            /* status has no decode daemon that is ready */
    bool unreached;                          /* kv lists miss a worker */
    atomic_int n_calls, n_cancelled, n_open; /* of Generate; open now */
    /* of the last Generate; read it when the call has ended */
    unsigned char request[65536];
    size_t n_request;
    char request_id[128];
    bool live_only; /* of the last ListTransfers */

    pthread_t thread;
    td_loop *loop;
    struct td_mailbox *box;
    td_rpc_server *server;
    td_rpc_method methods[8];
} fake_router;

/* The zeroed struct, port, idle_ms and the bools as the test likes. Listens when it returns. */
void fake_router_start(fake_router *f);
void fake_router_stop(fake_router *f); /* connections break; may be started again */
#endif
