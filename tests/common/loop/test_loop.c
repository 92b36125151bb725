#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/loop/mailbox.h"
#include "tests/common/loop/failing_alloc.h"

#include <signal.h>
#include <unistd.h>

TD_TEST_MAIN

static td_loop *new_loop(void)
{
    td_loop *loop = NULL;
    TD_EQ(TD_OK, td_loop_create(&loop, NULL));
    return loop;
}

/* ---- timers ---- */

typedef struct {
    td_timer timer;
    int64_t want_ns, fired_ns;
    int n;
} shot;

static int64_t last_fired_want;

static void on_shot(td_timer *timer, void *user)
{
    shot *s = user;
    assert_ptr_equal(timer, &s->timer);
    s->fired_ns = td_now_ns();
    s->n++;
    TD_TRUE(s->fired_ns >= s->want_ns);
    TD_TRUE(s->want_ns / TD_NS_PER_MS >= last_fired_want / TD_NS_PER_MS);
    last_fired_want = s->want_ns;
}

TEST(timers_fire_in_order_never_early_and_once)
{
    enum { N = 500 };
    td_loop *loop = new_loop();
    shot *shots = calloc(N, sizeof(*shots));
    int64_t t0 = td_now_ns() + 5 * TD_NS_PER_MS;
    srand(7);
    for (int i = 0; i < N; i++) {
        td_timer_init(&shots[i].timer, loop, on_shot, &shots[i]);
        td_timer_at(&shots[i].timer, t0 + (rand() % 60) * TD_NS_PER_MS); /* moved below */
        shots[i].want_ns = t0 + (rand() % 60) * TD_NS_PER_MS + rand() % 1000;
        td_timer_at(&shots[i].timer, shots[i].want_ns);
    }
    for (int i = 0; i < N; i += 3)
        td_timer_stop(&shots[i].timer);
    last_fired_want = 0;
    td_loop_run(loop);
    for (int i = 0; i < N; i++)
        TD_EQ(i % 3 == 0 ? 0 : 1, shots[i].n);
    free(shots);
    td_loop_destroy(loop);
}

static void count_and_stop(td_timer *timer, void *user)
{
    if (++*(int *)user == 5)
        td_timer_stop(timer);
}

TEST(repeating_timer_repeats_until_stopped_in_its_own_callback)
{
    td_loop *loop = new_loop();
    td_timer timer;
    int n = 0;
    td_timer_init(&timer, loop, count_and_stop, &n);
    int64_t t0 = td_now_ns();
    td_timer_every(&timer, t0 + 2 * TD_NS_PER_MS, 3 * TD_NS_PER_MS);
    td_loop_run(loop);
    TD_EQ(5, n);
    TD_TRUE(td_now_ns() - t0 >= 14 * TD_NS_PER_MS);
    td_loop_destroy(loop);
}

static void late_once(td_timer *timer, void *user)
{
    (void)timer;
    if (++*(int *)user == 1)
        usleep(100000); /* misses 19 periods */
}

static void stop_other(td_timer *timer, void *user)
{
    (void)timer;
    td_timer_stop(user);
}

TEST(a_late_loop_skips_the_periods_it_missed)
{
    td_loop *loop = new_loop();
    td_timer timer, end;
    int n = 0;
    int64_t t0 = td_now_ns();
    td_timer_init(&timer, loop, late_once, &n);
    td_timer_every(&timer, t0, 5 * TD_NS_PER_MS);
    td_timer_init(&end, loop, stop_other, &timer);
    td_timer_at(&end, t0 + 120 * TD_NS_PER_MS);
    td_loop_run(loop);
    TD_TRUE(n >= 1 && n <= 8); /* once, once late, and those of the last 20 ms */
    td_loop_destroy(loop);
}

static void rearm_in_the_past(td_timer *timer, void *user)
{
    if (++*(int *)user < 20)
        td_timer_at(timer, 1);
}

static void on_signal_stop(void *user, int signum)
{
    *(int *)user = signum;
}

