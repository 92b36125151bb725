#include "common/base/ring.h"

#include "common/base/clock.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LINE 64
#define HEADER_BYTES 8
#define CLOCK_EVERY 64 /* spins between two looks at the clock */

/* head and tail count bytes and never wrap; a message stands at (position & mask). The buffer is
 * twice the capacity, so a message that begins before the end simply goes on behind it: no wrap
 * marker, and any message up to the capacity fits an empty ring wherever it stands. The second half
 * is only touched as far as messages reach into it. */
struct td_ring {
    _Alignas(LINE) _Atomic uint64_t head;     /* producer writes */
    uint64_t tail_seen;                       /* producer's last look at tail */
    _Alignas(LINE) _Atomic uint64_t tail;     /* consumer writes */
    uint64_t head_seen;                       /* consumer's last look at head */
    uint64_t shown;                           /* bytes of the message that peek() showed; 0: none */
    _Alignas(LINE) _Atomic uint32_t sleeping; /* futex: 1 while the consumer may sleep */
    _Alignas(LINE) uint64_t capacity;
    unsigned char *bytes; /* [2 * capacity] */
    td_ring_wake wake;
    void *wake_arg;
};

static uint64_t needed_bytes(size_t len)
{
    return ((uint64_t)len + HEADER_BYTES + 7) & ~7ULL;
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int has_message(td_ring *ring)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (ring->head_seen == tail)
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_seq_cst);
    return ring->head_seen != tail;
}

static void sleep_until(td_ring *ring, int64_t deadline_ns)
{
    struct timespec at = {deadline_ns / TD_NS_PER_S, deadline_ns % TD_NS_PER_S};
    /* FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time; every return is followed by a new
     * look. */
    syscall(SYS_futex, &ring->sleeping, FUTEX_WAIT_BITSET_PRIVATE, 1, &at, NULL,
            FUTEX_BITSET_MATCH_ANY);
}

td_status td_ring_create(size_t capacity_bytes, td_ring_wake wake, void *wake_arg, td_ring **out,
                         td_err *err)
{
    if (capacity_bytes == 0 || capacity_bytes > (size_t)1 << 40)
        return td_fail(err, TD_INVALID, "ring: capacity of %zu bytes", capacity_bytes);
    uint64_t capacity = 2 * HEADER_BYTES;
    while (capacity < capacity_bytes)
        capacity *= 2;
    td_ring *ring = aligned_alloc(LINE, sizeof(*ring));
    if (ring == NULL)
        goto fail;
    memset(ring, 0, sizeof(*ring));
    ring->bytes = malloc(2 * capacity);
    if (ring->bytes == NULL)
        goto fail;
    ring->capacity = capacity;
    ring->wake = wake;
    ring->wake_arg = wake_arg;
    *out = ring;
    return TD_OK;
fail:
    td_ring_destroy(ring);
    return td_fail(err, TD_NOMEM, "ring: no memory for %zu bytes", capacity_bytes);
}

void td_ring_destroy(td_ring *ring)
{
    if (ring == NULL)
        return;
    free(ring->bytes);
    free(ring);
}

td_status td_ring_push(td_ring *ring, const void *msg, size_t len)
{
    uint64_t need = needed_bytes(len);
    if (len > ring->capacity || need > ring->capacity)
        return TD_TOO_LARGE;
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (head + need - ring->tail_seen > ring->capacity) {
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (head + need - ring->tail_seen > ring->capacity)
            return TD_FULL;
    }
    unsigned char *at = ring->bytes + (head & (ring->capacity - 1));
    uint64_t length = len;
    memcpy(at, &length, HEADER_BYTES);
    if (len > 0)
        memcpy(at + HEADER_BYTES, msg, len);
    /* Dekker with td_ring_wait(): either this load sees the sleeper, or the sleeper's last look
     * sees this head. Both sides need sequential consistency for that. */
    atomic_store_explicit(&ring->head, head + need, memory_order_seq_cst);
    if (atomic_load_explicit(&ring->sleeping, memory_order_seq_cst) != 0) {
        atomic_store_explicit(&ring->sleeping, 0, memory_order_seq_cst);
        syscall(SYS_futex, &ring->sleeping, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    if (ring->wake != NULL)
        ring->wake(ring->wake_arg);
    return TD_OK;
}

td_status td_ring_peek(td_ring *ring, const void **msg, size_t *len)
{
    if (!has_message(ring))
        return TD_EMPTY;
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    const unsigned char *at = ring->bytes + (tail & (ring->capacity - 1));
    uint64_t length;
    memcpy(&length, at, HEADER_BYTES);
    ring->shown = needed_bytes(length);
    *msg = at + HEADER_BYTES;
    *len = length;
    return TD_OK;
}

void td_ring_pop(td_ring *ring)
{
    td_assert(ring->shown != 0);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    atomic_store_explicit(&ring->tail, tail + ring->shown, memory_order_release);
    ring->shown = 0;
}

td_status td_ring_wait(td_ring *ring, int64_t spin_ns, int64_t deadline_ns)
{
    td_assert(deadline_ns != 0);
    if (has_message(ring))
        return TD_OK;
    if (spin_ns > 0) {
        int64_t until = td_now_ns() + spin_ns;
        for (uint32_t i = 1; i % CLOCK_EVERY != 0 || td_now_ns() < until; i++) {
            if (has_message(ring))
                return TD_OK;
            pause_cpu();
        }
    }
    while (!has_message(ring)) {
        if (td_now_ns() >= deadline_ns)
            return TD_DEADLINE;
        atomic_store_explicit(&ring->sleeping, 1, memory_order_seq_cst);
        if (!has_message(ring))
            sleep_until(ring, deadline_ns);
        atomic_store_explicit(&ring->sleeping, 0, memory_order_seq_cst);
    }
    return TD_OK;
}

size_t td_ring_used_bytes(const td_ring *ring)
{
    /* tail first: it can only have grown less than the head read after it, so the difference is
     * never negative. */
    td_ring *r = (td_ring *)ring;
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&r->head, memory_order_acquire);
    uint64_t used = head - tail;
    return used < ring->capacity ? used : ring->capacity;
}
