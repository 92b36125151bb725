/* clock.h - time. Every deadline in tandem is an absolute td_now_ns(); 0 means "none was given". */
#ifndef TD_BASE_CLOCK_H
#define TD_BASE_CLOCK_H
#include <stdint.h>

#define TD_NS_PER_MS 1000000LL
#define TD_NS_PER_S 1000000000LL

int64_t td_now_ns(void);      /* CLOCK_MONOTONIC: survives a change of the wall clock */
int64_t td_wall_ns(void);     /* CLOCK_REALTIME: for log lines only */
void td_sleep_ms(int64_t ms); /* tools and tests; daemons never sleep */
#endif
