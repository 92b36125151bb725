/* tandem-decode: boot, drain, exit. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/rest.h"
#include "common/serve/worker.h"
#include "common/transfer/xfer_metrics.h"
#include "decode/draw.h"
#include "decode/report.h"
#include "decode/service.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

#define MAX_LINKS 512 /* ranks of all peers, and links that are being closed */
#define N_METHODS (TD_DECODE_N_METHODS + TD_WORKER_N_METHODS + TD_HEALTH_N_METHODS)

static const char *const services[] = {"tandem.v1.Decode", "tandem.v1.Worker",
                                       "grpc.health.v1.Health"};
enum { N_SERVICES = sizeof(services) / sizeof(services[0]) };

typedef struct {
    td_decode_conf conf;
    td_addr kv_listen;
    td_loop *loop;
    td_metrics *metrics;
    td_xfer_metrics xfer_metrics;
    td_serve *serve;
    td_decode_engine *engine;
    td_xfer *xfer;
    uv_async_t xfer_wake;
    td_peers *peers;
    td_requests *requests;
    td_decode_service service;
    td_decode_report report;
    td_worker_service worker;
    td_health health;
    td_rpc_method methods[N_METHODS];
    td_rpc_server *server;
    td_rest rest;
    bool draining;
    bool damaged; /* free pages were written to (debug-poison) */
} daemon_state;

static void on_fatal(void *user, const td_err *err)
{
    const daemon_state *d = user;
    const bool serving = d->requests != NULL;
    td_error("decode.fatal", "while=%s why=\"%s\"", serving ? "serving" : "starting", err->text);
    /* An engine that failed cannot be trusted again; systemd starts a fresh process. Threads run:
     * no destructors. */
    _exit(td_serve_fatal_status(serving, err->status));
}

/* ---- transfer events ---- */

static void wake_loop(void *arg)
{
    uv_async_send(arg); /* on the transfer thread */
}

static void on_xfer_wake(uv_async_t *async)
{
    daemon_state *d = async->data;
    td_xfer_event event;
    bool jobs = false;
    while (d->xfer != NULL && td_xfer_next(d->xfer, &event) == TD_OK) {
        if (event.kind == TD_XFER_JOB_DONE) {
            td_draw_on_job(d->requests, &event);
            jobs = true;
        } else {
            td_peers_on_link(d->peers, &event);
        }
    }
    if (jobs)
        td_draw_retry(d->requests);
}

static td_status open_xfer(daemon_state *d, td_err *err)
{
    const td_worker_conf *w = &d->conf.w;
    const td_kv_slab *slab = td_decode_engine_slab(d->engine);
    td_xfer_region regions[] = {
        [TD_XFER_PAGES] = {slab->base, slab->page_stride, slab->n_pages, 0},
        [TD_XFER_BLOBS] = {td_decode_engine_blobs(d->engine),
                           td_decode_engine_blob_bytes(d->engine), w->max_requests, 0},
    };
    td_xfer_config conf;
    td_xfer_fault fault;
    char listen[272];
    if (w->kv_path == TD_XFER_DIRECT && !td_device_is_gpu(td_decode_engine_rank(d->engine)->device))
        return td_fail(err, TD_CONFIG, "kv-path direct is for pages in GPU memory");
    td_xfer_config_init(&conf);
    conf.listen = td_kv_rank_addr(&d->kv_listen, 0, listen); /* tells whether peers are elsewhere */
    conf.transport = (td_xfer_transport)w->transport;
    conf.allow_tcp = w->allow_tcp;
    conf.net_devices = w->net_devices[0] != '\0' ? w->net_devices : NULL;
    conf.port_range = w->port_range[0] != '\0' ? w->port_range : NULL;
    conf.incarnation = td_serve_incarnation(d->serve);
    conf.regions = regions;
    conf.n_regions = 2;
    conf.connect_ms = d->conf.peer_timeout_ms;
    conf.max_links = MAX_LINKS;
    conf.device = td_decode_engine_rank(d->engine)->device;
    conf.device_regions = 1U << TD_XFER_PAGES;
    conf.path = (td_xfer_path)w->kv_path;
    conf.crc = td_rank_page_crc;
    conf.crc_arg = td_decode_engine_rank(d->engine);
    conf.ring_bytes = (uint64_t)w->kv_ring_mib << 20;
    conf.wake = wake_loop;
    conf.wake_arg = &d->xfer_wake;
    td_status st = td_xfer_fault_parse(w->debug_faults, &fault, err);
    if (st == TD_OK)
        st = td_xfer_create(&conf, &d->xfer, err);
    if (st == TD_OK)
        td_info("decode.kv", "kv=%s", td_xfer_kv_path(d->xfer));
    if (st == TD_OK && fault.kind != TD_XFER_FAULT_NONE) {
        td_warn("decode.fault", "debug-faults=\"%s\"", w->debug_faults);
        td_xfer_set_fault(d->xfer, &fault);
    }
    return st;
}

