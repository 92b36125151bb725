/* peer.h - another process at the other end of the transfer layer: started, stopped and killed by
 * tests. The program is xfer_peer, beside the test's own executable. Slots have contents that any
 * process can compute. */
#ifndef TD_TESTS_COMMON_TRANSFER_PEER_H
#define TD_TESTS_COMMON_TRANSFER_PEER_H
#include "common/transfer/stats.h"
#include "common/transfer/xfer.h"

#include <sys/types.h>

#define PEER_SLOTS 64U
#define PEER_STRIDE (256U << 10)
#define PEER_BLOBS 8U
#define PEER_BLOB_BYTES 7168U
#define PEER_GENERATION 7U /* of every slot */

typedef struct {
    pid_t pid; /* 0: none */
    int to, from;
    const char *incarnation;
    unsigned char desc[TD_XFER_MAX_DESC_BYTES];
    size_t n_desc_bytes;
} peer;

/* Word i of a slot's contents. */
static inline uint64_t peer_word(uint32_t region, uint32_t slot, uint64_t i)
{
    uint64_t x = ((uint64_t)region << 56 | (uint64_t)slot << 32 | i) * 0x9e3779b97f4a7c15ULL;
    return x ^ x >> 29;
}
void peer_fill(unsigned char *slot_bytes, uint32_t region, uint32_t slot, uint64_t n_bytes);

/* Skips the test where UCX is older than XFER_TEST_UCX_MINOR asks for; peers and readers do so when
 * they are made. */
void peer_need_ucx(void);
/* Aborts the test when the other process does not come up. listen: NULL is any port of loopback. */
void peer_start_source(peer *p, const char *transport, const char *incarnation, const char *listen);
/* Draws from source over and over, checking contents, until it is killed; returns when its first
 * job is under way. */
void peer_start_reader(peer *p, const char *transport, const peer *source);
/* What a source served so far. */
td_xfer_served_info peer_served(peer *p);
void peer_kill(peer *p); /* SIGKILL and wait */
void peer_stop(peer *p); /* SIGSTOP and wait until every thread stands */
void peer_continue(peer *p);
/* Asks it to end, and expects exit code 0 (sanitizers speak through it). */
void peer_finish(peer *p);
double peer_cpu_seconds(const peer *p);
#endif
