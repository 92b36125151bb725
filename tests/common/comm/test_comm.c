/* Collectives between threads: right for any number of ranks, the same bits everywhere, and no wait
 * without an end. */
#include "common/base/clock.h"
#include "common/comm/comm.h"
#include "tests/common/base/td_hard.h"
#include "tests/td_test.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

TD_TEST_MAIN

#define MAX_RANKS 8
#define DEADLINE_MS 20000

typedef struct {
    td_comm *comm;
    uint32_t rank, n_ranks;
    int rounds;
    td_status st;
} rank_arg;

typedef void *(*rank_main)(void *);

static td_comm_group *open_group(uint32_t n, uint32_t spin_us, int64_t deadline_ms)
{
    td_comm_group *group = NULL;
    TD_EQ(TD_OK, td_comm_group_create(n, spin_us, deadline_ms, &group, NULL));
    return group;
}

static void run_ranks(uint32_t n, uint32_t spin_us, int rounds, rank_main fn, rank_arg *args)
{
    pthread_t threads[MAX_RANKS];
    td_comm_group *group = open_group(n, spin_us, DEADLINE_MS);
    for (uint32_t r = 0; r < n; r++) {
        args[r] = (rank_arg){td_comm_group_rank(group, r), r, n, rounds, TD_OK};
        TD_EQ(0, pthread_create(&threads[r], NULL, fn, &args[r]));
    }
    for (uint32_t r = 0; r < n; r++)
        pthread_join(threads[r], NULL);
    td_comm_group_destroy(group);
}

static void *gather_main(void *arg)
{
    rank_arg *a = arg;
    for (int i = 0; i < a->rounds && a->st == TD_OK; i++) {
        size_t n = (size_t)(i * 37 % 200);
        unsigned char send[200], recv[MAX_RANKS * 200];
        for (size_t k = 0; k < n; k++)
            send[k] = (unsigned char)(a->rank * 31 + k + (size_t)i);
        memset(recv, 0xee, sizeof(recv));
        a->st = td_comm_all_gather(a->comm, send, n, recv, NULL);
        for (uint32_t r = 0; r < a->n_ranks && a->st == TD_OK; r++)
            for (size_t k = 0; k < n; k++)
                if (recv[r * n + k] != (unsigned char)(r * 31 + k + (size_t)i))
                    a->st = TD_INTERNAL;
    }
    return NULL;
}

TEST(all_gather_brings_every_block_to_every_rank)
{
    rank_arg args[MAX_RANKS];
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        run_ranks(n, n % 2 == 0 ? 0 : 20, 60, gather_main, args);
        for (uint32_t r = 0; r < n; r++)
            TD_EQ(TD_OK, args[r].st);
    }
}

static float element(uint32_t rank, size_t i)
{
    uint64_t seed = rank * 1000003u + i;
    return (float)((double)(td_random(&seed) >> 11) * 0x1p-53 - 0.5) * (i % 7 == 0 ? 1e6f : 1.0f);
}

/* The sum in rank order, which is what every rank must have, to the bit. */
static float sum_of(uint32_t n_ranks, size_t i)
{
    float sum = element(0, i);
    for (uint32_t r = 1; r < n_ranks; r++)
        sum += element(r, i);
    return sum;
}

static void *sum_main(void *arg)
{
    rank_arg *a = arg;
    enum { MOST = 3000 };
    float *send = calloc(MAX_RANKS * MOST, sizeof(float)), *recv = calloc(MOST, sizeof(float));
    for (int i = 0; i < a->rounds && a->st == TD_OK; i++) {
        size_t n = i == 0 ? 0 : (size_t)(i * 577 % MOST), all = n * a->n_ranks;
        for (size_t k = 0; k < all; k++)
            send[k] = element(a->rank, k);
        a->st = td_comm_reduce_scatter_f32(a->comm, send, n, recv, NULL);
        for (size_t k = 0; k < n && a->st == TD_OK; k++) {
            float want = sum_of(a->n_ranks, a->rank * n + k);
            if (recv[k] != want)
                a->st = TD_INTERNAL;
        }
    }
    free(send);
    free(recv);
    return NULL;
}

TEST(sums_run_in_rank_order_to_the_bit)
{
    rank_arg args[MAX_RANKS];
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        run_ranks(n, 5, 12, sum_main, args);
        for (uint32_t r = 0; r < n; r++)
            TD_EQ(TD_OK, args[r].st);
    }
}

/* Rank a sends (a + b + round) % (cap + 1) rows to rank b. */
static void *all_to_all_main(void *arg)
{
    rank_arg *a = arg;
    enum { CAP = 9, ROW = 12 };
    unsigned char send[MAX_RANKS * CAP * ROW], recv[MAX_RANKS * CAP * ROW];
    int32_t counts[MAX_RANKS], got[MAX_RANKS];
    for (int i = 0; i < a->rounds && a->st == TD_OK; i++) {
        for (uint32_t r = 0; r < a->n_ranks; r++) {
            counts[r] = (int32_t)((a->rank + r + (uint32_t)i) % (CAP + 1));
            memset(send + r * CAP * ROW, (int)(a->rank * 16 + r), CAP * ROW);
        }
        memset(recv, 0xee, sizeof(recv));
        a->st = td_comm_all_to_all_rows(a->comm, send, counts, CAP, ROW, recv, got, NULL);
        for (uint32_t r = 0; r < a->n_ranks && a->st == TD_OK; r++) {
            int32_t want = (int32_t)((a->rank + r + (uint32_t)i) % (CAP + 1));
            if (got[r] != want)
                a->st = TD_INTERNAL;
            for (int32_t k = 0; k < CAP * ROW; k++)
                if (recv[r * CAP * ROW + (uint32_t)k] !=
                    (k < want * ROW ? (unsigned char)(r * 16 + a->rank) : 0xee))
                    a->st = TD_INTERNAL;
        }
    }
    return NULL;
}

