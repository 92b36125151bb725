#include "common/serve/health.h"

#include "common/serve/message.h"
#include "proto/grpc/health/v1/health.pb-c.h"

#include <string.h>

typedef Grpc__Health__V1__HealthCheckRequest check_request;
typedef Grpc__Health__V1__HealthCheckResponse check_response;

static bool is_known(const td_health *health, const char *service)
{
    if (service[0] == '\0')
        return true;
    for (uint32_t i = 0; i < health->n_services; i++)
        if (strcmp(service, health->services[i]) == 0)
            return true;
    return false;
}

static check_response answer_for(const td_health *health, bool known)
{
    check_response res = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    res.status = !known ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN
                 : health->serving
                     ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                     : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    return res;
}

/* TD_OK: *known says whether the asked service exists; otherwise the call was failed. */
static td_status read_request(const td_health *health, td_rpc_call *call, const void *msg,
                              size_t len, bool *known)
{
    ProtobufCMessage *message;
    td_err err;
    td_status st = td_message_unpack(&grpc__health__v1__health_check_request__descriptor, msg, len,
                                     &message, &err);
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return st;
    }
    *known = is_known(health, ((check_request *)message)->service);
    protobuf_c_message_free_unpacked(message, NULL);
    return TD_OK;
}

static void on_check(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_health *health = user;
    bool known;
    if (read_request(health, call, msg, len, &known) != TD_OK)
        return;
    if (!known) {
        td_rpc_call_finish(call, TD_GRPC_NOT_FOUND, "health: no such service");
        return;
    }
    check_response res = answer_for(health, true);
    td_message_reply(call, &res.base);
}

static void on_watch(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_health *health = user;
    bool known;
    if (read_request(health, call, msg, len, &known) != TD_OK)
        return;
    for (uint32_t i = 0; i < TD_HEALTH_MAX_WATCHERS; i++) {
        if (health->watchers[i].call != NULL)
            continue;
        health->watchers[i].call = call;
        health->watchers[i].known = known;
        check_response res = answer_for(health, known);
        td_message_send(call, &res.base); /* a refusal is followed by on_watch_cancelled */
        return;
    }
    td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "health: too many watchers");
}

static void on_watch_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    td_health *health = user;
    (void)why;
    for (uint32_t i = 0; i < TD_HEALTH_MAX_WATCHERS; i++)
        if (health->watchers[i].call == call)
            health->watchers[i].call = NULL;
}

static void on_check_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    (void)call;
    (void)user;
    (void)why;
}

void td_health_init(td_health *health, const char *const *services, uint32_t n_services)
{
    td_assert(n_services <= TD_HEALTH_MAX_SERVICES);
    memset(health, 0, sizeof(*health));
    for (uint32_t i = 0; i < n_services; i++)
        health->services[i] = services[i];
    health->n_services = n_services;
}

void td_health_methods(td_health *health, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/grpc.health.v1.Health/Check",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_check,
                              .on_cancelled = on_check_cancelled,
                              .user = health};
    rows[1] = (td_rpc_method){.path = "/grpc.health.v1.Health/Watch",
                              .kind = TD_RPC_SERVER_STREAMING,
                              .on_message = on_watch,
                              .on_cancelled = on_watch_cancelled,
                              .user = health};
}

void td_health_set(td_health *health, bool serving)
{
    if (health->serving == serving)
        return;
    health->serving = serving;
    for (uint32_t i = 0; i < TD_HEALTH_MAX_WATCHERS; i++) {
        if (health->watchers[i].call == NULL || !health->watchers[i].known)
            continue;
        check_response res = answer_for(health, true);
        td_message_send(health->watchers[i].call, &res.base);
    }
}

void td_health_end(td_health *health)
{
    for (uint32_t i = 0; i < TD_HEALTH_MAX_WATCHERS; i++) {
        if (health->watchers[i].call == NULL)
            continue;
        td_rpc_call_finish(health->watchers[i].call, TD_GRPC_UNAVAILABLE, "the process ends");
        health->watchers[i].call = NULL;
    }
}
