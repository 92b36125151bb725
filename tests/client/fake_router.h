/* fake_router.h - tandem.v1.Inference, Admin and health on a thread of its own, whose answers the
 * prompt chooses:
 *   "fail CODE TEXT"   ends with that gRPC status       "late CODE"  after one piece
 *   "slow"             a piece every 10 ms until it is cancelled
 *   "stop"             as a stopped process: reads and says nothing until `stopped` is cleared
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

typedef struct {                 /* what was asked last */
    unsigned char request[4096]; /* [n_request] of Generate */
    size_t n_request;
    char request_id[128];
    bool live_only; /* of ListTransfers */
} fake_last;

typedef struct {
    uint16_t port; /* 0: a free one, filled in */
    char address[32];
    int64_t idle_ms;                         /* of a connection; 0: the server's default */
    atomic_bool not_serving;                 /* what health says */
    atomic_bool no_pair;                     /* status has no decode daemon that is ready */
    atomic_bool cut;                         /* kv lists leave 7 rows out */
    atomic_bool unreached;                   /* kv lists miss a worker */
    atomic_bool stopped;                     /* "stop" was asked; false lets it go on */
    atomic_int n_calls, n_cancelled, n_open; /* of Generate; open now */

    fake_last last; /* under lock: fake_router_last() */
    pthread_mutex_t lock;
    pthread_t thread;
    td_loop *loop;
    struct td_mailbox *box;
    td_rpc_server *server;
    td_rpc_method methods[8];
} fake_router;

/* The zeroed struct, port, idle_ms and the bools as the test likes. Listens when it returns. */
void fake_router_start(fake_router *f);
const fake_last *fake_router_last(fake_router *f); /* a copy, good until the next call */
void fake_router_stop(fake_router *f);             /* connections break; may be started again */
#endif
