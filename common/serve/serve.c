#include "common/serve/serve.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/version.h"
#include "common/rpc/http1.h"
#include "common/serve/ident.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define LINE 64
#define STALL_MS 30000
#define STATUS_BYTES 256
#define N_ROUTES 3

struct td_progress {
    _Alignas(LINE) _Atomic int64_t ticked_ns; /* the engine's thread writes, the loop reads */
    const char *name;
    bool stuck; /* the loop's: was reported */
};

struct td_serve {
    td_progress engines[TD_SERVE_MAX_ENGINES]; /* the first n_engines are in use */
    uint32_t n_engines;
    td_serve_state state;
    bool exiting; /* on_exit is on its way or was called */
    bool drained;
    td_serve_conf conf;
    char incarnation[TD_INCARNATION_BYTES];
    char status[STATUS_BYTES];
    int64_t started_ns;
    int64_t limit_ns;  /* since an engine's tick; beyond it is stuck */
    bool has_watchdog; /* systemd waits for WATCHDOG=1 */
    td_timer look;     /* at the engines, and WATCHDOG=1 */
    td_timer drain;
    td_task leave;
    td_signal *on_term, *on_int;
    td_http_server *admin;
    td_http_route routes[N_ROUTES];
    td_metric *ready_gauge, *uptime_gauge, *cpu_gauge, *resident_gauge, *stuck_gauge;
    void (*on_closed)(void *user);
    void *closed_user;
};

/* --- systemd ---------------------------------------------------------------------------------- */

/* Without NOTIFY_SOCKET in the environment these do nothing. */
static void notify_state(td_serve *serve, const char *extra)
{
    sd_notifyf(0, "%sSTATUS=%s%s%s", extra, td_serve_state_name(serve->state),
               serve->status[0] != '\0' ? ": " : "", serve->status);
}

/* While it starts, an engine loads weights, for as long as that takes: systemd's TimeoutStartSec
 * watches over it then. */
static int64_t silence(const td_serve *serve, td_progress *engine, int64_t now)
{
    if (serve->state == TD_SERVE_STARTING)
        return 0;
    return now - atomic_load_explicit(&engine->ticked_ns, memory_order_relaxed);
}

/* How many engines are stuck; the first one's name and silence. */
static uint32_t count_stuck(const td_serve *serve, const char **name, int64_t *for_ns)
{
    int64_t now = td_now_ns();
    uint32_t n = 0;
    *name = "";
    *for_ns = 0;
    for (uint32_t i = 0; i < serve->n_engines; i++) {
        td_progress *engine = (td_progress *)&serve->engines[i]; /* C11 atomics take no const */
        int64_t silent = silence(serve, engine, now);
        if (silent <= serve->limit_ns)
            continue;
        if (n++ == 0) {
            *name = engine->name;
            *for_ns = silent;
        }
    }
    return n;
}

static void look_at_engines(td_timer *timer, void *user)
{
    (void)timer;
    td_serve *serve = user;
    int64_t now = td_now_ns();
    bool all_tick = true;
    for (uint32_t i = 0; i < serve->n_engines; i++) {
        td_progress *engine = &serve->engines[i];
        int64_t silent = silence(serve, engine, now);
        bool stuck = silent > serve->limit_ns;
        if (stuck && !engine->stuck)
            td_error("engine.stuck", "engine=%s silent_ms=%lld", engine->name,
                     (long long)(silent / TD_NS_PER_MS));
        else if (!stuck && engine->stuck)
            td_warn("engine.back", "engine=%s", engine->name);
        engine->stuck = stuck;
        all_tick = all_tick && !stuck;
    }
    if (all_tick && serve->has_watchdog)
        sd_notify(0, "WATCHDOG=1");
}

/* Four looks within the watchdog's time: an engine may be silent for half of it, and a lost or late
 * look is no harm. */
static void start_looking(td_serve *serve)
{
    uint64_t watchdog_us = 0;
    int64_t stall_ms = serve->conf.stall_ms > 0 ? serve->conf.stall_ms : STALL_MS;
    serve->limit_ns = stall_ms * TD_NS_PER_MS;
    int64_t period_ns = serve->limit_ns / 4;
    serve->has_watchdog = sd_watchdog_enabled(0, &watchdog_us) > 0;
    if (serve->has_watchdog) {
        int64_t watchdog_ns = (int64_t)watchdog_us * 1000;
        if (serve->limit_ns > watchdog_ns / 2)
            serve->limit_ns = watchdog_ns / 2;
        if (period_ns > watchdog_ns / 4)
            period_ns = watchdog_ns / 4;
    }
    td_timer_init(&serve->look, serve->conf.loop, look_at_engines, serve);
    td_timer_every(&serve->look, td_now_ns() + period_ns, period_ns);
}

/* --- draining --------------------------------------------------------------------------------- */

static void leave_now(td_task *task, void *user)
{
    (void)task;
    td_serve *serve = user;
    serve->conf.on_exit(serve->conf.user, serve->drained);
}

static void begin_exit(td_serve *serve, bool drained)
{
    if (serve->exiting)
        return;
    serve->exiting = true;
    serve->drained = drained;
    td_timer_stop(&serve->drain);
    td_task_defer(&serve->leave);
}

