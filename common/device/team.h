/* team.h - the thread team behind a CPU stream, and the class of CPU devices; between team.c and
 * device.c only. */
#ifndef TD_DEVICE_TEAM_H
#define TD_DEVICE_TEAM_H
#include "common/device/class.h"
#include "common/device/cpu.h"

extern const td_device_class td_cpu_class;
/* n_threads: the caller included; at least 1. */
td_status td_team_create(uint32_t n_threads, uint32_t spin_us, td_stream **out, td_err *err);
void td_team_destroy(td_stream *stream); /* NULL is fine */
#endif
