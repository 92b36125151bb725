/* rig.h - a reader in the test's own process, with local slots whose contents are checked. */
#ifndef TD_TESTS_COMMON_TRANSFER_RIG_H
#define TD_TESTS_COMMON_TRANSFER_RIG_H
#include "tests/common/transfer/peer.h"

#define RIG_SLOTS 128U
#define RIG_MAX_JOB 64U

typedef struct {
    td_xfer *xfer;
    td_xfer_config config; /* changed by tests before rig_open() */
    td_xfer_region regions[2];
    td_xfer_region expected; /* what the source's slots hold */
    td_device *device;       /* XFER_TEST_RING in the environment: region 0 is its memory */
    uint32_t rng;
} rig;

/* One job's wishes and what is known about it. */
typedef struct {
    td_xfer_job job;
    td_xfer_get_args args;
    td_xfer_page pages[RIG_MAX_JOB];
} rig_job;

/* 2: shm, then tcp. 1 where ranges go from memory to memory (XFER_TEST_DIRECT): over tcp UCX
 * emulates that, and aborts when a peer is gone in the middle; between GPUs it never goes that way.
 */
int rig_n_transports(void);
void rig_init(rig *r, const char *transport);
void rig_open(rig *r);
void rig_close(rig *r);
uint32_t rig_random(rig *r, uint32_t below);
td_xfer_link rig_link(rig *r, const peer *source);
/* Opens a link and waits until it is up; fails the test if its transport is not the one wanted. */
td_xfer_link rig_up(rig *r, const peer *source, const char *want_transport);
/* n random pages of the source into local slots first_local, first_local+1, ... */
void rig_wish(rig *r, rig_job *j, uint32_t n, uint32_t first_local, uint64_t offset,
              uint64_t n_bytes, int64_t deadline_ms);
void rig_get(rig *r, td_xfer_link link, rig_job *j);
/* The next event; fails the test after ms. */
td_xfer_event rig_next(rig *r, int64_t ms);
td_xfer_event rig_expect(rig *r, td_xfer_event_kind kind, td_status status, int64_t ms);
void rig_check(rig *r, const rig_job *j);
/* Fills local slots with a pattern; rig_untouched() fails the test where it is gone. */
void rig_pattern(rig *r, uint32_t first_local, uint32_t n);
void rig_untouched(rig *r, uint32_t first_local, uint32_t n);
#endif