/* ---- the parts told of each other ---- */

static void on_peer_up(void *user, td_peer *peer)
{
    td_requests_on_peer_up(((daemon_state *)user)->requests, peer);
}

static void on_peer_down(void *user, td_peer *peer, const td_err *why)
{
    td_requests_on_peer_down(((daemon_state *)user)->requests, peer, why);
}

static uint32_t held_numbers(void *user, const td_peer *peer, uint64_t *numbers, uint32_t max)
{
    return td_requests_held(((daemon_state *)user)->requests, peer, numbers, max);
}

static void on_unknown(void *user, td_peer *peer, uint64_t number)
{
    td_requests *requests = ((daemon_state *)user)->requests;
    td_request *r = td_requests_find(requests, number);
    if (r != NULL && r->state == TD_REQUEST_DRAWING && r->peer == peer && r->prefill_done)
        td_request_fail(requests, r, TD_PEER_LOST, "transfer", "prefill",
                        "the prefill daemon gave the pages up");
}

static void on_result(void *user, const td_engine_result *result)
{
    td_requests_on_result(((daemon_state *)user)->requests, result);
}

static void on_left(void *user, uint32_t slot, uint64_t owner)
{
    td_requests_on_left(((daemon_state *)user)->requests, slot, owner);
}

static td_status open_requests(daemon_state *d, td_err *err)
{
    td_requests_conf requests = {.loop = d->loop,
                                 .engine = d->engine,
                                 .metrics = d->metrics,
                                 .conf = &d->conf,
                                 .incarnation = td_serve_incarnation(d->serve)};
    td_status st = td_requests_create(&requests, &d->requests, err);
    if (st != TD_OK)
        return st;
    td_peers_conf peers = {.loop = d->loop,
                           .xfer = d->xfer,
                           .conf = &d->conf,
                           .incarnation = td_serve_incarnation(d->serve),
                           .address = d->conf.w.listen,
                           .fingerprint = td_decode_engine_fingerprint(d->engine),
                           .blob_bytes = td_decode_engine_blob_bytes(d->engine),
                           .on_up = on_peer_up,
                           .on_down = on_peer_down,
                           .held_numbers = held_numbers,
                           .on_unknown = on_unknown,
                           .user = d};
    st = td_peers_create(&peers, &d->peers, err);
    if (st == TD_OK)
        td_requests_set_transport(d->requests, d->peers, d->xfer);
    return st;
}

static void on_engine_ready(void *user)
{
    daemon_state *d = user;
    td_err err;
    td_status st = open_xfer(d, &err);
    if (st == TD_OK)
        st = open_requests(d, &err);
    if (st != TD_OK) {
        on_fatal(d, &err);
        return;
    }
    d->service.requests = d->report.requests = d->requests;
    d->report.xfer = d->xfer;
    if (d->draining)
        return;
    td_health_set(&d->health, true);
    td_info("decode.ready", "listen=%s port=%u admin_port=%u drafts=%u pages=%u incarnation=%s",
            d->conf.w.listen, td_rpc_server_port(d->server), td_serve_admin_port(d->serve),
            td_decode_engine_drafts(d->engine), d->conf.w.kv_pages, td_serve_incarnation(d->serve));
    td_serve_ready(d->serve);
}

static void before_metrics(void *user)
{
    daemon_state *d = user;
    td_xfer_metrics_update(&d->xfer_metrics, &d->xfer, 1);
}

/* ---- drain and exit ---- */

