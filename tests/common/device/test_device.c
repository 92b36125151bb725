#include "common/device/cpu.h"
#include "tests/common/base/td_hard.h"
#include "tests/td_test.h"

#include <stdatomic.h>
#include <time.h>

#include "common/base/clock.h"

TD_TEST_MAIN

typedef struct {
    td_stream *stream;
    _Atomic uint32_t *seen; /* [n] how often an item was done */
    uint32_t *plain;        /* [n] written without atomics: TSan sees a missing order */
    int64_t n, grain;
    _Atomic uint32_t threads; /* bit per thread that took part */
    uint32_t n_threads;
} visit;

static void visit_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    visit *v = arg;
    TD_TRUE(begin < end && end <= v->n && end - begin <= v->grain && begin % v->grain == 0);
    TD_TRUE(thread < v->n_threads);
    atomic_fetch_or(&v->threads, 1u << thread);
    unsigned char *mine = td_cpu_scratch(v->stream, thread, 100);
    memset(mine, (int)thread, 100);
    for (int64_t i = begin; i < end; i++) {
        atomic_fetch_add(&v->seen[i], 1);
        v->plain[i]++;
    }
    for (int i = 0; i < 100; i++)
        TD_EQ(thread, mine[i]);
}

static void visit_all(td_device *device, uint32_t n_threads, int64_t n, int64_t grain)
{
    td_stream *stream = td_device_stream(device);
    visit v = {.stream = stream, .n = n, .grain = grain, .n_threads = n_threads};
    v.seen = calloc((size_t)n + 1, sizeof(*v.seen));
    v.plain = calloc((size_t)n + 1, sizeof(*v.plain));
    for (int round = 1; round <= 3; round++) {
        td_cpu_for(stream, n, grain, visit_part, &v);
        for (int64_t i = 0; i < n; i++) {
            TD_EQ(round, v.seen[i]);
            TD_EQ(round, v.plain[i]);
        }
        TD_EQ(0, v.seen[n]);
    }
    free(v.seen);
    free(v.plain);
}

TEST(every_item_is_done_once)
{
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads += 2) {
        td_device *device;
        TD_EQ(TD_OK, td_device_open_cpu(n_threads, 50, &device, NULL));
        TD_EQ(n_threads, td_cpu_threads(td_device_stream(device)));
        const int64_t sizes[] = {0, 1, 2, 7, 64, 1000};
        for (int i = 0; i < 6; i++)
            for (int64_t grain = 1; grain < 2000; grain = grain * 3 + 1)
                visit_all(device, n_threads, sizes[i], grain);
        td_device_close(device);
    }
}

static void add_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    (void)thread;
    _Atomic int64_t *sum = arg;
    for (int64_t i = begin; i < end; i++)
        atomic_fetch_add(sum, i);
}

/* Jobs in quick succession, after pauses in which the helpers fall asleep, and without any
 * spinning. */
TEST(many_small_jobs_get_done_with_helpers_awake_or_asleep)
{
    for (uint32_t spin_us = 0; spin_us <= 30; spin_us += 30) {
        td_device *device;
        TD_EQ(TD_OK, td_device_open_cpu(4, spin_us, &device, NULL));
        for (int i = 0; i < 20000; i++) {
            _Atomic int64_t sum = 0;
            td_cpu_for(td_device_stream(device), 8, 1, add_part, &sum);
            TD_EQ(28, sum);
            if (i % 1000 == 0)
                td_sleep_ms(1);
        }
        td_device_close(device);
    }
}

static void slow_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    (void)begin;
    (void)end;
    atomic_fetch_or((_Atomic uint32_t *)arg, 1u << thread);
    td_sleep_ms(20);
}

TEST(all_threads_take_part_in_long_work)
{
    td_device *device;
    TD_EQ(TD_OK, td_device_open_cpu(3, 10, &device, NULL));
    td_sleep_ms(5); /* asleep by now */
    _Atomic uint32_t threads = 0;
    td_cpu_for(td_device_stream(device), 9, 1, slow_part, &threads);
    TD_EQ(7, threads);
    td_device_close(device);
}

TEST(idle_helpers_use_no_cpu)
{
    td_device *device;
    _Atomic int64_t sum = 0;
    TD_EQ(TD_OK, td_device_open_cpu(4, 100, &device, NULL));
    td_cpu_for(td_device_stream(device), 100, 1, add_part, &sum);
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    td_sleep_ms(300);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    int64_t used_ns = (after.tv_sec - before.tv_sec) * TD_NS_PER_S + after.tv_nsec - before.tv_nsec;
    TD_TRUE(used_ns < 50 * TD_NS_PER_MS); /* one that spins would use 300 */
    td_device_close(device);
}

TEST(memory_is_zeroed_and_aligned)
{
    td_device *device;
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    const size_t sizes[] = {0, 1, 63, 4096, 3000001};
    for (int i = 0; i < 5; i++) {
        unsigned char *p;
        TD_EQ(TD_OK, td_device_alloc(device, sizes[i], (void **)&p, NULL));
        TD_EQ(0, (uintptr_t)p % 64);
        for (size_t k = 0; k < sizes[i]; k++)
            TD_EQ(0, p[k]);
        memset(p, 1, sizes[i]);
        td_device_free(device, p);
    }
    td_device_free(device, NULL);
    void *untouched = &untouched;
    td_err err;
    TD_EQ(TD_NOMEM, td_device_alloc(device, SIZE_MAX - 3, &untouched, &err));
    TD_TRUE(untouched == &untouched);
    td_device_close(device);
    td_device_close(NULL);
}

