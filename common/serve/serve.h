/* serve.h - the life of a daemon: starting, ready, draining, gone. Says so to systemd (sd_notify),
 * to signals and on the admin address (/metrics, /healthz, /readyz). Everything here is the loop
 * thread's, but for td_progress_tick(). */
#ifndef TD_SERVE_SERVE_H
#define TD_SERVE_SERVE_H
#include "common/base/metrics.h"
#include "common/loop/loop.h"
#include "common/rpc/addr.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_SERVE_MAX_ENGINES 64

typedef struct td_serve td_serve;
typedef struct td_progress td_progress; /* one engine thread's sign of life */
typedef enum { TD_SERVE_STARTING, TD_SERVE_READY, TD_SERVE_DRAINING } td_serve_state;

typedef struct {
    td_loop *loop;
    td_addr admin;       /* checked with td_listen_addr(); port 0 takes a free one */
    td_metrics *metrics; /* outlives the td_serve, which adds the process's own gauges */
    int64_t drain_ms;    /* from SIGTERM until on_exit, whatever is still running */
    int64_t stall_ms;    /* an engine that has not ticked for so long is stuck; 0: 30 s */
    /* SIGTERM, SIGINT or td_serve_drain(), once: take no new work. Call td_serve_drained() when the
     * last work is done, which may be at once. */
    void (*on_drain)(void *user);
    /* Once, after the drain: drained, or its time is up, or a second signal came (drained false:
     * cut off what is left). Close everything, td_serve_close() included, so that the loop ends. */
    void (*on_exit)(void *user, bool drained);
    /* Refreshes gauges before /metrics is answered; NULL: nothing to do. */
    void (*before_metrics)(void *user);
    void *user;
} td_serve_conf;

/* Opens the admin address; state is starting. */
td_status td_serve_open(const td_serve_conf *conf, td_serve **out, td_err *err);
/* NULL is fine (on_closed is not called). Engine threads have ended. on_closed may be NULL. */
void td_serve_close(td_serve *serve, void (*on_closed)(void *user), void *user);

/* Weights are loaded and ports are open: READY=1, once. While draining: nothing. */
void td_serve_ready(td_serve *serve);
void td_serve_drain(td_serve *serve);   /* as SIGTERM; later calls do nothing */
void td_serve_drained(td_serve *serve); /* on_exit runs soon, from the loop */
/* One line for `systemctl status`: STATUS=<state>: <text>. Sent when it changed. */
void td_serve_status(td_serve *serve, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What a daemon exits with when it cannot start: 2 where only another configuration or checkpoint
 * helps (its unit does not restart that), 1 where the next try may go better. */
int td_serve_exit_status(td_status why);
/* What a worker exits with when its engine failed: the same while it starts, but 1 for a GPU that
 * cannot be used, which may come yet; 1 when it has served. */
int td_serve_fatal_status(bool serving, td_status why);

td_serve_state td_serve_get_state(const td_serve *serve);
const char *td_serve_state_name(td_serve_state state);   /* "starting", "ready", "draining" */
const char *td_serve_incarnation(const td_serve *serve); /* 16 hex digits, good until close */
double td_serve_uptime_s(const td_serve *serve);
uint16_t td_serve_admin_port(const td_serve *serve);

/* An engine that the watchdog looks after, before its thread starts; name (a literal) stands in
 * logs and /healthz. NULL: TD_SERVE_MAX_ENGINES are there already. The td_progress lives until
 * td_serve_close(). */
td_progress *td_serve_add_engine(td_serve *serve, const char *name);
/* The engine's thread, on every turn of its loop, and at least once a second when idle (wait for
 * work with a deadline of a second); inside a long step, between layers. WATCHDOG=1 goes out only
 * while every engine ticks. NULL is fine. */
void td_progress_tick(td_progress *progress);
#endif
