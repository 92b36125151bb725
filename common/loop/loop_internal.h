/* loop_internal.h - the loop's insides, for the files of this folder. */
#ifndef TD_LOOP_INTERNAL_H
#define TD_LOOP_INTERNAL_H
#include "common/loop/loop.h"

#include <uv.h>

struct td_loop {
    uv_loop_t uv;
    uv_timer_t uv_timer; /* set for armed_ms or earlier while there are timers */
    uv_idle_t
        idle; /* runs the tasks; active while there are some, and then the loop does not sleep */
    td_timer *timers;            /* root of the heap */
    int64_t armed_ms, firing_ns; /* firing_ns: 0 outside fire() */
    td_task pending, running;    /* heads of rings */
    td_loop_scratch *scratch;
};
#endif
