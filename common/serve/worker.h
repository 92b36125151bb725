/* worker.h - tandem.v1.Worker: the heartbeat, links and transfers of a prefill or decode daemon.
 * The daemon fills in what it knows. Loop thread. */
#ifndef TD_SERVE_WORKER_H
#define TD_SERVE_WORKER_H
#include "common/rpc/server.h"
#include "common/serve/serve.h"
#include "proto/tandem/v1/worker.pb-c.h"

#define TD_WORKER_N_METHODS 3
#define TD_WORKER_MAX_PAGE_STATES 8
#define TD_WORKER_MAX_ROWS 512            /* links or transfers in one answer */
#define TD_WORKER_MAX_MESSAGE (16U << 20) /* prompts of a million ids fit */

typedef struct {
    td_serve *serve;
    const char *role; /* "prefill", "decode" */
    /* Fills status but role, state, incarnation, version, uptime. pages points to
     * TD_WORKER_MAX_PAGE_STATES initialised messages: set n_pages. */
    void (*status)(void *user, Tandem__V1__WorkerStatus *status);
    /* Fill up to TD_WORKER_MAX_ROWS initialised rows; return how many there are, which may be more.
     * Strings live until the next call. */
    uint32_t (*links)(void *user, Tandem__V1__Link *rows);
    uint32_t (*transfers)(void *user, bool live_only, Tandem__V1__Transfer *rows);
    void *user;
} td_worker_service;

/* service outlives the server. */
void td_worker_methods(td_worker_service *service, td_rpc_method *rows);
#endif
