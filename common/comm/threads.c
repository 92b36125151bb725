/* The thread form. A collective is: publish what the peers need, meet, copy from the peers' memory,
 * meet again (so that a sender's buffer may be reused). A meeting is a counter and a generation:
 * the last to arrive raises the generation and wakes the others. */
#include "common/comm/comm.h"

#include "common/base/clock.h"
#include "common/comm/class.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif
#define SPINS_PER_LOOK 64           /* between looks at the clock */
#define STEP_NS (50 * TD_NS_PER_MS) /* the longest sleep; no look at the clock counts for more */

struct td_comm {
    td_comm_head head;
    /* Published before the first meeting of a collective, read by the peers until the second. */
    const void *send;
    const int32_t *counts;
    size_t size; /* what must be equal on all ranks */
} __attribute__((aligned(64)));

struct td_comm_group {
    td_comm_group_head head;
    uint32_t spin_us;
    int64_t deadline_ms;
    _Alignas(64) _Atomic uint32_t n_arrived;
    _Alignas(64) _Atomic uint32_t generation; /* futex word */
    _Atomic int dead;
    td_comm *ranks; /* [n_ranks] */
};

static void destroy(td_comm_group *group)
{
    free(group->ranks);
    free(group);
}

static void wake_all(td_comm_group *group)
{
    atomic_fetch_add(&group->generation, 1);
    syscall(SYS_futex, &group->generation, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void end_group(td_comm_group *group)
{
    atomic_store(&group->dead, 1);
    wake_all(group);
}

static td_comm *rank_of(td_comm_group *group, uint32_t rank)
{
    return &group->ranks[rank];
}

/* 1: the generation is no longer `seen`. */
static int spin(const td_comm_group *group, uint32_t seen)
{
    int64_t end = td_now_ns() + (int64_t)group->spin_us * 1000;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (atomic_load(&group->generation) != seen)
                return 1;
            PAUSE();
        }
    } while (td_now_ns() < end);
    return 0;
}

/* Until the generation is no longer `seen`: TD_OK, or TD_DEADLINE. A process that was stopped finds
 * all its deadlines past and its peers, which were stopped with it, as far as before: time in which
 * we did not run does not count. */
static td_status wait_change(td_comm_group *group, uint32_t seen)
{
    if (group->spin_us > 0 && spin(group, seen))
        return TD_OK;
    int64_t limit = group->deadline_ms * TD_NS_PER_MS, waited = 0, last = td_now_ns();
    while (atomic_load(&group->generation) == seen) {
        int64_t left = limit - waited;
        if (left <= 0)
            return TD_DEADLINE;
        struct timespec sleep = {0, left < STEP_NS ? left : STEP_NS};
        syscall(SYS_futex, &group->generation, FUTEX_WAIT_PRIVATE, seen, &sleep, NULL, 0);
        int64_t now = td_now_ns(), step = now - last;
        waited += step < STEP_NS ? step : STEP_NS;
        last = now;
    }
    return TD_OK;
}

static td_status meet(td_comm_group *group)
{
    uint32_t seen = atomic_load(&group->generation);
    if (atomic_load(&group->dead))
        return TD_CANCELLED;
    if (atomic_fetch_add(&group->n_arrived, 1) + 1 == group->head.n_ranks) {
        atomic_store(&group->n_arrived, 0);
        wake_all(group);
        return atomic_load(&group->dead) ? TD_CANCELLED : TD_OK;
    }
    if (wait_change(group, seen) == TD_DEADLINE) {
        end_group(group);
        return TD_DEADLINE;
    }
    return atomic_load(&group->dead) ? TD_CANCELLED : TD_OK;
}

/* Publishes, meets, and checks that all ranks came for the same thing. */
static td_status begin(td_comm *comm, const void *send, const int32_t *counts, size_t size,
                       td_stream *stream)
{
    td_comm_group *group = comm->head.group;
    td_status st = stream == NULL ? TD_OK : td_stream_sync(stream, NULL);
    if (st < 0) {
        end_group(group);
        return st;
    }
    comm->send = send;
    comm->counts = counts;
    comm->size = size;
    if ((st = meet(group)) < 0)
        return st;
    for (uint32_t r = 0; r < group->head.n_ranks; r++) {
        if (group->ranks[r].size != size) {
            end_group(group);
            return TD_INTERNAL;
        }
    }
    return TD_OK;
}

static td_status barrier(td_comm *comm)
{
    return meet(comm->head.group);
}

