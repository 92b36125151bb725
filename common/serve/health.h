/* health.h - grpc.health.v1: Check answers now, Watch streams every change. The empty service name
 * is the process. Loop thread. */
#ifndef TD_SERVE_HEALTH_H
#define TD_SERVE_HEALTH_H
#include "common/rpc/server.h"

#include <stdbool.h>

#define TD_HEALTH_MAX_SERVICES 8
#define TD_HEALTH_MAX_WATCHERS 256
#define TD_HEALTH_N_METHODS 2

typedef struct {
    const char *services[TD_HEALTH_MAX_SERVICES]; /* [n_services]; constants */
    uint32_t n_services;
    bool serving; /* of all of them */
    struct {
        td_rpc_call *call;
        bool known;                     /* the service it watches exists */
    } watchers[TD_HEALTH_MAX_WATCHERS]; /* call NULL: free */
} td_health;

void td_health_init(td_health *health, const char *const *services, uint32_t n_services);
/* Fills TD_HEALTH_N_METHODS rows of a server's method table; health outlives the server. */
void td_health_methods(td_health *health, td_rpc_method *rows);
void td_health_set(td_health *health, bool serving); /* tells the watchers */
void td_health_end(td_health *health); /* ends every Watch: the process is about to exit */
#endif
