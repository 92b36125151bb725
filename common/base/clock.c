#include "common/base/clock.h"

#include <errno.h>
#include <time.h>

static int64_t read_ns(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return ts.tv_sec * TD_NS_PER_S + ts.tv_nsec;
}

int64_t td_now_ns(void)
{
    return read_ns(CLOCK_MONOTONIC);
}

int64_t td_wall_ns(void)
{
    return read_ns(CLOCK_REALTIME);
}

void td_sleep_ms(int64_t ms)
{
    if (ms <= 0)
        return;
    struct timespec left = {ms / 1000, (ms % 1000) * TD_NS_PER_MS};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
        ;
}
