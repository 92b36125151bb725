/* team.h - the thread team behind a CPU stream; between team.c and device.c only. */
#ifndef TD_DEVICE_TEAM_H
#define TD_DEVICE_TEAM_H
#include "common/device/cpu.h"

/* n_threads: the caller included; at least 1. */
td_status td_team_create(uint32_t n_threads, uint32_t spin_us, td_stream **out, td_err *err);
void td_team_destroy(td_stream *stream); /* NULL is fine */
#endif