TEST(all_to_all_moves_counted_rows_and_nothing_else)
{
    rank_arg args[MAX_RANKS];
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        run_ranks(n, 0, 40, all_to_all_main, args);
        for (uint32_t r = 0; r < n; r++)
            TD_EQ(TD_OK, args[r].st);
    }
}

static void *many_main(void *arg)
{
    rank_arg *a = arg;
    uint64_t turn = 0, all[MAX_RANKS];
    for (int i = 0; i < a->rounds && a->st == TD_OK; i++) {
        turn = (uint64_t)i;
        a->st = td_comm_all_gather(a->comm, &turn, sizeof(turn), all, NULL);
        for (uint32_t r = 0; r < a->n_ranks && a->st == TD_OK; r++)
            if (all[r] != (uint64_t)i)
                a->st = TD_INTERNAL;
        if (a->st == TD_OK && i % 3 == 0)
            a->st = td_comm_barrier(a->comm);
    }
    return NULL;
}

TEST(thousands_of_collectives_in_a_row_stay_in_step)
{
    rank_arg args[MAX_RANKS];
    run_ranks(4, 2, 3000, many_main, args);
    for (uint32_t r = 0; r < 4; r++)
        TD_EQ(TD_OK, args[r].st);
}

static void *wait_main(void *arg)
{
    rank_arg *a = arg;
    a->st = td_comm_barrier(a->comm);
    return NULL;
}

TEST(abort_ends_a_wait_at_once_and_for_good)
{
    pthread_t thread;
    td_comm_group *group = open_group(2, 1000, DEADLINE_MS);
    rank_arg a = {td_comm_group_rank(group, 1), 1, 2, 0, TD_OK};
    TD_EQ(0, pthread_create(&thread, NULL, wait_main, &a));
    td_sleep_ms(30);
    int64_t start = td_now_ns();
    td_comm_group_abort(group);
    pthread_join(thread, NULL);
    TD_TRUE(td_now_ns() - start < 5 * TD_NS_PER_S);
    TD_EQ(TD_CANCELLED, a.st);
    TD_EQ(TD_CANCELLED, td_comm_barrier(td_comm_group_rank(group, 0)));
    td_comm_group_destroy(group);
}

TEST(a_rank_that_never_comes_ends_the_wait_at_the_deadline)
{
    td_comm_group *group = open_group(3, 0, 50);
    float x[3] = {1, 1, 1}, sum;
    int64_t start = td_now_ns();
    TD_EQ(TD_DEADLINE, td_comm_reduce_scatter_f32(td_comm_group_rank(group, 2), x, 1, &sum, NULL));
    TD_TRUE(td_now_ns() - start >= 50 * TD_NS_PER_MS);
    TD_EQ(TD_CANCELLED, td_comm_barrier(td_comm_group_rank(group, 0)));
    td_comm_group_destroy(group);
}

static void *late_main(void *arg)
{
    rank_arg *a = arg;
    for (int i = 0; i < 10; i++) /* whatever a stop lasts, most of it is left afterwards */
        td_sleep_ms(20);
    a->st = td_comm_barrier(a->comm);
    return NULL;
}

/* In a process of its own, which is stopped meanwhile. */
static int meet_late(int64_t deadline_ms)
{
    pthread_t thread;
    td_comm_group *group = open_group(2, 0, deadline_ms);
    rank_arg a = {td_comm_group_rank(group, 1), 1, 2, 0, TD_OK};
    if (pthread_create(&thread, NULL, late_main, &a) != 0)
        return 2;
    td_status st = td_comm_barrier(td_comm_group_rank(group, 0));
    pthread_join(thread, NULL);
    td_comm_group_destroy(group);
    return st == TD_OK && a.st == TD_OK ? 0 : 1;
}

TEST(time_in_which_the_process_was_stopped_does_not_count)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(meet_late(1500));
    TD_TRUE(pid > 0);
    td_sleep_ms(60);
    TD_EQ(0, kill(pid, SIGSTOP));
    td_sleep_ms(2500);
    TD_EQ(0, kill(pid, SIGCONT));
    TD_EQ(pid, waitpid(pid, &status, 0));
    TD_EQ(0, status);
}

static void *size_main(void *arg)
{
    rank_arg *a = arg;
    unsigned char send[16] = {0}, recv[64];
    a->st = td_comm_all_gather(a->comm, send, 8 + a->rank, recv, NULL);
    return NULL;
}

TEST(ranks_that_disagree_about_sizes_fail_and_copy_nothing)
{
    rank_arg args[MAX_RANKS];
    run_ranks(3, 0, 1, size_main, args);
    for (uint32_t r = 0; r < 3; r++)
        TD_TRUE(args[r].st == TD_INTERNAL || args[r].st == TD_CANCELLED);
}

TEST(create_refuses_nonsense_and_survives_every_failed_allocation)
{
    td_comm_group *group = NULL;
    TD_EQ(TD_INVALID, td_comm_group_create(0, 0, 1, &group, NULL));
    TD_EQ(TD_INVALID, td_comm_group_create(2, 0, 0, &group, NULL));
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_comm_group_create(4, 0, 1000, &group, NULL),
                        td_comm_group_destroy(group));
    td_comm_group_destroy(NULL);
}

TEST(a_rank_knows_its_place)
{
    td_comm_group *group = open_group(3, 0, 1000);
    for (uint32_t r = 0; r < 3; r++) {
        TD_EQ(r, td_comm_rank(td_comm_group_rank(group, r)));
        TD_EQ(3, td_comm_n_ranks(td_comm_group_rank(group, r)));
    }
    td_comm_group_destroy(group);
}
