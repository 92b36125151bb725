/* rest.h - how a draining daemon comes to rest: its work ends, its peers are told, their last bytes
 * leave, then td_serve_drained(). Loop thread. */
#ifndef TD_SERVE_REST_H
#define TD_SERVE_REST_H
#include "common/rpc/server.h"
#include "common/serve/health.h"
#include "common/serve/serve.h"

typedef struct {
    td_serve *serve;
    td_rpc_server *server;
    td_health *health;
    uint32_t (*active)(void *user); /* what must end first */
    void *user;
    /* private */
    td_timer look;
    bool telling;
    int64_t until_ns;
} td_rest;

/* The public fields are set; td_serve_drained() follows, unless td_rest_stop() is called first. */
void td_rest_begin(td_rest *rest, td_loop *loop);
void td_rest_stop(td_rest *rest); /* zeroed is fine */
#endif
