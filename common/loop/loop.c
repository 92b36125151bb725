#include "common/loop/loop.h"

#include "common/loop/loop_internal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct td_signal {
    uv_signal_t uv;
    td_signal_fn fn;
    void *user;
};

/* ---- tasks ---- */

static void ring_init(td_task *head)
{
    head->prev = head->next = head;
}

/* libuv calls this after its timers and before it sleeps. */
static void run_tasks(uv_idle_t *handle)
{
    td_loop *loop = handle->data;
    td_task *pending = &loop->pending, *running = &loop->running;
    if (pending->next != pending) { /* what the tasks queue waits for the next turn */
        *running = *pending;
        running->next->prev = running->prev->next = running;
        ring_init(pending);
    }
    while (running->next != running) {
        td_task *task = running->next;
        td_task_cancel(task);
        task->fn(task, task->user); /* may free the task */
    }
    if (pending->next == pending)
        uv_idle_stop(&loop->idle);
}

void td_task_init(td_task *task, td_loop *loop, td_task_fn fn, void *user)
{
    memset(task, 0, sizeof(*task));
    task->loop = loop;
    task->fn = fn;
    task->user = user;
}

void td_task_defer(td_task *task)
{
    if (task->queued)
        return;
    td_loop *loop = task->loop;
    td_task *head = &loop->pending;
    uv_idle_start(&loop->idle, run_tasks); /* active already: nothing */
    task->prev = head->prev;
    task->next = head;
    head->prev->next = task;
    head->prev = task;
    task->queued = true;
}

void td_task_cancel(td_task *task)
{
    if (!task->queued)
        return;
    task->prev->next = task->next;
    task->next->prev = task->prev;
    task->prev = task->next = NULL;
    task->queued = false;
}

/* ---- the loop ---- */

td_status td_loop_create(td_loop **out, td_err *err)
{
    td_loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL || (loop->scratch = malloc(sizeof(*loop->scratch))) == NULL) {
        free(loop);
        return td_fail(err, TD_NOMEM, "loop: out of memory");
    }
    ring_init(&loop->pending);
    ring_init(&loop->running);
    int rc = uv_loop_init(&loop->uv);
    if (rc != 0) {
        free(loop->scratch);
        free(loop);
        return td_fail(err, rc == UV_ENOMEM ? TD_NOMEM : TD_IO, "loop: %s", uv_strerror(rc));
    }
    uv_timer_init(&loop->uv, &loop->uv_timer); /* these two cannot fail */
    uv_idle_init(&loop->uv, &loop->idle);
    loop->uv_timer.data = loop->idle.data = loop;
    signal(SIGPIPE, SIG_IGN);
    *out = loop;
    return TD_OK;
}

void td_loop_destroy(td_loop *loop)
{
    if (loop == NULL)
        return;
    while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0)
        ;
    uv_close((uv_handle_t *)&loop->uv_timer, NULL);
    uv_close((uv_handle_t *)&loop->idle, NULL);
    while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0)
        ;
    td_assert(uv_loop_close(&loop->uv) ==
              0); /* else something is still open: its owner forgot it */
    free(loop->scratch);
    free(loop);
}

void td_loop_run(td_loop *loop)
{
    uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void td_loop_stop(td_loop *loop)
{
    uv_stop(&loop->uv);
}

struct uv_loop_s *td_loop_uv(td_loop *loop)
{
    return &loop->uv;
}

td_loop_scratch *td_loop_get_scratch(td_loop *loop)
{
    return loop->scratch;
}

/* ---- signals ---- */

static void on_signal(uv_signal_t *handle, int signum)
{
    td_signal *sig = handle->data;
    sig->fn(sig->user, signum);
}

static void on_signal_closed(uv_handle_t *handle)
{
    free(handle->data);
}

td_status td_signal_open(td_loop *loop, int signum, td_signal_fn fn, void *user, td_signal **out,
                         td_err *err)
{
    td_signal *sig = calloc(1, sizeof(*sig));
    if (sig == NULL)
        return td_fail(err, TD_NOMEM, "signal %d: out of memory", signum);
    sig->fn = fn;
    sig->user = user;
    int rc = uv_signal_init(&loop->uv, &sig->uv);
    if (rc != 0) {
        free(sig);
        return td_fail(err, TD_IO, "signal %d: %s", signum, uv_strerror(rc));
    }
    sig->uv.data = sig;
    rc = uv_signal_start(&sig->uv, on_signal, signum);
    if (rc != 0) {
        uv_close((uv_handle_t *)&sig->uv, on_signal_closed);
        return td_fail(err, TD_IO, "signal %d: %s", signum, uv_strerror(rc));
    }
    uv_unref((uv_handle_t *)&sig->uv);
    *out = sig;
    return TD_OK;
}

void td_signal_close(td_signal *sig)
{
    if (sig != NULL && !uv_is_closing((uv_handle_t *)&sig->uv))
        uv_close((uv_handle_t *)&sig->uv, on_signal_closed);
}