static td_status all_gather(td_comm *comm, const void *send, size_t n_bytes, void *recv,
                            td_stream *stream)
{
    const td_comm_group *group = comm->head.group;
    td_status st = begin(comm, send, NULL, n_bytes, stream);
    if (st < 0)
        return st;
    for (uint32_t i = 0; i < group->head.n_ranks && n_bytes > 0; i++) {
        uint32_t r =
            (comm->head.rank + i) % group->head.n_ranks; /* not all from the same peer at once */
        memcpy((char *)recv + r * n_bytes, group->ranks[r].send, n_bytes);
    }
    return meet(comm->head.group);
}

/* out[i] = sum over ranks, in rank order, of their send[at + i]. */
static void sum_ranks(const td_comm_group *group, size_t at, size_t n, float *out)
{
    enum { BLOCK = 1024 };
    float sum[BLOCK];
    for (size_t from = 0; from < n; from += BLOCK) {
        size_t m = n - from < BLOCK ? n - from : BLOCK;
        memcpy(sum, (const float *)group->ranks[0].send + at + from, m * sizeof(*sum));
        for (uint32_t r = 1; r < group->head.n_ranks; r++) {
            const float *part = (const float *)group->ranks[r].send + at + from;
            for (size_t i = 0; i < m; i++)
                sum[i] += part[i];
        }
        memcpy(out + from, sum, m * sizeof(*sum));
    }
}

static td_status reduce_scatter_f32(td_comm *comm, const float *send, size_t n, float *recv,
                                    td_stream *stream)
{
    td_status st = begin(comm, send, NULL, n, stream);
    if (st < 0)
        return st;
    sum_ranks(comm->head.group, comm->head.rank * n, n, recv);
    return meet(comm->head.group);
}

static td_status all_to_all_rows(td_comm *comm, const void *send, const int32_t *send_counts,
                                 uint32_t cap_rows, size_t row_bytes, void *recv,
                                 int32_t *recv_counts, td_stream *stream)
{
    const td_comm_group *group = comm->head.group;
    size_t block = cap_rows * row_bytes;
    td_status st = begin(comm, send, send_counts, block, stream);
    if (st < 0)
        return st;
    for (uint32_t i = 0; i < group->head.n_ranks; i++) {
        uint32_t r = (comm->head.rank + i) % group->head.n_ranks;
        int32_t n = group->ranks[r].counts[comm->head.rank];
        if (n < 0 || (uint32_t)n > cap_rows) {
            end_group(comm->head.group);
            return TD_INTERNAL;
        }
        if (n > 0)
            memcpy((char *)recv + r * block,
                   (const char *)group->ranks[r].send + comm->head.rank * block,
                   (size_t)n * row_bytes);
        recv_counts[r] = n;
    }
    return meet(comm->head.group);
}

static const char *unrecordable(const td_comm_group *group)
{
    (void)group;
    return "the CPU's steps are not recorded";
}

static const td_comm_class threads_class = {
    .name = "threads",
    .destroy = destroy,
    .abort = end_group,
    .rank = rank_of,
    .all_gather = all_gather,
    .reduce_scatter_f32 = reduce_scatter_f32,
    .all_to_all_rows = all_to_all_rows,
    .barrier = barrier,
    .unrecordable = unrecordable,
};

td_status td_comm_group_create(uint32_t n_ranks, uint32_t spin_us, int64_t deadline_ms,
                               td_comm_group **out, td_err *err)
{
    if (n_ranks == 0 || n_ranks > 1024 || deadline_ms <= 0)
        return td_fail(err, TD_INVALID, "comm: %u ranks, deadline of %lld ms", n_ranks,
                       (long long)deadline_ms);
    td_comm_group *group = aligned_alloc(64, (sizeof(*group) + 63) / 64 * 64);
    if (group == NULL)
        goto fail;
    memset(group, 0, sizeof(*group));
    group->head = (td_comm_group_head){&threads_class, n_ranks};
    group->spin_us = spin_us;
    group->deadline_ms = deadline_ms;
    group->ranks = aligned_alloc(64, n_ranks * sizeof(*group->ranks));
    if (group->ranks == NULL)
        goto fail;
    memset(group->ranks, 0, n_ranks * sizeof(*group->ranks));
    for (uint32_t r = 0; r < n_ranks; r++)
        group->ranks[r].head = (td_comm_head){group, r};
    *out = group;
    return TD_OK;
fail:
    if (group != NULL)
        destroy(group);
    return td_fail(err, TD_NOMEM, "comm: no memory for %u ranks", n_ranks);
}
