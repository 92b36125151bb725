/* world.h - a router's parts beside made-up workers and a client, all on one loop in one process. A
 * made-up decode daemon keeps its calls until the test says how they go on. Whatever hangs is cut
 * off by a patience timer. */
#ifndef TD_TESTS_ROUTER_WORLD_H
#define TD_TESTS_ROUTER_WORLD_H
#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/health.h"
#include "common/serve/reflection.h"
#include "proto/tandem/v1/decode.pb-c.h"
#include "proto/tandem/v1/inference.pb-c.h"
#include "router/admin.h"
#include "router/front.h"

#define FAKE_MAX_CALLS 64
#define WORLD_MAX_WORKERS 6
#define FAKE_METHODS 4

typedef struct fake_worker fake_worker;

typedef struct { /* one Decode.Generate */
    fake_worker *worker;
    td_rpc_call *call;                  /* NULL: over */
    Tandem__V1__DecodeRequest *request; /* until the world closes */
    char request_id[80];                /* the metadata's */
    bool cancelled;
    td_grpc_status why; /* cancelled for */
} fake_call;

struct fake_worker {
    struct world *world;
    td_role role;
    td_rpc_server *server; /* NULL: killed */
    char address[64];
    uint16_t port; /* kept over restarts */
    int port_fd;   /* td_test_hold_port()'s */
    char incarnation[17];
    /* what its heartbeats say; read at each */
    const char *state, *says_role; /* says_role NULL: its own */
    uint32_t pages, page_tokens, max_requests, active, drafts;
    bool silent;      /* takes calls, answers none: a stopped process */
    bool no_links;    /* answers GetLinks and GetTransfers with INTERNAL */
    bool refuse_room; /* Generate ends with RESOURCE_EXHAUSTED at once */
    uint32_t n_restarts, n_heartbeats;
    uint32_t omits;                  /* rows that GetTransfers says it left out */
    char list_id[80];                /* x-request-id of the last GetTransfers */
    fake_call calls[FAKE_MAX_CALLS]; /* [n_calls], as they came */
    uint32_t n_calls;
    td_rpc_method methods[FAKE_METHODS];
};

typedef struct {
    uint32_t n_prefill, n_decode; /* [1] */
    uint32_t pages, max_requests; /* of each worker [64, 8] */
    uint32_t queue_length;        /* [4]; NO_QUEUE: 0 */
    uint32_t router_max_requests; /* [16] */
    int64_t worker_wait_ms;       /* [200] */
    int64_t request_timeout_ms;   /* [10 s] */
    int64_t heartbeat_ms;         /* [20] */
    int64_t heartbeat_timeout_ms; /* [150] */
    size_t backlog_bytes;         /* [1 MiB] */
    const char *model;            /* folder [the bundled one] */
    bool front;                   /* with the gRPC front and a client */
} world_conf;
#define NO_QUEUE UINT32_MAX

typedef struct world {
    world_conf conf;
    td_loop *loop;
    td_metrics *metrics;
    td_registry *registry;
    td_dispatch *dispatch;
    td_model_info model;
    td_front *front;
    td_admin admin;
    td_health health;
    td_reflection *reflection;
    td_rpc_method methods[TD_FRONT_N_METHODS + TD_ADMIN_N_METHODS + TD_HEALTH_N_METHODS +
                          TD_REFLECTION_N_METHODS];
    td_rpc_server *server;
    td_rpc_client *client;
    fake_worker workers[WORLD_MAX_WORKERS]; /* prefill first */
    uint32_t n_workers, n_open;
    td_timer patience, beat;
} world;

/* Opens everything and runs until every worker is ready. */
void world_open(world *w, const world_conf *conf);
/* Everything is idle (checked), closes all. */
void world_close(world *w);
/* Gauges and claims are zero. */
void world_check_idle(world *w);
int64_t world_gauge(world *w, const char *name);
void world_turn(world *w); /* about a millisecond */
void world_run_ms(world *w, int64_t ms);
#define RUN_UNTIL(w, cond)                                                                         \
    do {                                                                                           \
        while (!(cond))                                                                            \
            world_turn(w);                                                                         \
    } while (0)

fake_worker *world_prefill(world *w, uint32_t i);
fake_worker *world_decode(world *w, uint32_t i);
td_worker *world_registered(world *w, const fake_worker *fake); /* the registry's view */
/* The calls of all decode daemons that have come, ended ones too. */
uint32_t world_n_calls(const world *w);
fake_call *world_call(world *w, uint32_t i);

void fake_kill(fake_worker *f);  /* connections break at once */
void fake_start(fake_worker *f); /* again, at the same address, another incarnation */
void fake_send(fake_call *c, const uint32_t *ids, uint32_t n);
void fake_finish(fake_call *c, const char *reason); /* a last event and OK */
void fake_fail(fake_call *c, td_grpc_status status, const char *side, const char *message);
#endif
