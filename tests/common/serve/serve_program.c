/* serve_program - a daemon that only lives: td_serve and one engine thread that ticks. For
 * test_serve. SIGUSR1 makes the engine hang, SIGUSR2 lets it go on. Prints its admin port when that
 * is open. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/ident.h"
#include "common/serve/serve.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    long ready_after_ms, drain_ms, work_ms, stall_ms; /* work_ms < 0: the work never ends */
} args = {0, 5000, 0, 0};

static atomic_bool engine_hangs, engine_ends;
static td_loop *loop;
static td_serve *serve;
static td_timer becoming_ready, working;
static int exit_status;

static void *engine_main(void *arg)
{
    td_progress *progress = arg;
    while (!atomic_load(&engine_ends)) {
        if (!atomic_load(&engine_hangs))
            td_progress_tick(progress);
        td_sleep_ms(20);
    }
    return NULL;
}

static void hang(void *user, int signum)
{
    (void)user;
    atomic_store(&engine_hangs, signum == SIGUSR1);
}

static void become_ready(td_timer *timer, void *user)
{
    (void)timer, (void)user;
    td_serve_ready(serve);
    td_serve_ready(serve); /* the second says nothing */
    td_serve_status(serve, "%d\nrequests", 3);
}

static void finish_work(td_timer *timer, void *user)
{
    (void)timer, (void)user;
    td_serve_drained(serve);
    td_serve_drained(serve); /* no second exit */
}

static void on_drain(void *user)
{
    (void)user;
    td_serve_drain(serve); /* no second drain */
    if (args.work_ms == 0)
        finish_work(NULL, NULL);
    else if (args.work_ms > 0)
        td_timer_at(&working, td_now_ns() + args.work_ms * TD_NS_PER_MS);
}

static void on_closed(void *user)
{
    *(bool *)user = true;
    td_loop_stop(loop);
}

static void on_exit_now(void *user, bool drained)
{
    exit_status = drained ? 0 : 3;
    td_timer_stop(&working);
    td_timer_stop(&becoming_ready);
    atomic_store(&engine_ends, true);
    pthread_join(*(pthread_t *)user, NULL);
    static bool closed;
    td_serve_close(serve, on_closed, &closed);
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        long value = strtol(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--ready-after-ms") == 0)
            args.ready_after_ms = value;
        else if (strcmp(argv[i], "--drain-ms") == 0)
            args.drain_ms = value;
        else if (strcmp(argv[i], "--work-ms") == 0)
            args.work_ms = value;
        else if (strcmp(argv[i], "--stall-ms") == 0)
            args.stall_ms = value;
    }
    td_log_init("serve-program", TD_LOG_INFO, 0);
    td_err err;
    td_metrics *metrics = NULL;
    td_signal *usr1 = NULL, *usr2 = NULL;
    pthread_t engine;
    td_serve_conf conf = {.drain_ms = args.drain_ms,
                          .stall_ms = args.stall_ms,
                          .on_drain = on_drain,
                          .on_exit = on_exit_now,
                          .user = &engine};
    if (td_metrics_create(32, &metrics, &err) != TD_OK || td_loop_create(&loop, &err) != TD_OK ||
        td_listen_addr("admin", "127.0.0.1:0", false, &conf.admin, &err) != TD_OK)
        goto fail;
    conf.loop = loop;
    conf.metrics = metrics;
    if (td_serve_open(&conf, &serve, &err) != TD_OK ||
        td_signal_open(loop, SIGUSR1, hang, NULL, &usr1, &err) != TD_OK ||
        td_signal_open(loop, SIGUSR2, hang, NULL, &usr2, &err) != TD_OK)
        goto fail;
    td_progress *progress = td_serve_add_engine(serve, "engine-0");
    if (pthread_create(&engine, NULL, engine_main, progress) != 0)
        return 1;
    printf("%d %s\n", td_serve_admin_port(serve), td_serve_incarnation(serve));
    fflush(stdout);
    td_timer_init(&becoming_ready, loop, become_ready, NULL);
    td_timer_init(&working, loop, finish_work, NULL);
    td_timer_at(&becoming_ready, td_now_ns() + args.ready_after_ms * TD_NS_PER_MS);
    td_loop_run(loop);
    td_signal_close(usr1);
    td_signal_close(usr2);
    td_loop_destroy(loop);
    td_metrics_destroy(metrics);
    return exit_status;
fail:
    fprintf(stderr, "serve_program: %s\n", err.text);
    return 1;
}