static uint32_t active(void *user)
{
    const daemon_state *d = user;
    return d->requests != NULL ? td_requests_active(d->requests) : 0;
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

static void on_peers_closed(void *user)
{
    daemon_state *d = user;
    d->peers = NULL;
    td_decode_engine_stop(d->engine);
    td_xfer_destroy(d->xfer);
    d->xfer = NULL;
    d->damaged = td_requests_check_free(d->requests) > 0;
    uv_close((uv_handle_t *)&d->xfer_wake, NULL);
    td_decode_engine_close(d->engine);
    d->engine = NULL;
    td_requests_destroy(d->requests);
    d->requests = NULL;
    td_serve_close(d->serve, NULL, NULL);
    d->serve = NULL;
}

static void on_server_closed(void *user)
{
    daemon_state *d = user;
    d->server = NULL;
    td_peers_close(d->peers, on_peers_closed, d);
}

static void on_exit_now(void *user, bool drained)
{
    daemon_state *d = user;
    td_info("decode.exit", "drained=%d active=%u", drained, active(d));
    td_rest_stop(&d->rest);
    if (d->requests == NULL)
        _exit(drained ? 0 : 1); /* the boot is under way on a thread that cannot be stopped; nothing
                                   of ours outlives the process */
    td_rpc_server_close(d->server, on_server_closed, d);
}

/* ---- boot ---- */

static td_status open_server(daemon_state *d, const td_addr *listen, td_err *err)
{
    d->service.serve = d->serve;
    d->service.engine = d->report.engine = d->engine;
    d->report.conf = &d->conf;
    d->worker = (td_worker_service){.serve = d->serve,
                                    .role = "decode",
                                    .status = td_decode_report_status,
                                    .links = td_decode_report_links,
                                    .transfers = td_decode_report_transfers,
                                    .user = &d->report};
    td_health_init(&d->health, services, N_SERVICES);
    td_rpc_method *row = d->methods;
    td_decode_methods(&d->service, row);
    td_worker_methods(&d->worker, row += TD_DECODE_N_METHODS);
    td_health_methods(&d->health, row + TD_WORKER_N_METHODS);
    td_rpc_server_conf conf = {
        .listen = *listen,
        .methods = d->methods,
        .n_methods = N_METHODS,
        .name = "control",
        .metrics = d->metrics,
        .max_message_bytes = TD_WORKER_MAX_MESSAGE,
        .max_streams = td_worker_max_streams(&d->conf.w),
    };
    return td_rpc_server_open(d->loop, &conf, &d->server, err);
}

static td_status boot(daemon_state *d, td_err *err)
{
    td_addr listen, admin;
    const td_worker_conf *w = &d->conf.w;
    td_status st = td_listen_addr("listen", w->listen, w->allow_plaintext, &listen, err);
    if (st == TD_OK)
        st = td_listen_addr("admin", w->admin, w->allow_plaintext, &admin, err);
    if (st == TD_OK)
        st = td_kv_listen_addr(w->kv_listen, w->listen, w->allow_plaintext, 0, &d->kv_listen, err);
    if (st == TD_OK)
        st = td_metrics_create(256, &d->metrics, err);
    if (st == TD_OK)
        st = td_xfer_metrics_init(&d->xfer_metrics, d->metrics, err);
    if (st == TD_OK)
        st = td_loop_create(&d->loop, err);
    if (st != TD_OK)
        return st;
    if (uv_async_init(td_loop_uv(d->loop), &d->xfer_wake, on_xfer_wake) != 0)
        return td_fail(err, TD_INTERNAL, "no wake-up for the transfer thread");
    d->xfer_wake.data = d;
    td_serve_conf serve = {.loop = d->loop,
                           .admin = admin,
                           .metrics = d->metrics,
                           .drain_ms = w->drain_timeout_ms,
                           .on_drain = on_drain,
                           .on_exit = on_exit_now,
                           .before_metrics = before_metrics,
                           .user = d};
    st = td_serve_open(&serve, &d->serve, err);
    td_decode_engine_conf engine = {.loop = d->loop,
                                    .serve = d->serve,
                                    .conf = &d->conf,
                                    .on_ready = on_engine_ready,
                                    .on_result = on_result,
                                    .on_left = on_left,
                                    .on_fatal = on_fatal,
                                    .user = d};
    if (st == TD_OK)
        st = td_decode_engine_open(&engine, &d->engine, err);
    if (st == TD_OK)
        st = open_server(d, &listen, err);
    return st;
}

int main(int argc, char **argv)
{
    static daemon_state d; /* large; zeroed */
    td_err err;
    signal(SIGPIPE, SIG_IGN);
    td_status st = td_conf_load(&td_decode_conf_spec, argc, argv, &d.conf, &err);
    if (st == TD_EMPTY)
        return 0;
    if (st != TD_OK) {
        fprintf(stderr, "tandem-decode: %s\n", err.text);
        return 2;
    }
    td_log_init("tandem-decode", (td_log_level)d.conf.w.log_level,
                getenv("JOURNAL_STREAM") != NULL);
    st = boot(&d, &err);
    if (st != TD_OK) {
        td_error("decode.start", "why=\"%s\"", err.text);
        /* Half-built, and threads may run: the kernel frees what there is. */
        _exit(td_serve_exit_status(st));
    }
    td_loop_run(d.loop);
    td_loop_destroy(d.loop);
    td_metrics_destroy(d.metrics);
    td_conf_free(&td_decode_conf_spec, &d.conf);
    return d.damaged ? 1 : 0;
}
