/* ring.h - bounded ring of variable-length messages between two threads: one producer, one
 * consumer. Messages are plain values without pointers. No locks; the consumer may spin, then sleep
 * on a futex; a producer wakes it, and may also call a hook (uv_async_send) so that an event loop
 * wakes. */
#ifndef TD_BASE_RING_H
#define TD_BASE_RING_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct td_ring td_ring;
typedef void (*td_ring_wake)(void *arg); /* called on the producer's thread after each push */

/* capacity_bytes is rounded up to a power of two; a message needs its length + 8, rounded up to 8.
 */
td_status td_ring_create(size_t capacity_bytes, td_ring_wake wake, void *wake_arg, td_ring **out,
                         td_err *err);
void td_ring_destroy(td_ring *ring); /* NULL is fine; both threads are done with it */
/* Producer. TD_FULL: nothing was written. TD_TOO_LARGE: it can never fit. */
td_status td_ring_push(td_ring *ring, const void *msg, size_t len);
/* Consumer. *msg points into the ring (16-byte aligned is NOT promised, 8 is) and stays valid until
 * td_ring_pop(). TD_EMPTY when there is none. */
td_status td_ring_peek(td_ring *ring, const void **msg, size_t *len);
void td_ring_pop(td_ring *ring); /* drops the message that peek() showed */
/* Consumer: waits until a message is there or deadline_ns (absolute; 0 = for ever is refused by
 * td_assert) has passed: spins for spin_ns first. TD_OK or TD_DEADLINE. */
td_status td_ring_wait(td_ring *ring, int64_t spin_ns, int64_t deadline_ns);
size_t td_ring_used_bytes(const td_ring *ring); /* any thread; a snapshot */
#endif
