/* tandem-router: boot, drain, exit. The order of closing is: front and admin RPC, workers, life. */
#include "common/base/log.h"
#include "common/serve/ident.h"
#include "common/serve/reflection.h"
#include "common/serve/rest.h"
#include "router/admin.h"
#include "router/conf.h"
#include "router/front.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define N_METHODS                                                                                  \
    (TD_FRONT_N_METHODS + TD_ADMIN_N_METHODS + TD_HEALTH_N_METHODS + TD_REFLECTION_N_METHODS)

static const char *const services[] = {
    "tandem.v1.Inference", "tandem.v1.Admin", "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"};
enum { N_SERVICES = sizeof(services) / sizeof(services[0]) };

typedef struct {
    td_router_conf conf;
    td_loop *loop;
    td_metrics *metrics;
    td_serve *serve;
    td_model_info model;
    td_registry *registry;
    td_dispatch *dispatch;
    td_front *front;
    td_admin admin;
    td_health health;
    td_reflection *reflection;
    td_rpc_method methods[N_METHODS];
    td_rpc_server *server;
    bool draining;
    td_rest rest;
} router;

/* ---- life ---- */

static void update_health(router *r)
{
    bool prefill = td_registry_any_ready(r->registry, TD_ROLE_PREFILL, NULL);
    bool decode = td_registry_any_ready(r->registry, TD_ROLE_DECODE, NULL);
    td_health_set(&r->health, prefill && decode && !r->draining);
    td_serve_status(r->serve, "%u requests, prefill %s, decode %s", td_dispatch_active(r->dispatch),
                    prefill ? "ready" : "not ready", decode ? "ready" : "not ready");
}

static void on_worker_lost(void *user, td_worker *worker, const char *why)
{
    router *r = user;
    td_dispatch_worker_lost(r->dispatch, worker, why);
    update_health(r);
}

static void on_worker_change(void *user)
{
    router *r = user;
    update_health(r);
    td_dispatch_pump(r->dispatch);
}

static uint32_t active(void *user)
{
    return td_front_active(((router *)user)->front);
}

static void on_drain(void *user)
{
    router *r = user;
    r->draining = true;
    td_front_drain(r->front);
    update_health(r);
    r->rest = (td_rest){
        .serve = r->serve, .server = r->server, .health = &r->health, .active = active, .user = r};
    td_rest_begin(&r->rest, r->loop);
}

static void on_registry_closed(void *user)
{
    router *r = user;
    r->registry = NULL;
    td_serve_close(r->serve, NULL, NULL);
    r->serve = NULL;
}

static void on_server_closed(void *user)
{
    router *r = user;
    r->server = NULL;
    td_registry_close(r->registry, on_registry_closed, r);
}

static void on_exit_now(void *user, bool drained)
{
    router *r = user;
    td_info("router.exit", "drained=%d active=%u", drained, td_front_active(r->front));
    td_rest_stop(&r->rest);
    td_rpc_server_close(r->server, on_server_closed, r);
}

static const char *state_name(void *user)
{
    return td_serve_state_name(td_serve_get_state(((router *)user)->serve));
}

static double uptime_s(void *user)
{
    return td_serve_uptime_s(((router *)user)->serve);
}

/* ---- boot ---- */

static td_status open_registry(router *r, td_err *err)
{
    td_registry_conf conf = {
        .loop = r->loop,
        .incarnation = td_serve_incarnation(r->serve),
        .heartbeat_ms = r->conf.heartbeat_ms,
        .heartbeat_timeout_ms = r->conf.heartbeat_timeout_ms,
        .on_lost = on_worker_lost,
        .on_change = on_worker_change,
        .user = r,
    };
    td_status st = td_registry_create(&conf, &r->registry, err);
    for (uint32_t i = 0; st == TD_OK && i < r->conf.prefill_workers.n; i++)
        st = td_registry_add(r->registry, TD_ROLE_PREFILL, r->conf.prefill_workers.items[i], err);
    for (uint32_t i = 0; st == TD_OK && i < r->conf.decode_workers.n; i++)
        st = td_registry_add(r->registry, TD_ROLE_DECODE, r->conf.decode_workers.items[i], err);
    return st;
}