TEST(copies_move_bytes)
{
    td_device *device;
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    td_stream *stream = td_device_stream(device);
    char *a, *b, back[8];
    TD_EQ(TD_OK, td_device_alloc(device, 8, (void **)&a, NULL));
    TD_EQ(TD_OK, td_device_alloc(device, 8, (void **)&b, NULL));
    TD_EQ(TD_OK, td_stream_write(stream, a, "1234567", 8));
    TD_EQ(TD_OK, td_stream_copy(stream, b, a, 8));
    TD_EQ(TD_OK, td_stream_fill(stream, b, 'x', 2));
    TD_EQ(TD_OK, td_stream_read(stream, back, b, 8));
    TD_EQ(TD_OK, td_stream_copy(stream, NULL, NULL, 0));
    TD_EQ(TD_OK, td_stream_sync(stream, NULL));
    TD_STR("xx34567", back);
    td_device_free(device, a);
    td_device_free(device, b);
    td_device_close(device);
}

TEST(points_on_a_stream_are_in_order)
{
    td_device *device = NULL;
    td_event *a = NULL, *b = NULL;
    int64_t ns = -1;
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    td_stream *stream = td_device_stream(device);
    TD_EQ(TD_OK, td_event_create(device, &a, NULL));
    TD_EQ(TD_OK, td_event_create(device, &b, NULL));
    TD_EQ(TD_OK, td_event_record(a, stream));
    TD_EQ(TD_OK, td_event_record(b, stream));
    TD_EQ(TD_OK, td_event_wait(b, stream, NULL));
    TD_EQ(TD_OK, td_event_poll(a, stream));
    TD_EQ(TD_OK, td_event_elapsed_ns(a, b, stream, &ns, NULL));
    TD_TRUE(ns >= 0);
    td_event_destroy(device, a);
    td_event_destroy(device, b);
    td_event_destroy(device, NULL);
    td_device_close(device);
}

TEST(instruction_sets_are_capped_by_the_cpu)
{
    td_device *device;
    TD_EQ(TD_OK, td_device_open_cpu(2, 0, &device, NULL));
    td_stream *stream = td_device_stream(device);
    td_isa best = td_cpu_isa(stream);
    td_cpu_set_isa(stream, TD_ISA_PORTABLE);
    TD_EQ(TD_ISA_PORTABLE, td_cpu_isa(stream));
    td_cpu_set_isa(stream, TD_ISA_AVX512);
    TD_EQ(best, td_cpu_isa(stream));
    printf("%s\n", td_device_name(device));
    TD_TRUE(strncmp("cpu (2 threads, ", td_device_name(device), 16) == 0);
    td_device_close(device);
}

TEST(scratch_grows_and_stays)
{
    td_device *device;
    TD_EQ(TD_OK, td_device_open_cpu(2, 0, &device, NULL));
    td_stream *stream = td_device_stream(device);
    TD_EQ(TD_OK, td_cpu_reserve(stream, 100000));
    for (uint32_t t = 0; t < 2; t++) {
        unsigned char *p = td_cpu_scratch(stream, t, 100000);
        TD_EQ(0, (uintptr_t)p % 64);
        memset(p, 1, 100000);
        TD_TRUE(p == td_cpu_scratch(stream, t, 5));
    }
    unsigned char *shared = td_cpu_shared_scratch(stream, 7);
    TD_TRUE(shared != td_cpu_scratch(stream, 0, 1) && shared != td_cpu_scratch(stream, 1, 1));
    TD_TRUE(td_cpu_scratch(stream, 0, SIZE_MAX - 5) == NULL);
    TD_EQ(TD_NOMEM, td_cpu_reserve(stream, SIZE_MAX - 5));
    TD_TRUE(td_cpu_scratch(stream, 0, 100000) != NULL);
    td_device_close(device);
}

TEST(open_refuses_and_survives_failing_allocations)
{
    td_device *device = NULL;
    td_err err;
    TD_EQ(TD_INVALID, td_device_open_cpu(1000000, 0, &device, &err));
    TD_TRUE(device == NULL);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_device_open_cpu(3, 0, &device, &err), td_device_close(device));
    TD_EQ(TD_OK, td_device_open_cpu(0, 0, &device, NULL));
    TD_TRUE(td_cpu_threads(td_device_stream(device)) >= 1);
    void *p;
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_device_alloc(device, 10, &p, &err), td_device_free(device, p));
    td_device_close(device);
}

/* The CPU's copies are over when they are enqueued; the calls are those of any device. */
TEST(a_second_stream_has_points_of_its_own)
{
    td_device *device;
    td_stream *stream;
    td_event *point;
    void *at;
    unsigned char bytes[4] = {1, 2, 3, 4}, back[4] = {0};
    TD_EQ(TD_OK, td_device_open_cpu(2, 0, &device, NULL));
    TD_EQ(0, td_device_is_gpu(device));
    TD_EQ(TD_OK, td_device_bind(device, NULL));
    TD_EQ(TD_OK, td_device_alloc(device, 4, &at, NULL));
    TD_EQ(TD_OK, td_device_open_stream(device, &stream, NULL));
    TD_TRUE(stream != td_device_stream(device));
    TD_EQ(TD_OK, td_event_create(device, &point, NULL));
    TD_EQ(TD_OK, td_stream_write(stream, at, bytes, 4));
    TD_EQ(TD_OK, td_device_flush_writes(device));
    TD_EQ(TD_OK, td_stream_read(stream, back, at, 4));
    TD_EQ(TD_OK, td_event_record(point, stream));
    TD_EQ(TD_OK, td_event_poll(point, stream));
    TD_MEM(bytes, back, 4);
    td_event_destroy(device, point);
    td_device_close_stream(stream);
    td_device_close_stream(NULL);
    td_device_free(device, at);
    td_device_close(device);
}
