/* lagging_device.h - a device whose memory is host memory, and whose copies happen late: some polls
 * of an event after they were enqueued, in order, or when somebody waits for the stream. What the
 * transfer layer must keep track of between a copy's begin and its end is then as visible as on a
 * GPU. */
#ifndef TD_TESTS_COMMON_TRANSFER_LAGGING_DEVICE_H
#define TD_TESTS_COMMON_TRANSFER_LAGGING_DEVICE_H
#include "common/transfer/xfer.h"

/* Copies take n_polls polls. fail_after: the n-th copy and all later ones
 * fail; 0: none does. */
td_device *lagging_device_open(uint32_t n_polls, uint32_t fail_after);
void lagging_device_close(td_device *device);
/* As the environment says: XFER_TEST_RING has n_polls, then region 0 is such a device's memory, and
 * its bytes go by the ring, or with XFER_TEST_DIRECT as well from memory to memory. NULL: nothing
 * is said. */
td_device *lagging_device_from_environment(td_xfer_config *config);
uint64_t lagging_device_copies(const td_device *device); /* enqueued so far */
#endif