static td_status open_dispatch_and_front(router *r, td_err *err)
{
    td_dispatch_conf dispatch = {
        .loop = r->loop,
        .registry = r->registry,
        .metrics = r->metrics,
        .queue_length = r->conf.queue_length,
        .max_requests = r->conf.max_requests,
        .worker_wait_ms = r->conf.worker_wait_ms,
    };
    td_status st = td_dispatch_create(&dispatch, &r->dispatch, err);
    if (st != TD_OK)
        return st;
    td_front_conf front = {
        .loop = r->loop,
        .dispatch = r->dispatch,
        .model = &r->model,
        .metrics = r->metrics,
        .default_max_tokens = r->conf.default_max_tokens,
        .max_requests = r->conf.max_requests,
        .request_timeout_ms = r->conf.request_timeout_ms,
    };
    return td_front_create(&front, &r->front, err);
}

static td_status open_server(router *r, const td_addr *listen, td_err *err)
{
    td_status st = td_reflection_create(services, N_SERVICES, &r->reflection, err);
    if (st != TD_OK)
        return st;
    td_health_init(&r->health, services, N_SERVICES);
    r->admin = (td_admin){.registry = r->registry,
                          .dispatch = r->dispatch,
                          .incarnation = td_serve_incarnation(r->serve),
                          .state = state_name,
                          .uptime_s = uptime_s,
                          .max_answer_bytes = r->conf.max_message_bytes,
                          .user = r};
    td_rpc_method *row = r->methods;
    td_front_methods(r->front, row);
    td_admin_methods(&r->admin, row += TD_FRONT_N_METHODS);
    td_health_methods(&r->health, row += TD_ADMIN_N_METHODS);
    td_reflection_methods(r->reflection, row + TD_HEALTH_N_METHODS);
    td_rpc_server_conf conf = {
        .listen = *listen,
        .methods = r->methods,
        .n_methods = N_METHODS,
        .name = "front",
        .metrics = r->metrics,
        .max_message_bytes = r->conf.max_message_bytes,
        .max_backlog_bytes = r->conf.backlog_bytes,
    };
    return td_rpc_server_open(r->loop, &conf, &r->server, err);
}

static td_status boot(router *r, td_err *err)
{
    td_addr listen, admin;
    td_status st = td_listen_addr("listen", r->conf.listen, r->conf.allow_plaintext, &listen, err);
    if (st == TD_OK)
        st = td_listen_addr("admin", r->conf.admin, r->conf.allow_plaintext, &admin, err);
    if (st == TD_OK)
        st = td_model_info_load(&r->model, r->conf.model, r->conf.model_name, err);
    if (st == TD_OK)
        st = td_metrics_create(256, &r->metrics, err);
    if (st == TD_OK)
        st = td_loop_create(&r->loop, err);
    if (st != TD_OK)
        return st;
    td_serve_conf serve = {.loop = r->loop,
                           .admin = admin,
                           .metrics = r->metrics,
                           .drain_ms = r->conf.drain_timeout_ms,
                           .on_drain = on_drain,
                           .on_exit = on_exit_now,
                           .user = r};
    st = td_serve_open(&serve, &r->serve, err);
    if (st == TD_OK)
        st = open_registry(r, err);
    if (st == TD_OK)
        st = open_dispatch_and_front(r, err);
    if (st == TD_OK)
        st = open_server(r, &listen, err);
    return st;
}

static void tear_down(router *r)
{
    td_reflection_destroy(r->reflection);
    td_dispatch_destroy(r->dispatch);
    td_loop_destroy(r->loop);
    td_front_destroy(r->front);
    td_metrics_destroy(r->metrics);
    td_model_info_fini(&r->model);
    td_conf_free(&td_router_conf_spec, &r->conf);
}

int main(int argc, char **argv)
{
    static router r; /* large; zeroed */
    td_err err;
    signal(SIGPIPE, SIG_IGN);
    td_status st = td_conf_load(&td_router_conf_spec, argc, argv, &r.conf, &err);
    if (st == TD_EMPTY)
        return 0;
    if (st != TD_OK) {
        fprintf(stderr, "tandem-router: %s\n", err.text);
        return 2;
    }
    td_log_init("tandem-router", (td_log_level)r.conf.log_level, getenv("JOURNAL_STREAM") != NULL);
    st = boot(&r, &err);
    if (st != TD_OK) {
        td_error("router.start", "why=\"%s\"", err.text);
        exit(td_serve_exit_status(st)); /* half-built: the kernel frees what there is */
    }
    td_info("router.ready", "listen=%s port=%u admin_port=%u model=%s incarnation=%s",
            r.conf.listen, td_rpc_server_port(r.server), td_serve_admin_port(r.serve), r.model.name,
            td_serve_incarnation(r.serve));
    td_serve_ready(r.serve);
    td_loop_run(r.loop);
    tear_down(&r);
    return 0;
}
