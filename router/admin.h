/* admin.h - tandem.v1.Admin: what tandemctl asks. Status comes from the registry; links and
 * transfers are asked of every reachable worker over its control connection, each with a deadline.
 * Loop thread. */
#ifndef TD_ROUTER_ADMIN_H
#define TD_ROUTER_ADMIN_H
#include "common/rpc/server.h"
#include "router/dispatch.h"

#define TD_ADMIN_N_METHODS 3

typedef struct {
    td_registry *registry;
    td_dispatch *dispatch;
    const char *incarnation;
    const char *(*state)(void *user);
    double (*uptime_s)(void *user);
    void *user;
    size_t max_answer_bytes; /* lists are cut to it, and say so; 0: 4 MiB, as messages are */
    uint32_t n_asking;       /* calls that wait for workers */
} td_admin;

/* admin outlives the server. */
void td_admin_methods(td_admin *admin, td_rpc_method *rows);
#endif
