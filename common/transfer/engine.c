/* engine.c - the transfer thread: takes commands, lets UCX work, tends to links, jobs and readers,
 * runs timers, and sleeps on UCX's event descriptor and the command descriptor when nothing moves.
 */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PROGRESS_MAX 32     /* calls of ucp_worker_progress() between two looks at the rest */
#define SPIN_NS 20000       /* while something is under way, before sleeping */
#define TICK_NS TD_NS_PER_S /* upper bound of any sleep */
#define REFUSED_SPINS 64U   /* UCX refuses to be armed: it has work, but cannot get it done */
#define REFUSED_SLEEP_MS 1
#define STUCK_NS (200 * TD_NS_PER_MS)     /* refused so long with nothing moving: it is stuck */
#define STUCK_STEP_NS (5 * TD_NS_PER_MS)  /* time that we did not run ourselves does not count */
#define APART_MIN_NS (250 * TD_NS_PER_MS) /* between restarts; doubled by one that did not help */
#define APART_MAX_NS (8 * TD_NS_PER_S)
#define LAYING_MS 1          /* sleep while UCX fetches: not every transport of it wakes us */
#define RESTART_AGAIN_MS 100 /* after one that failed */
#define GOODBYE_NS (20 * TD_NS_PER_MS) /* for closes, before a restart */
#define STOP_NS (2 * TD_NS_PER_S)      /* for closes, at the end */

void td_engine_wake(void *arg)
{
    td_engine *engine = arg;
    if (atomic_exchange(&engine->asleep, 0) == 0)
        return;
    uint64_t one = 1;
    ssize_t n = write(engine->wake_fd, &one, sizeof(one));
    (void)n; /* a full counter wakes as well */
}

void td_engine_push(td_engine *engine, const td_event_msg *event, size_t n_bytes)
{
    /* The ring has room for the events of all live jobs and links. */
    td_status st = td_ring_push(engine->events, event, n_bytes);
    td_assert(st == TD_OK);
}

void td_engine_timer(td_engine *engine, int64_t at_ns)
{
    if (at_ns < engine->next_timer_ns)
        engine->next_timer_ns = at_ns;
}

static void run_timers(td_engine *engine)
{
    if (engine->now_ns < engine->next_timer_ns)
        return;
    engine->next_timer_ns = engine->now_ns + TICK_NS;
    td_link_timers(engine);
    td_job_timers(engine);
    td_serve_timers(engine);
}

static td_link *find_link(td_engine *engine, td_xfer_link handle)
{
    td_link *link = &engine->links[handle.slot];
    return link->handle.generation == handle.generation && link->state != TD_XFER_LINK_CLOSED
               ? link
               : NULL;
}

static void cancel_job(td_engine *engine, const td_cmd_cancel *cmd)
{
    td_job *job = &engine->jobs[cmd->job.slot];
    if (job->live && !job->ending && job->handle.generation == cmd->job.generation)
        td_job_end(engine, job, TD_CANCELLED, "cancelled");
}

static void take_command(td_engine *engine, const void *msg)
{
    td_cmd_kind kind;
    memcpy(&kind, msg, sizeof(kind));
    switch (kind) {
    case TD_CMD_OPEN: td_link_open(engine, msg); break;
    case TD_CMD_GET: td_job_start(engine, msg); break;
    case TD_CMD_CANCEL: cancel_job(engine, msg); break;
    case TD_CMD_CLOSE: {
        td_link *link = find_link(engine, ((const td_cmd_close *)msg)->link);
        if (link != NULL)
            td_link_close(engine, link);
        break;
    }
    case TD_CMD_FAULT:
        engine->fault = ((const td_cmd_fault *)msg)->fault;
        engine->fault_seen = 0;
        engine->fault_page = TD_NONE;
        break;
    case TD_CMD_STOP: engine->stopping = 1; break;
    }
}

static unsigned take_commands(td_engine *engine)
{
    const void *msg;
    size_t n_bytes;
    unsigned n = 0;
    while (td_ring_peek(engine->commands, &msg, &n_bytes) == TD_OK) {
        take_command(engine, msg);
        td_ring_pop(engine->commands);
        n++;
    }
    return n;
}

static int is_under_way(const td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_links; i++)
        if (engine->links[i].n_out > 0)
            return 1;
    return td_serve_is_busy(engine);
}

