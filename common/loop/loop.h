/* loop.h - thin libuv glue: one event loop, timers with absolute deadlines, tasks that run once
 * before the loop sleeps, signals. A td_loop belongs to the thread that runs it; every function
 * here is for that thread only. Timers and tasks are members of whoever owns them: arming allocates
 * nothing and stopping takes effect at once, so the owner may free them right after. Signals are
 * libuv handles: closed, their memory goes in the close callback. */
#ifndef TD_LOOP_LOOP_H
#define TD_LOOP_LOOP_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct uv_loop_s;
typedef struct td_loop td_loop;

/* Also ignores SIGPIPE, for the whole process: a write to a lost peer is a status, not a death. */
td_status td_loop_create(td_loop **out, td_err *err);
/* NULL is fine. Everything opened on it has been closed and every timer stopped; runs the loop
 * until the close callbacks have run. */
void td_loop_destroy(td_loop *loop);
/* Runs until td_loop_stop(), or until nothing is left that could ever wake it. May be run again. */
void td_loop_run(td_loop *loop);
void td_loop_stop(td_loop *loop); /* from a callback: run() returns once it is back in the loop */
struct uv_loop_s *td_loop_uv(td_loop *loop);

/* Scratch that all sockets of the loop share; what is in it is good until the user returns to the
 * loop. Reads go through `read`, batches to be written are gathered in `write`: no socket owns a
 * buffer while it is idle. */
typedef struct {
    uint8_t read[65536];
    uint8_t write[131072];
} td_loop_scratch;
td_loop_scratch *td_loop_get_scratch(td_loop *loop);

/* ---- timers ---- */
typedef struct td_timer td_timer;
typedef void (*td_timer_fn)(td_timer *timer, void *user);

struct td_timer { /* private, but for its size */
    td_loop *loop;
    td_timer_fn fn;
    void *user;
    int64_t at_ns, period_ns;
    td_timer *child, *prev, *next;
    bool armed;
};

void td_timer_init(td_timer *timer, td_loop *loop, td_timer_fn fn, void *user);
/* One shot, at deadline_ns (absolute, td_now_ns()) or up to a millisecond later, never before it
 * and never inside this call, even when it has passed. Re-arming replaces. An armed timer keeps
 * td_loop_run() running. */
void td_timer_at(td_timer *timer, int64_t deadline_ns);
/* Repeats without drift; a loop that was late skips the periods it missed. */
void td_timer_every(td_timer *timer, int64_t first_ns, int64_t period_ns);
void td_timer_stop(td_timer *timer); /* not armed, or never initialised but zeroed: fine */

/* ---- tasks: run once, soon, outside the caller's stack and before the loop sleeps ---- */
typedef struct td_task td_task;
typedef void (*td_task_fn)(td_task *task, void *user);

struct td_task { /* private, but for its size */
    td_loop *loop;
    td_task_fn fn;
    void *user;
    td_task *prev, *next;
    bool queued;
};

void td_task_init(td_task *task, td_loop *loop, td_task_fn fn, void *user);
void td_task_defer(td_task *task); /* already queued: nothing */
void td_task_cancel(td_task *task);

/* ---- signals ---- */
typedef struct td_signal td_signal;
typedef void (*td_signal_fn)(void *user, int signum);

/* Does not keep td_loop_run() running. */
td_status td_signal_open(td_loop *loop, int signum, td_signal_fn fn, void *user, td_signal **out,
                         td_err *err);
void td_signal_close(td_signal *signal); /* NULL is fine; no callback after this */
#endif
