#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/ring.h"
#include "tests/common/base/td_hard.h"

#include <pthread.h>
#include <stdatomic.h>

TEST(messages_come_out_as_they_went_in_wherever_they_stand)
{
    td_ring *ring;
    unsigned char msg[128];
    const void *got;
    size_t len;
    TD_EQ(TD_OK, td_ring_create(256, NULL, NULL, &ring, NULL));
    for (size_t round = 0; round < 5000; round++) {
        size_t n = round % sizeof(msg);
        memset(msg, (int)round, n);
        TD_EQ(TD_OK, td_ring_push(ring, msg, n));
        TD_TRUE(td_ring_used_bytes(ring) >= n + 8);
        TD_EQ(TD_OK, td_ring_peek(ring, &got, &len));
        TD_EQ(n, len);
        TD_EQ(0, (uintptr_t)got % 8);
        TD_MEM(msg, got, n);
        td_ring_pop(ring);
        TD_EQ(0, td_ring_used_bytes(ring));
    }
    TD_EQ(TD_EMPTY, td_ring_peek(ring, &got, &len));
    td_ring_destroy(ring);
    td_ring_destroy(NULL);
}

TEST(a_full_ring_takes_nothing_and_loses_nothing)
{
    td_ring *ring;
    uint64_t value = 0;
    const void *got;
    size_t len;
    TD_EQ(TD_OK, td_ring_create(160, NULL, NULL, &ring, NULL)); /* becomes 256: 16 messages */
    for (value = 0; value < 16; value++)
        TD_EQ(TD_OK, td_ring_push(ring, &value, sizeof(value)));
    TD_EQ(TD_FULL, td_ring_push(ring, &value, sizeof(value)));
    TD_EQ(256, td_ring_used_bytes(ring));
    for (value = 0; value < 16; value++) {
        TD_EQ(TD_OK, td_ring_peek(ring, &got, &len));
        TD_EQ(sizeof(value), len);
        TD_MEM(&value, got, len);
        td_ring_pop(ring);
    }
    TD_EQ(TD_EMPTY, td_ring_peek(ring, &got, &len));
    td_ring_destroy(ring);
}

TEST(the_largest_message_fits_an_empty_ring_at_any_place)
{
    td_ring *ring;
    unsigned char big[248] = {1, 2, 3};
    const void *got;
    size_t len;
    TD_EQ(TD_OK, td_ring_create(256, NULL, NULL, &ring, NULL));
    for (int i = 0; i < 100; i++) {
        TD_EQ(TD_OK, td_ring_push(ring, "x", 1));
        TD_EQ(TD_FULL, td_ring_push(ring, big, sizeof(big)));
        TD_EQ(TD_OK, td_ring_peek(ring, &got, &len));
        td_ring_pop(ring);
        TD_EQ(TD_OK, td_ring_push(ring, big, sizeof(big)));
        TD_EQ(TD_OK, td_ring_peek(ring, &got, &len));
        TD_EQ(sizeof(big), len);
        TD_MEM(big, got, len);
        td_ring_pop(ring);
    }
    TD_EQ(TD_TOO_LARGE, td_ring_push(ring, big, 249));
    TD_EQ(TD_TOO_LARGE, td_ring_push(ring, big, SIZE_MAX));
    td_ring_destroy(ring);
}

TEST(a_capacity_of_nothing_is_refused)
{
    td_ring *ring;
    TD_EQ(TD_INVALID, td_ring_create(0, NULL, NULL, &ring, NULL));
    TD_EQ(TD_INVALID, td_ring_create(SIZE_MAX, NULL, NULL, &ring, NULL));
}

TEST(each_allocation_may_fail)
{
    td_ring *ring;
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_ring_create(1024, NULL, NULL, &ring, NULL),
                        td_ring_destroy(ring));
}

