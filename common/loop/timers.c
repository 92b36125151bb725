/* timers.c - all timers of a loop in one intrusive pairing heap over one uv_timer_t. In a node,
 * `prev` is the left sibling, or the parent for a first child; `next` is the right sibling. */
#include "common/loop/loop_internal.h"

#include "common/base/clock.h"

#include <string.h>

static td_timer *merge(td_timer *a, td_timer *b)
{
    if (a == NULL)
        return b;
    if (b == NULL)
        return a;
    if (b->at_ns < a->at_ns) {
        td_timer *t = a;
        a = b;
        b = t;
    }
    b->prev = a;
    b->next = a->child;
    if (b->next != NULL)
        b->next->prev = b;
    a->child = b;
    a->prev = a->next = NULL;
    return a;
}

/* Two passes, without recursion: pairs from left to right (stacked through `next`), then one fold.
 */
static td_timer *merge_siblings(td_timer *first)
{
    td_timer *stack = NULL;
    while (first != NULL) {
        td_timer *a = first, *b = a->next;
        first = b == NULL ? NULL : b->next;
        a->prev = a->next = NULL;
        if (b != NULL)
            b->prev = b->next = NULL;
        td_timer *pair = merge(a, b);
        pair->next = stack;
        stack = pair;
    }
    td_timer *root = NULL;
    while (stack != NULL) {
        td_timer *pair = stack;
        stack = pair->next;
        pair->next = NULL;
        root = merge(root, pair);
    }
    return root;
}

static void heap_remove(td_loop *loop, td_timer *timer)
{
    td_timer *orphans = merge_siblings(timer->child);
    if (timer == loop->timers) {
        loop->timers = orphans;
    } else {
        if (timer->prev->child == timer)
            timer->prev->child = timer->next;
        else
            timer->prev->next = timer->next;
        if (timer->next != NULL)
            timer->next->prev = timer->prev;
        loop->timers = merge(loop->timers, orphans);
    }
    timer->child = timer->prev = timer->next = NULL;
    timer->armed = false;
}

static void fire(uv_timer_t *handle);

/* uv's clock is CLOCK_MONOTONIC in whole milliseconds, as is td_now_ns(): rounding up means never
 * early. A uv timer that is set too early only costs one idle wake-up, so it is moved forward
 * alone. */
static void arm_uv(td_loop *loop)
{
    if (loop->timers == NULL) {
        uv_timer_stop(&loop->uv_timer);
        return;
    }
    int64_t at_ms = (loop->timers->at_ns + TD_NS_PER_MS - 1) / TD_NS_PER_MS;
    if (uv_is_active((uv_handle_t *)&loop->uv_timer) && loop->armed_ms <= at_ms)
        return;
    int64_t now_ms = (int64_t)uv_now(&loop->uv);
    loop->armed_ms = at_ms;
    uv_timer_start(&loop->uv_timer, fire, at_ms > now_ms ? (uint64_t)(at_ms - now_ms) : 0, 0);
}

static void fire(uv_timer_t *handle)
{
    td_loop *loop = handle->data;
    int64_t now = td_now_ns();
    loop->firing_ns = now;
    while (loop->timers != NULL && loop->timers->at_ns <= now) {
        td_timer *timer = loop->timers;
        heap_remove(loop, timer);
        if (timer->period_ns > 0) {
            int64_t missed = (now - timer->at_ns) / timer->period_ns;
            int64_t period = timer->period_ns;
            td_timer_every(timer, timer->at_ns + (missed + 1) * period, period);
        }
        timer->fn(timer, timer->user); /* may free the timer */
    }
    loop->firing_ns = 0;
    uv_timer_stop(handle);
    arm_uv(loop);
}

void td_timer_init(td_timer *timer, td_loop *loop, td_timer_fn fn, void *user)
{
    memset(timer, 0, sizeof(*timer));
    timer->loop = loop;
    timer->fn = fn;
    timer->user = user;
}

void td_timer_at(td_timer *timer, int64_t deadline_ns)
{
    td_loop *loop = timer->loop;
    if (timer->armed)
        heap_remove(loop, timer);
    /* Armed for the past by a timer that fires: the loop's next turn, or it would never get to its
     * sockets. */
    timer->at_ns = deadline_ns > loop->firing_ns ? deadline_ns : loop->firing_ns + 1;
    timer->period_ns = 0;
    timer->armed = true;
    loop->timers = merge(loop->timers, timer);
    if (loop->firing_ns == 0)
        arm_uv(loop);
}

void td_timer_every(td_timer *timer, int64_t first_ns, int64_t period_ns)
{
    td_assert(period_ns > 0);
    td_timer_at(timer, first_ns);
    timer->period_ns = period_ns;
}

void td_timer_stop(td_timer *timer)
{
    if (!timer->armed)
        return;
    heap_remove(timer->loop, timer);
    if (timer->loop->timers == NULL && timer->loop->firing_ns == 0)
        uv_timer_stop(&timer->loop->uv_timer);
}
