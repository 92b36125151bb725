/* tandem-prefill: boot, drain, exit. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/rest.h"
#include "common/serve/worker.h"
#include "common/transfer/xfer_metrics.h"
#include "prefill/report.h"
#include "prefill/service.h"
#include "prefill/warm_up.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define N_METHODS (TD_PREFILL_N_METHODS + TD_WORKER_N_METHODS + TD_HEALTH_N_METHODS)

static const char *const services[] = {"tandem.v1.Prefill", "tandem.v1.Worker",
                                       "grpc.health.v1.Health"};
enum { N_SERVICES = sizeof(services) / sizeof(services[0]) };

typedef struct {
    td_prefill_conf conf;
    td_loop *loop;
    td_metrics *metrics;
    td_xfer_metrics xfer_metrics;
    td_serve *serve;
    td_prefill_engine *engine;
    td_warm_up warm;
    td_prompts *prompts; /* NULL: not serving */
    td_prefill_service service;
    td_prefill_report report;
    td_worker_service worker;
    td_health health;
    td_rpc_method methods[N_METHODS];
    td_rpc_server *server;
    td_rest rest;
    bool draining;
    bool damaged; /* free pages were written to (debug-poison) */
} daemon_state;

/* ---- engine ---- */

static void on_fatal(void *user, const td_err *err)
{
    const daemon_state *d = user;
    const bool serving = d->prompts != NULL;
    const char *doing = serving ? "serving" : td_warm_up_runs(&d->warm) ? "warming-up" : "starting";
    td_error("prefill.fatal", "while=%s why=\"%s\"", doing, err->text);
    /* A rank that failed cannot be trusted again; systemd starts a fresh process. Threads run: no
     * destructors. */
    _exit(td_serve_fatal_status(serving, err->status));
}

static void open_prompts(daemon_state *d)
{
    td_prompts_conf conf = {.loop = d->loop,
                            .engine = d->engine,
                            .metrics = d->metrics,
                            .conf = &d->conf,
                            .incarnation = td_serve_incarnation(d->serve)};
    td_err err;
    if (td_prompts_create(&conf, &d->prompts, &err) != TD_OK) {
        on_fatal(d, &err);
        return;
    }
    d->service.prompts = d->prompts;
    d->report.prompts = d->prompts;
    if (d->draining)
        return;
    td_health_set(&d->health, true);
    td_info("prefill.ready", "listen=%s port=%u admin_port=%u ranks=%u pages=%u incarnation=%s",
            d->conf.w.listen, td_rpc_server_port(d->server), td_serve_admin_port(d->serve),
            d->conf.ranks, d->conf.w.kv_pages, td_serve_incarnation(d->serve));
    td_serve_ready(d->serve);
}

static void on_engine_ready(void *user)
{
    daemon_state *d = user;
    td_err err;
    bool wanted = d->conf.warm_up == TD_WARM_UP_AUTO ? d->conf.w.backend == TD_BACKEND_CUDA
                                                     : d->conf.warm_up == TD_WARM_UP_ON;
    if (!wanted || d->draining) {
        open_prompts(d);
        return;
    }
    if (td_warm_up_begin(&d->warm, d->engine, d->conf.chunk, d->conf.w.kv_pages, &err) != TD_OK)
        on_fatal(d, &err);
}

static void on_group(void *user, uint32_t first_layer, uint32_t last_layer, const uint32_t *crc,
                     uint32_t n)
{
    const daemon_state *d = user;
    if (d->prompts != NULL) /* else it is the warm-up's */
        td_prompts_on_group(d->prompts, first_layer, last_layer, crc, n);
}

static void on_step_done(void *user, const td_step_result *results, uint32_t n)
{
    daemon_state *d = user;
    if (d->prompts != NULL)
        td_prompts_on_done(d->prompts, results, n);
    else if (td_warm_up_on_done(&d->warm))
        open_prompts(d);
}

static void before_metrics(void *user)
{
    const daemon_state *d = user;
    td_xfer *xfers[TD_PREFILL_MAX_RANKS] = {0};
    for (uint32_t r = 0; d->engine != NULL && r < d->conf.ranks; r++)
        xfers[r] = td_prefill_engine_xfer(d->engine, r);
    td_xfer_metrics_update(&d->xfer_metrics, xfers, d->conf.ranks);
}

/* ---- drain and exit ---- */

static uint32_t active(void *user)
{
    const daemon_state *d = user;
    return d->prompts != NULL ? td_prompts_active(d->prompts) : 0;
}

static void on_drain(void *user)
{
    daemon_state *d = user;
    d->draining = true;
    td_health_set(&d->health, false);
    d->rest = (td_rest){
        .serve = d->serve, .server = d->server, .health = &d->health, .active = active, .user = d};
    td_rest_begin(&d->rest, d->loop);
}

static void on_server_closed(void *user)
{
    daemon_state *d = user;
    d->server = NULL;
    d->damaged = td_prompts_check_free(d->prompts) > 0;
    td_prompts_destroy(d->prompts);
    d->prompts = NULL;
    td_prefill_engine_close(d->engine);
    d->engine = NULL;
    td_serve_close(d->serve, NULL, NULL);
    d->serve = NULL;
}