TEST(a_wait_for_nothing_ends_at_its_deadline)
{
    td_ring *ring;
    TD_EQ(TD_OK, td_ring_create(256, NULL, NULL, &ring, NULL));
    int64_t start = td_now_ns();
    TD_EQ(TD_DEADLINE, td_ring_wait(ring, 1000000, start + 30 * TD_NS_PER_MS));
    int64_t took = td_now_ns() - start;
    TD_TRUE(took >= 30 * TD_NS_PER_MS);
    TD_TRUE(took < 2 * TD_NS_PER_S);
    TD_EQ(TD_DEADLINE, td_ring_wait(ring, 0, 1)); /* long past */
    TD_EQ(TD_OK, td_ring_push(ring, "x", 1));
    TD_EQ(TD_OK, td_ring_wait(ring, 0, 1)); /* a message beats a deadline */
    td_ring_destroy(ring);
}

static void count_wake(void *arg)
{
    ++*(int *)arg;
}

TEST(the_hook_is_called_once_for_each_push)
{
    td_ring *ring;
    int n_wakes = 0;
    TD_EQ(TD_OK, td_ring_create(64, count_wake, &n_wakes, &ring, NULL));
    TD_EQ(TD_OK, td_ring_push(ring, "1234567890123456", 16));
    TD_EQ(TD_OK, td_ring_push(ring, "1234567890123456", 16));
    TD_EQ(TD_FULL, td_ring_push(ring, "1234567890123456", 16));
    TD_EQ(2, n_wakes);
    td_ring_destroy(ring);
}

#define N_MESSAGES 100000

typedef struct {
    td_ring *ring;
    int64_t spin_ns;
    int pause_every; /* producer sleeps a little each so many messages, so that the consumer really
                        sleeps */
} pair;

static size_t length_of(uint64_t i)
{
    return 8 + i * 7 % 90;
}

static void *produce(void *arg)
{
    pair *p = arg;
    unsigned char msg[128];
    for (uint64_t i = 0; i < N_MESSAGES; i++) {
        memset(msg, (int)(i & 0xff), sizeof(msg));
        memcpy(msg, &i, sizeof(i));
        while (td_ring_push(p->ring, msg, length_of(i)) == TD_FULL)
            sched_yield();
        if (p->pause_every != 0 && i % (uint64_t)p->pause_every == 0)
            td_sleep_ms(1);
    }
    return NULL;
}

/* cmocka's checks are for its own thread: the consumer is the test's. */
static void run_pair(size_t capacity, int64_t spin_ns, int pause_every)
{
    pair p = {NULL, spin_ns, pause_every};
    pthread_t producer;
    TD_EQ(TD_OK, td_ring_create(capacity, NULL, NULL, &p.ring, NULL));
    TD_EQ(0, pthread_create(&producer, NULL, produce, &p));
    for (uint64_t i = 0; i < N_MESSAGES; i++) {
        const void *msg = NULL;
        size_t len = 0;
        uint64_t got;
        TD_EQ(TD_OK, td_ring_wait(p.ring, spin_ns, td_now_ns() + 20 * TD_NS_PER_S));
        TD_EQ(TD_OK, td_ring_peek(p.ring, &msg, &len));
        TD_EQ(length_of(i), len);
        memcpy(&got, msg, sizeof(got));
        TD_EQ(i, got);
        TD_TRUE(len == 8 || ((const unsigned char *)msg)[len - 1] == (i & 0xff));
        td_ring_pop(p.ring);
    }
    pthread_join(producer, NULL);
    TD_EQ(0, td_ring_used_bytes(p.ring));
    td_ring_destroy(p.ring);
}

TEST(two_threads_pass_every_message_in_order_through_a_tiny_ring)
{
    run_pair(128, 0, 0);
}

TEST(two_threads_pass_every_message_in_order_spinning)
{
    run_pair(65536, 20000, 0);
}

TEST(a_sleeping_consumer_is_woken_by_every_first_message)
{
    run_pair(4096, 0, 500);
}

TD_TEST_MAIN