/* Nothing arrives, and UCX will not sleep. */
static void count_stuck(td_engine *engine)
{
    int64_t step_ns = engine->now_ns - engine->refused_ns;
    if (engine->n_messages != engine->n_messages_refused)
        engine->stuck_ns = 0;
    else
        engine->stuck_ns += step_ns < STUCK_STEP_NS ? step_ns : STUCK_STEP_NS;
    engine->n_messages_refused = engine->n_messages;
    engine->refused_ns = engine->now_ns;
    if (engine->stuck_ns >= STUCK_NS)
        td_engine_want_restart(engine);
}

/* Sleeps until UCX or the front has something, or a timer is due. The order matters: asleep is told
 * before the last look at the commands, so that a command pushed meanwhile wakes us. */
static void sleep_until_work(td_engine *engine)
{
    atomic_store(&engine->asleep, 1);
    int64_t sleep_ns = engine->next_timer_ns - td_now_ns();
    int timeout_ms = sleep_ns <= 0 ? 0 : (int)((sleep_ns + TD_NS_PER_MS - 1) / TD_NS_PER_MS);
    const void *msg;
    size_t n_bytes;
    if (td_ring_peek(engine->commands, &msg, &n_bytes) == TD_OK)
        timeout_ms = 0;
    if (timeout_ms > LAYING_MS && engine->n_laying > 0)
        timeout_ms = LAYING_MS;
    if (timeout_ms > 0 && ucp_worker_arm(engine->ucx.worker) != UCS_OK) {
        timeout_ms = ++engine->n_arm_refused < REFUSED_SPINS ? 0 : REFUSED_SLEEP_MS;
        count_stuck(engine);
    } else if (timeout_ms > 0) {
        engine->n_arm_refused = 0;
        engine->stuck_ns = 0;
    }
    if (timeout_ms > 0) {
        struct pollfd fds[2] = {
            {.fd = engine->wake_fd, .events = POLLIN},
            {.fd = engine->ucx.event_fd, .events = POLLIN},
        };
        poll(fds, 2, timeout_ms);
    }
    atomic_store(&engine->asleep, 0);
    uint64_t count;
    ssize_t n = read(engine->wake_fd, &count, sizeof(count));
    (void)n; /* EAGAIN when nobody woke us */
}

static unsigned progress(td_engine *engine)
{
    unsigned n = 0;
    for (int i = 0; i < PROGRESS_MAX; i++) {
        unsigned done = ucp_worker_progress(engine->ucx.worker);
        if (done == 0)
            break;
        n += done;
    }
    return n;
}

int td_engine_want_restart(td_engine *engine)
{
    int64_t since_ns = engine->now_ns - engine->restarted_ns;
    if (engine->config.transport == TD_XFER_TCP || since_ns < engine->restart_apart_ns)
        return 0;
    int helped = engine->n_messages != engine->n_messages_restarted;
    if (helped || engine->restart_apart_ns == 0)
        engine->restart_apart_ns = APART_MIN_NS;
    else if (engine->restart_apart_ns < APART_MAX_NS)
        engine->restart_apart_ns *= 2;
    engine->want_restart = 1;
    return 1;
}

static void say_goodbye(td_engine *engine, int64_t for_ns)
{
    int64_t end_ns = td_now_ns() + for_ns;
    if (engine->ucx.worker == NULL)
        return;
    do
        progress(engine);
    while ((!td_serve_close_all(engine) || engine->ucx.n_closing > 0) && td_now_ns() < end_ns);
}

/* UCX's shared memory has one queue for all senders: one that is killed or stopped in the middle of
 * a message blocks it for ever, and a message to one that died with its queue full never leaves. A
 * new worker has a new queue; all connections are made again, and gets asked again. */
static void restart(td_engine *engine)
{
    td_err err;
    td_link_suspend_all(engine);
    say_goodbye(engine, GOODBYE_NS);
    td_status st = td_ucx_restart(&engine->ucx, &err);
    td_serve_forget_all(engine);
    td_direct_forget(engine);
    engine->now_ns = engine->restarted_ns = td_now_ns();
    engine->n_arm_refused = 0;
    engine->stuck_ns = 0;
    engine->n_messages_restarted = engine->n_messages;
    engine->want_restart = st != TD_OK;
    TD_ADD(engine->served.n_restarts, 1);
    td_warn("xfer.restart", "rank=%u why=\"a peer blocks shared memory\" result=\"%s\"",
            engine->config.rank, st == TD_OK ? "ok" : err.text);
    if (st == TD_OK)
        td_link_resume_all(engine);
}