TEST(a_timer_that_rearms_for_the_past_does_not_starve_the_loop)
{
    td_loop *loop = new_loop();
    td_timer timer;
    td_signal *sig;
    int n = 0, got = 0;
    TD_EQ(TD_OK, td_signal_open(loop, SIGUSR1, on_signal_stop, &got, &sig, NULL));
    td_timer_init(&timer, loop, rearm_in_the_past, &n);
    td_timer_at(&timer, 0);
    TD_EQ(0, n); /* never inside the call */
    raise(SIGUSR1);
    td_loop_run(loop);
    TD_EQ(20, n);
    TD_EQ(SIGUSR1, got);
    td_signal_close(sig);
    td_loop_destroy(loop);
}

static void free_self(td_timer *timer, void *user)
{
    (void)user;
    free(timer);
}

TEST(timers_may_be_freed_in_their_callback_and_after_stop)
{
    td_loop *loop = new_loop();
    for (int i = 0; i < 40; i++) {
        td_timer *timer = calloc(1, sizeof(*timer));
        td_timer_stop(timer); /* zeroed: fine */
        td_timer_init(timer, loop, free_self, NULL);
        td_timer_at(timer, td_now_ns() + i % 5 * TD_NS_PER_MS);
        if (i % 4 == 0) {
            td_timer_stop(timer);
            free(timer);
        }
    }
    td_loop_run(loop);
    td_loop_destroy(loop);
}

/* ---- tasks ---- */

typedef struct {
    td_task a, b, c;
    char order[16];
    int n_spins;
} trio;

static void note(td_task *task, void *user)
{
    trio *t = user;
    strcat(t->order, task == &t->a ? "a" : task == &t->b ? "b" : "c");
    if (task == &t->a) {
        td_task_cancel(&t->b); /* it stands behind in the same turn */
        td_task_defer(&t->c);  /* queued already: once */
    }
}

TEST(tasks_run_once_in_order_and_may_cancel_each_other)
{
    td_loop *loop = new_loop();
    trio t = {0};
    td_task_init(&t.a, loop, note, &t);
    td_task_init(&t.b, loop, note, &t);
    td_task_init(&t.c, loop, note, &t);
    td_task_defer(&t.a);
    td_task_defer(&t.b);
    td_task_defer(&t.c);
    TD_STR("", t.order);
    td_loop_run(loop);
    TD_STR("ac", t.order);
    td_task_defer(&t.b); /* and the loop can be run again */
    td_loop_run(loop);
    TD_STR("acb", t.order);
    td_task_defer(&t.b);
    td_task_cancel(&t.b);
    td_loop_run(loop);
    TD_STR("acb", t.order);
    td_loop_destroy(loop);
}

static void spin(td_task *task, void *user)
{
    trio *t = user;
    t->n_spins++;
    td_task_defer(task);
}

static void stop_loop(td_timer *timer, void *user)
{
    (void)user;
    td_loop_stop(timer->loop);
}

TEST(a_task_that_requeues_itself_does_not_starve_timers)
{
    td_loop *loop = new_loop();
    trio t = {0};
    td_timer timer;
    td_task_init(&t.a, loop, spin, &t);
    td_task_defer(&t.a);
    td_timer_init(&timer, loop, stop_loop, NULL);
    td_timer_at(&timer, td_now_ns() + 10 * TD_NS_PER_MS);
    td_loop_run(loop);
    TD_TRUE(t.n_spins > 3);
    td_task_cancel(&t.a);
    td_loop_destroy(loop);
}

/* ---- memory ---- */

TEST(kth_allocation_failure_is_a_status)
{
    for (int k = 0; k < 6; k++) {
        td_loop *loop = NULL;
        td_signal *sig = NULL;
        td_mailbox *box = NULL;
        td_err err;
        int got = 0;
        long before = n_failures;
        fail_after = k;
        td_status st = td_loop_create(&loop, &err);
        if (st == TD_OK)
            st = td_signal_open(loop, SIGUSR2, on_signal_stop, &got, &sig, &err);
        if (st == TD_OK)
            st = td_mailbox_open(loop, 64, NULL, NULL, &box, &err);
        fail_after = -1;
        TD_EQ(n_failures > before ? TD_NOMEM : TD_OK, st);
        TD_TRUE(st == TD_OK || strlen(err.text) > 0);
        td_signal_close(sig);
        td_mailbox_close(box);
        td_loop_destroy(loop);
    }
    TD_TRUE(n_failures >= 5);
}
