/* registry.h - the workers: a control connection to each, a heartbeat that carries state, load and
 * incarnation, and the choice of the least loaded pair. Overload is not ill health: a full worker
 * stays reachable. Loop thread. */
#ifndef TD_ROUTER_REGISTRY_H
#define TD_ROUTER_REGISTRY_H
#include "common/rpc/client.h"
#include "proto/tandem/v1/worker.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum { TD_ROLE_PREFILL, TD_ROLE_DECODE, TD_N_ROLES } td_role;

typedef struct td_registry td_registry;
typedef struct td_worker td_worker;

/* What a request asks for, whoever serves it. */
typedef struct {
    uint32_t n_prompt, max_tokens;
} td_need;

/* What it takes of one worker while it runs there: page size and drafts are the worker's. */
typedef struct {
    uint32_t pages;
    uint64_t tokens;
} td_claim;

struct td_worker { /* read by dispatch and admin; written by the registry */
    td_registry *registry;
    td_role role;
    char address[272];
    td_rpc_client *client;
    td_rpc_request *heartbeat;        /* under way, or NULL */
    Tandem__V1__WorkerStatus *status; /* the last one heard, or NULL */
    bool reachable;                   /* it answered within the deadline */
    bool full;                        /* it refused for want of room since its last heartbeat */
    char why[256];                    /* why it is not used; "" when it is */
    int64_t asked_ns, heard_ns;       /* last heartbeat's start and last answer; 0: never */
    td_timer patience;                /* with the heartbeat under way */
    bool second_look;                 /* its time is over; what waits in the socket is read first */
    uint32_t n_claims;
    td_claim claimed;  /* sum over the requests that this router runs there */
    uint64_t last_use; /* a counter: equal load goes to who waited longest */
    uint64_t room;     /* tokens of the longest request it can hold; 0: it is not ready */
};

typedef struct {
    td_loop *loop;
    const char *incarnation; /* the router's */
    int64_t heartbeat_ms, heartbeat_timeout_ms;
    /* A worker is lost: out of reach, or another process stands behind its address. */
    void (*on_lost)(void *user, td_worker *worker, const char *why);
    void (*on_change)(void *user); /* there may be room or health that was not there before */
    void *user;
} td_registry_conf;

td_status td_registry_create(const td_registry_conf *conf, td_registry **out, td_err *err);
td_status td_registry_add(td_registry *registry, td_role role, const char *address, td_err *err);
/* Ends heartbeats and connections; on_closed when all are gone and the registry is freed. */
void td_registry_close(td_registry *registry, void (*on_closed)(void *user), void *user);

uint32_t td_registry_count(const td_registry *registry);
td_worker *td_registry_worker(td_registry *registry, uint32_t index);

bool td_worker_ready(const td_worker *worker); /* reachable and in state "ready" */
uint32_t td_worker_total_pages(const td_worker *worker);
td_claim td_worker_claim_of(const td_worker *worker, td_need need); /* it has been heard */
/* Claim fits beside what this router runs there already. */
bool td_worker_has_room(const td_worker *worker, td_claim claim);
/* The least loaded ready worker of that role with room; `not_this` is left out (NULL: none is).
 * NULL: no such worker. */
td_worker *td_registry_pick(td_registry *registry, td_role role, td_need need,
                            const td_worker *not_this);
bool td_registry_any_ready(const td_registry *registry, td_role role, const td_worker *not_this);
/* The ready worker of that role that can hold the longest request when it is empty; `not_this` is
 * left out. NULL: none is ready. */
const td_worker *td_registry_largest(const td_registry *registry, td_role role,
                                     const td_worker *not_this);
/* Another number whenever a worker has become ready or not, or its size has changed: what fitted
 * may fit no more. */
uint64_t td_registry_changes(const td_registry *registry);
void td_worker_claim(td_worker *worker, td_claim claim);
void td_worker_unclaim(td_worker *worker, td_claim claim);
const char *td_role_name(td_role role);
#endif