/* Without a worker: its port is somebody else's, or memory is short. */
static void wait_for_worker(td_engine *engine)
{
    struct pollfd fd = {.fd = engine->wake_fd, .events = POLLIN};
    poll(&fd, 1, RESTART_AGAIN_MS);
    take_commands(engine);
    engine->now_ns = td_now_ns();
    run_timers(engine);
    td_stage_tend(&engine->stage);
    td_job_settle(engine);
    if (!engine->stopping)
        restart(engine);
}

static void run(td_engine *engine)
{
    while (!engine->stopping) {
        if (engine->ucx.worker == NULL) {
            wait_for_worker(engine);
            continue;
        }
        engine->now_ns = td_now_ns();
        unsigned n = take_commands(engine);
        n += progress(engine);
        n += td_stage_tend(&engine->stage);
        n += td_direct_tend(engine);
        n += td_job_settle(engine);
        n += td_link_tend(engine);
        n += td_serve_tend(engine);
        atomic_fetch_add_explicit(&engine->n_rounds, 1, memory_order_release);
        run_timers(engine);
        if (engine->want_restart) {
            restart(engine);
        } else if (n > 0) {
            engine->busy_ns = engine->now_ns;
            engine->n_arm_refused = 0;
        } else if (engine->stage.n_copying == 0 && engine->n_checking == 0 && /* they wake nobody */
                   (engine->now_ns - engine->busy_ns > SPIN_NS || !is_under_way(engine))) {
            sleep_until_work(engine);
        }
    }
}

/* Everything by force; what UCX has not finished after STOP_NS it finishes when the worker is
 * destroyed. */
static void wind_up(td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_links; i++)
        if (engine->links[i].ep != NULL) {
            td_ucx_close_ep(&engine->ucx, engine->links[i].ep);
            engine->links[i].ep = NULL;
        }
    say_goodbye(engine, STOP_NS);
    td_ucx_close(&engine->ucx);
    td_direct_close(engine);
    td_stage_close(&engine->stage);
}

static td_status open_device(td_engine *engine, td_err *err)
{
    const td_xfer_config *config = &engine->config;
    if (config->device_regions == 0)
        return TD_OK;
    int served = 0, drawn = 0;
    for (uint32_t i = 0; i < config->n_regions; i++)
        if (td_is_staged(engine, i))
            *(engine->regions[i].served ? &served : &drawn) = 1;
    td_status st = td_device_bind(config->device, err);
    if (st != TD_OK)
        return st;
    return td_stage_open(&engine->stage, config->device, config->ring_bytes,
                         drawn ? config->max_links : 0, served ? config->max_readers : 0, err);
}

static td_status start(td_engine *engine, td_err *err)
{
    const td_xfer_config *config = &engine->config;
    td_ucx_args args = {
        .transport = config->transport,
        .net_devices = config->net_devices,
        .port_range = config->port_range,
        .listen = (const struct sockaddr *)&engine->listen,
        .listen_bytes = engine->listen_bytes,
        .on_connect = td_serve_on_connect,
        .arg = engine,
        .n_sends = config->max_links * (2 * config->gets_per_link + 16) + config->max_readers * 128,
    };
    int serves = 0;
    args.wants_gpu = config->device_regions != 0 && config->path != TD_XFER_RING &&
                     td_device_is_gpu(config->device);
    for (uint32_t i = 0; i < config->n_regions; i++)
        serves |= engine->regions[i].served;
    if (!serves)
        args.listen = NULL;
    td_status st = open_device(engine, err);
    if (st == TD_OK)
        st = td_ucx_open(&engine->ucx, &args, err);
    if (st == TD_OK)
        st = td_direct_open(engine, err);
    if (st == TD_OK)
        st = td_link_init_all(engine, err);
    if (st == TD_OK)
        st = td_job_init_all(engine, err);
    if (st == TD_OK)
        st = td_serve_init_all(engine, err);
    if (st != TD_OK) {
        td_ucx_close(&engine->ucx);
        td_direct_close(engine);
        td_stage_close(&engine->stage);
    }
    return st;
}

void *td_engine_main(void *arg)
{
    td_engine_start *boot = arg;
    td_engine *engine = boot->engine;
    prctl(PR_SET_NAME, "td-xfer");
    if (engine->config.on_thread != NULL)
        engine->config.on_thread(engine->config.thread_arg);
    td_status st = start(engine, &boot->err);
    boot->status = st;
    sem_post(&boot->started); /* *boot is gone from here on */
    if (st != TD_OK)
        return NULL;
    run(engine);
    wind_up(engine);
    return NULL;
}