static void drain_is_over(td_timer *timer, void *user)
{
    (void)timer;
    td_serve *serve = user;
    td_warn("serve.drain_timeout", "after_ms=%lld", (long long)serve->conf.drain_ms);
    begin_exit(serve, false);
}

static void take_signal(void *user, int signum)
{
    td_serve *serve = user;
    td_info("serve.signal", "signal=%s state=%s", strsignal(signum),
            td_serve_state_name(serve->state));
    if (serve->state == TD_SERVE_DRAINING)
        begin_exit(serve, false);
    else
        td_serve_drain(serve);
}

/* --- the admin address ------------------------------------------------------------------------ */

static void refresh_process(td_serve *serve)
{
    struct rusage usage;
    const char *name;
    int64_t for_ns;
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        td_metric_set_double(serve->cpu_gauge,
                             (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6);
    FILE *statm = fopen("/proc/self/statm", "re");
    long long size, resident;
    if (statm != NULL && fscanf(statm, "%lld %lld", &size, &resident) == 2)
        td_metric_set(serve->resident_gauge, resident * sysconf(_SC_PAGESIZE));
    if (statm != NULL)
        fclose(statm);
    td_metric_set_double(serve->uptime_gauge, td_serve_uptime_s(serve));
    td_metric_set(serve->ready_gauge, serve->state == TD_SERVE_READY);
    td_metric_set(serve->stuck_gauge, count_stuck(serve, &name, &for_ns));
}

static void answer_metrics(void *user, const td_http_request *req, td_http_response *res)
{
    (void)req;
    td_serve *serve = user;
    if (serve->conf.before_metrics != NULL)
        serve->conf.before_metrics(serve->conf.user);
    refresh_process(serve);
    char *text = td_metrics_text(serve->conf.metrics, &res->n_bytes);
    if (text == NULL) {
        res->status = 503;
        return;
    }
    res->body = text;
    res->free_body = free;
    res->content_type = "text/plain; version=0.0.4; charset=utf-8";
}

/* A short answer that is copied before the handler's caller goes on: malloc'ed, or just the status.
 */
static void answer_text(td_http_response *res, int status, const char *text)
{
    char *copy = strdup(text);
    res->status = status;
    if (copy == NULL)
        return;
    res->body = copy;
    res->n_bytes = strlen(copy);
    res->free_body = free;
}

static void answer_healthz(void *user, const td_http_request *req, td_http_response *res)
{
    (void)req;
    td_serve *serve = user;
    const char *name;
    int64_t for_ns;
    char text[160];
    if (count_stuck(serve, &name, &for_ns) == 0) {
        answer_text(res, 200, "ok\n");
        return;
    }
    snprintf(text, sizeof(text), "engine %s has not moved for %.1f s\n", name,
             (double)for_ns * 1e-9);
    answer_text(res, 503, text);
}

static void answer_readyz(void *user, const td_http_request *req, td_http_response *res)
{
    (void)req;
    td_serve *serve = user;
    char text[STATUS_BYTES + 32];
    snprintf(text, sizeof(text), "%s\n", td_serve_state_name(serve->state));
    answer_text(res, serve->state == TD_SERVE_READY ? 200 : 503, text);
}

static td_status open_admin(td_serve *serve, td_err *err)
{
    serve->routes[0] = (td_http_route){"/metrics", answer_metrics, serve};
    serve->routes[1] = (td_http_route){"/healthz", answer_healthz, serve};
    serve->routes[2] = (td_http_route){"/readyz", answer_readyz, serve};
    td_http_server_conf conf = {
        .listen = serve->conf.admin,
        .routes = serve->routes,
        .n_routes = N_ROUTES,
        .name = "admin",
    };
    return td_http_server_open(serve->conf.loop, &conf, &serve->admin, err);
}

static void add_metrics(td_serve *serve)
{
    char labels[96];
    td_metrics *m = serve->conf.metrics;
    snprintf(labels, sizeof(labels), "version=\"%s\",incarnation=\"%s\"", td_version(),
             serve->incarnation);
    td_metric_set(td_metrics_get(m, TD_GAUGE, "tandem_build_info", labels,
                                 "Always 1; which tandem and which start of it this is."),
                  1);
    serve->ready_gauge = td_metrics_get(m, TD_GAUGE, "tandem_ready", "", "1 when work is taken.");
    serve->uptime_gauge =
        td_metrics_get(m, TD_GAUGE, "tandem_uptime_seconds", "", "Seconds since the start.");
    serve->cpu_gauge = td_metrics_get(m, TD_GAUGE, "tandem_process_cpu_seconds", "",
                                      "Processor time used, user and system.");
    serve->resident_gauge =
        td_metrics_get(m, TD_GAUGE, "tandem_process_resident_bytes", "", "Memory resident in RAM.");
    serve->stuck_gauge = td_metrics_get(m, TD_GAUGE, "tandem_engines_stuck", "",
                                        "Engine threads that show no progress.");
}

/* --- public ----------------------------------------------------------------------------------- */

td_status td_serve_open(const td_serve_conf *conf, td_serve **out, td_err *err)
{
    td_serve *serve = aligned_alloc(LINE, sizeof(*serve));
    if (serve == NULL)
        return td_fail(err, TD_NOMEM, "serve: out of memory");
    memset(serve, 0, sizeof(*serve));
    serve->conf = *conf;
    serve->started_ns = td_now_ns();
    td_incarnation_make(serve->incarnation);
    td_timer_init(&serve->drain, conf->loop, drain_is_over, serve);
    td_task_init(&serve->leave, conf->loop, leave_now, serve);
    add_metrics(serve);
    start_looking(serve);
    td_status st = td_signal_open(conf->loop, SIGTERM, take_signal, serve, &serve->on_term, err);
    if (st == TD_OK)
        st = td_signal_open(conf->loop, SIGINT, take_signal, serve, &serve->on_int, err);
    if (st == TD_OK)
        st = open_admin(serve, err);
    if (st != TD_OK) {
        td_serve_close(serve, NULL, NULL);
        return st;
    }
    notify_state(serve, "");
    *out = serve;
    return TD_OK;
}

static void finish_close(void *user)
{
    td_serve *serve = user;
    void (*on_closed)(void *) = serve->on_closed;
    void *closed_user = serve->closed_user;
    free(serve);
    if (on_closed != NULL)
        on_closed(closed_user);
}

void td_serve_close(td_serve *serve, void (*on_closed)(void *user), void *user)
{
    if (serve == NULL)
        return;
    serve->on_closed = on_closed;
    serve->closed_user = user;
    serve->exiting = true;
    td_timer_stop(&serve->look);
    td_timer_stop(&serve->drain);
    td_task_cancel(&serve->leave);
    td_signal_close(serve->on_term);
    td_signal_close(serve->on_int);
    if (serve->admin != NULL)
        td_http_server_close(serve->admin, finish_close, serve);
    else
        finish_close(serve);
}

void td_serve_ready(td_serve *serve)
{
    if (serve->state != TD_SERVE_STARTING)
        return;
    serve->state = TD_SERVE_READY;
    notify_state(serve, "READY=1\n");
    td_info("serve.ready", "incarnation=%s version=%s after_ms=%lld", serve->incarnation,
            td_version(), (long long)((td_now_ns() - serve->started_ns) / TD_NS_PER_MS));
}

void td_serve_drain(td_serve *serve)
{
    if (serve->state == TD_SERVE_DRAINING)
        return;
    serve->state = TD_SERVE_DRAINING;
    notify_state(serve, "STOPPING=1\n");
    td_info("serve.drain", "timeout_ms=%lld", (long long)serve->conf.drain_ms);
    td_timer_at(&serve->drain, td_now_ns() + serve->conf.drain_ms * TD_NS_PER_MS);
    serve->conf.on_drain(serve->conf.user);
}

void td_serve_drained(td_serve *serve)
{
    td_assert(serve->state == TD_SERVE_DRAINING);
    begin_exit(serve, true);
}

void td_serve_status(td_serve *serve, const char *fmt, ...)
{
    char text[STATUS_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    for (char *p = text; *p != '\0'; p++)
        if (*p == '\n') /* would begin another assignment */
            *p = ' ';
    if (strcmp(text, serve->status) == 0)
        return;
    memcpy(serve->status, text, sizeof(text));
    notify_state(serve, "");
}

td_serve_state td_serve_get_state(const td_serve *serve)
{
    return serve->state;
}

const char *td_serve_state_name(td_serve_state state)
{
    static const char *names[] = {
        [TD_SERVE_STARTING] = "starting",
        [TD_SERVE_READY] = "ready",
        [TD_SERVE_DRAINING] = "draining",
    };
    return names[state];
}

const char *td_serve_incarnation(const td_serve *serve)
{
    return serve->incarnation;
}

int td_serve_exit_status(td_status why)
{
    switch (why) {
    case TD_CONFIG:
    case TD_INVALID:
    case TD_UNSUPPORTED:
    case TD_NOT_FOUND:
    case TD_TOO_LARGE:
    case TD_MISMATCH: return 2;
    default: return 1;
    }
}

int td_serve_fatal_status(bool serving, td_status why)
{
    return serving || why == TD_UNSUPPORTED ? 1 : td_serve_exit_status(why);
}

double td_serve_uptime_s(const td_serve *serve)
{
    return (double)(td_now_ns() - serve->started_ns) * 1e-9;
}

uint16_t td_serve_admin_port(const td_serve *serve)
{
    return td_http_server_port(serve->admin);
}

td_progress *td_serve_add_engine(td_serve *serve, const char *name)
{
    if (serve->n_engines == TD_SERVE_MAX_ENGINES)
        return NULL;
    td_progress *engine = &serve->engines[serve->n_engines++];
    engine->name = name;
    td_progress_tick(engine);
    return engine;
}

void td_progress_tick(td_progress *progress)
{
    if (progress != NULL)
        atomic_store_explicit(&progress->ticked_ns, td_now_ns(), memory_order_relaxed);
}