static void on_exit_now(void *user, bool drained)
{
    daemon_state *d = user;
    td_info("prefill.exit", "drained=%d active=%u", drained, active(d));
    td_rest_stop(&d->rest);
    if (d->prompts == NULL || td_prefill_engine_busy(d->engine))
        _exit(drained ? 0 : 1); /* a step, or the boot with its warm-up, is under way on threads
                                   that cannot be stopped; nothing of ours outlives the process */
    td_rpc_server_close(d->server, on_server_closed, d);
}

/* ---- boot ---- */

static td_status open_server(daemon_state *d, const td_addr *listen, td_err *err)
{
    d->service.serve = d->serve;
    d->service.conf = &d->conf;
    d->service.engine = d->engine;
    d->report.engine = d->engine;
    d->report.conf = &d->conf;
    d->report.service = &d->service;
    d->worker = (td_worker_service){.serve = d->serve,
                                    .role = "prefill",
                                    .status = td_prefill_report_status,
                                    .links = td_prefill_report_links,
                                    .transfers = td_prefill_report_transfers,
                                    .user = &d->report};
    td_health_init(&d->health, services, N_SERVICES);
    td_rpc_method *row = d->methods;
    td_prefill_methods(&d->service, row);
    td_worker_methods(&d->worker, row += TD_PREFILL_N_METHODS);
    td_health_methods(&d->health, row + TD_WORKER_N_METHODS);
    td_rpc_server_conf conf = {
        .listen = *listen,
        .methods = d->methods,
        .n_methods = N_METHODS,
        .name = "control",
        .metrics = d->metrics,
        .max_message_bytes = TD_WORKER_MAX_MESSAGE,
        .max_streams = td_worker_max_streams(&d->conf.w),
        .max_backlog_bytes = 16U << 20, /* a decode daemon that is slow to read holds KV, not us */
        .keepalive_ms = 1000,
        .keepalive_reply_ms = 2000, /* a stopped decode daemon's prompts are given up */
    };
    return td_rpc_server_open(d->loop, &conf, &d->server, err);
}

static td_status boot(daemon_state *d, td_err *err)
{
    td_addr listen, admin, kv_listen;
    const td_worker_conf *w = &d->conf.w;
    td_status st = td_listen_addr("listen", w->listen, w->allow_plaintext, &listen, err);
    if (st == TD_OK)
        st = td_listen_addr("admin", w->admin, w->allow_plaintext, &admin, err);
    if (st == TD_OK)
        st = td_kv_listen_addr(w->kv_listen, w->listen, w->allow_plaintext, d->conf.ranks,
                               &kv_listen, err);
    if (st == TD_OK)
        st = td_metrics_create(256, &d->metrics, err);
    if (st == TD_OK)
        st = td_xfer_metrics_init(&d->xfer_metrics, d->metrics, err);
    if (st == TD_OK)
        st = td_loop_create(&d->loop, err);
    if (st != TD_OK)
        return st;
    td_serve_conf serve = {.loop = d->loop,
                           .admin = admin,
                           .metrics = d->metrics,
                           .drain_ms = w->drain_timeout_ms,
                           .on_drain = on_drain,
                           .on_exit = on_exit_now,
                           .before_metrics = before_metrics,
                           .user = d};
    st = td_serve_open(&serve, &d->serve, err);
    td_prefill_engine_conf engine = {.loop = d->loop,
                                     .serve = d->serve,
                                     .conf = &d->conf,
                                     .kv_listen = kv_listen,
                                     .on_ready = on_engine_ready,
                                     .on_group = on_group,
                                     .on_done = on_step_done,
                                     .on_fatal = on_fatal,
                                     .user = d};
    if (st == TD_OK)
        st = td_prefill_engine_open(&engine, &d->engine, err);
    if (st == TD_OK)
        st = open_server(d, &listen, err);
    return st;
}

int main(int argc, char **argv)
{
    static daemon_state d; /* large; zeroed */
    td_err err;
    signal(SIGPIPE, SIG_IGN);
    td_status st = td_conf_load(&td_prefill_conf_spec, argc, argv, &d.conf, &err);
    if (st == TD_EMPTY)
        return 0;
    if (st != TD_OK) {
        fprintf(stderr, "tandem-prefill: %s\n", err.text);
        return 2;
    }
    td_log_init("tandem-prefill", (td_log_level)d.conf.w.log_level,
                getenv("JOURNAL_STREAM") != NULL);
    st = boot(&d, &err);
    if (st != TD_OK) {
        td_error("prefill.start", "why=\"%s\"", err.text);
        /* Half-built, and threads may run: the kernel frees what there is. */
        _exit(td_serve_exit_status(st));
    }
    td_loop_run(d.loop);
    td_loop_destroy(d.loop);
    td_metrics_destroy(d.metrics);
    td_conf_free(&td_prefill_conf_spec, &d.conf);
    return d.damaged ? 1 : 0;
}
