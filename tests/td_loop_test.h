/* td_loop_test.h - for tests whose whole world runs on one loop: a turn of it, and the end of
 * patience. */
#ifndef TD_TESTS_TD_LOOP_TEST_H
#define TD_TESTS_TD_LOOP_TEST_H
#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/loop/loop.h"

static inline void td_test_on_patience(td_timer *timer, void *user)
{
    (void)timer;
    (void)user;
    fail_msg("the test hangs");
}

/* Fails the test after 50 s of the loop; the timer is the caller's to stop. */
static inline void td_test_patience(td_timer *timer, td_loop *loop)
{
    td_timer_init(timer, loop, td_test_on_patience, loop);
    td_timer_at(timer, td_now_ns() + 50 * TD_NS_PER_S);
}

static inline void td_test_on_turn(td_timer *timer, void *user)
{
    (void)timer;
    td_loop_stop(user);
}

/* About a millisecond of the loop. */
static inline void td_test_turn(td_loop *loop)
{
    td_timer turn;
    td_timer_init(&turn, loop, td_test_on_turn, loop);
    td_timer_at(&turn, td_now_ns() + TD_NS_PER_MS);
    td_loop_run(loop);
    td_timer_stop(&turn);
}
#endif
