/* Collectives between ranks on one GPU, each with a stream of its own: right, in rank order,
 * ordered against what stands before and after them on every rank's stream, and no wait without an
 * end. */
#include "common/base/clock.h"
#include "tests/common/base/td_hard.h"
#include "tests/cuda/rank_threads.h"

TD_TEST_MAIN

#define DEADLINE_MS 20000

static void run_ranks(uint32_t n, td_comm_form form, ct_rank_main fn)
{
    ct_rank args[CT_MAX_RANKS];
    td_comm_group *group = NULL;
    td_err err = {0};
    td_status st = ct_make_group(n, form, 0, 0, DEADLINE_MS, &group, &err);
    if (st == TD_UNSUPPORTED && form == TD_COMM_NCCL)
        td_skip(err.text);
    if (st < 0)
        printf("%s\n", err.text);
    TD_EQ(TD_OK, st);
    TD_STR(form == TD_COMM_NCCL ? "nccl" : "peer", td_comm_group_form(group));
    ct_run_in(group, n, 0, fn, args);
    for (uint32_t r = 0; r < n; r++)
        TD_EQ(TD_OK, args[r].st);
    td_comm_group_destroy(group);
}

#define ROUNDS 12

static size_t round_bytes(int round)
{
    static const size_t sizes[] = {0, 1, 7, 16, 200, 4096, 4097, 100000, 1 << 20, 48, 12, 65536};
    return sizes[round % 12];
}

/* All rounds are enqueued before anything is looked at; what was sent is overwritten at once. */
static void gather_main(ct_rank *a)
{
    void *recv[ROUNDS], *slow = ct_alloc(&a->gpu, CT_SLOW_BYTES);
    void *late = ct_alloc(&a->gpu, 1 << 20);
    for (int i = 0; i < ROUNDS && a->st == TD_OK; i++) {
        size_t n = round_bytes(i);
        unsigned char *host = malloc(n + 1);
        for (size_t k = 0; k < n; k++)
            host[k] = ct_byte(a->rank, k, i);
        void *mine = ct_up(&a->gpu, host, n + 1);
        recv[i] = ct_alloc(&a->gpu, n * a->n);
        ct_be_late(a, slow, i);
        TD_EQ(TD_OK, td_stream_copy(a->gpu.stream, late, mine, n));
        a->st = td_comm_all_gather(a->comm, late, n, recv[i], a->gpu.stream);
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, late, 0xee, 1 << 20));
        free(host);
    }
    for (int i = 0; i < ROUNDS && a->st == TD_OK; i++) {
        size_t n = round_bytes(i);
        unsigned char *got = malloc(n * a->n + 1);
        ct_down(&a->gpu, got, recv[i], n * a->n);
        for (uint32_t r = 0; r < a->n; r++)
            for (size_t k = 0; k < n; k++)
                if (got[r * n + k] != ct_byte(r, k, i)) {
                    printf("round %d: rank %u has byte %zu of rank %u wrong\n", i, a->rank, k, r);
                    TD_TRUE(0);
                }
        free(got);
    }
}

TEST(all_gather_brings_every_block_to_every_rank_however_late_it_is)
{
    ct_need_gpus(1);
    for (uint32_t n = 1; n <= CT_MAX_RANKS; n++)
        run_ranks(n, TD_COMM_PEER, gather_main);
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

static void sum_main(ct_rank *a)
{
    static const size_t sizes[] = {0, 1, 3, 4, 1000, 7168 * 33, 5003};
    void *slow = ct_alloc(&a->gpu, CT_SLOW_BYTES);
    for (int i = 0; i < 7 && a->st == TD_OK; i++) {
        size_t n = sizes[i], all = n * a->n;
        float *send = calloc(all + 1, sizeof(float)), *got = calloc(n + 1, sizeof(float));
        for (size_t k = 0; k < all; k++)
            send[k] = element(a->rank, k);
        void *mine = ct_up(&a->gpu, send, (all + 1) * sizeof(float));
        float *late = ct_alloc(&a->gpu, (all + 1) * sizeof(float));
        float *recv = ct_alloc(&a->gpu, (n + 1) * sizeof(float));
        ct_be_late(a, slow, i);
        TD_EQ(TD_OK, td_stream_copy(a->gpu.stream, late, mine, all * sizeof(float)));
        a->st = td_comm_reduce_scatter_f32(a->comm, late, n, recv, a->gpu.stream);
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, late, 0xee, all * sizeof(float)));
        ct_down(&a->gpu, got, recv, n * sizeof(float));
        for (size_t k = 0; k < n; k++)
            if (got[k] != sum_of(a->n, a->rank * n + k)) {
                printf("rank %u of %u: element %zu of %zu is %.9g\n", a->rank, a->n, k, n,
                       (double)got[k]);
                TD_TRUE(0);
            }
        free(send);
        free(got);
    }
}

TEST(sums_run_in_rank_order_to_the_bit)
{
    ct_need_gpus(1);
    for (uint32_t n = 1; n <= CT_MAX_RANKS; n++)
        run_ranks(n, TD_COMM_PEER, sum_main);
}

/* Rank a sends (a + b + round) % (cap + 1) rows to rank b, which sends them back. */
static void there_and_back_main(ct_rank *a)
{
    enum { CAP = 37 };
    static const size_t widths[] = {4, 12, 64, 516, 28672};
    void *slow = ct_alloc(&a->gpu, CT_SLOW_BYTES);
    for (int i = 0; i < 5 && a->st == TD_OK; i++) {
        size_t row = widths[i], block = CAP * row, all = block * a->n;
        int32_t counts[CT_MAX_RANKS], got_counts[CT_MAX_RANKS], back_counts[CT_MAX_RANKS];
        unsigned char *host = malloc(all), *got = malloc(all), *back = malloc(all);
        for (uint32_t r = 0; r < a->n; r++) {
            counts[r] = (int32_t)((a->rank * 5 + r + (uint32_t)i) % (CAP + 1));
            for (size_t k = 0; k < block; k++)
                host[r * block + k] = ct_byte(a->rank * 16 + r, k, i);
        }
        void *mine = ct_up(&a->gpu, host, all), *send = ct_alloc(&a->gpu, all);
        void *recv = ct_alloc(&a->gpu, all), *home = ct_alloc(&a->gpu, all);
        int32_t *n_mine = ct_up(&a->gpu, counts, sizeof(counts));
        int32_t *n_send = ct_alloc(&a->gpu, sizeof(counts));
        int32_t *n_recv = ct_alloc(&a->gpu, sizeof(counts));
        int32_t *n_back = ct_alloc(&a->gpu, sizeof(counts));
        ct_be_late(a, slow, i);
        TD_EQ(TD_OK, td_stream_copy(a->gpu.stream, send, mine, all));
        TD_EQ(TD_OK, td_stream_copy(a->gpu.stream, n_send, n_mine, sizeof(counts)));
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, recv, 0xee, all));
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, home, 0xdd, all));
        a->st =
            td_comm_all_to_all_rows(a->comm, send, n_send, CAP, row, recv, n_recv, a->gpu.stream);
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, send, 0x77, all));
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, n_send, 0, sizeof(counts)));
        if (a->st == TD_OK)
            a->st = td_comm_all_to_all_rows(a->comm, recv, n_recv, CAP, row, home, n_back,
                                            a->gpu.stream);
        ct_down(&a->gpu, got, recv, all);
        ct_down(&a->gpu, back, home, all);
        ct_down(&a->gpu, got_counts, n_recv, a->n * sizeof(int32_t));
        ct_down(&a->gpu, back_counts, n_back, a->n * sizeof(int32_t));
        for (uint32_t r = 0; r < a->n && a->st == TD_OK; r++) {
            size_t in = (r * 5 + a->rank + (uint32_t)i) % (CAP + 1);
            TD_EQ(in, got_counts[r]);
            TD_EQ(counts[r], back_counts[r]);
            for (size_t k = 0; k < block; k++) {
                unsigned char want =
                    k < in * row ? ct_byte(r * 16 + a->rank, k, i) : (unsigned char)0xee;
                unsigned char want_back = k < (size_t)counts[r] * row
                                              ? ct_byte(a->rank * 16 + r, k, i)
                                              : (unsigned char)0xdd;
                TD_TRUE(got[r * block + k] == want && back[r * block + k] == want_back);
            }
        }
        free(host);
        free(got);
        free(back);
    }
}

TEST(all_to_all_moves_rows_counted_on_the_device_and_nothing_else)
{
    ct_need_gpus(1);
    for (uint32_t n = 1; n <= CT_MAX_RANKS; n++)
        run_ranks(n, TD_COMM_PEER, there_and_back_main);
}

static void many_main(ct_rank *a)
{
    enum { N = 3000 };
    uint64_t *turns = malloc(N * sizeof(*turns)), all[CT_MAX_RANKS];
    for (uint64_t i = 0; i < N; i++)
        turns[i] = i * 1000 + a->rank;
    uint64_t *mine = ct_up(&a->gpu, turns, N * sizeof(*turns));
    uint64_t *recv = ct_alloc(&a->gpu, N * sizeof(all));
    for (int i = 0; i < N && a->st == TD_OK; i++) {
        a->st = td_comm_all_gather(a->comm, mine + i, sizeof(*mine), recv + i * CT_MAX_RANKS,
                                   a->gpu.stream);
        if (a->st == TD_OK && i % 7 == 0)
            a->st = td_comm_barrier(a->comm);
    }
    for (int i = 0; i < N && a->st == TD_OK; i += 97) {
        ct_down(&a->gpu, all, recv + i * CT_MAX_RANKS, a->n * sizeof(*all));
        for (uint32_t r = 0; r < a->n; r++)
            TD_EQ(i * 1000 + (int)r, all[r]);
    }
    free(turns);
}

TEST(thousands_of_collectives_in_a_row_stay_in_step)
{
    ct_need_gpus(1);
    run_ranks(3, TD_COMM_PEER, many_main);
}

/* A count that no block has room for. */
static void bad_count_main(ct_rank *a)
{
    int32_t counts[2] = {1, a->rank == 0 ? 9 : 2};
    void *send = ct_alloc(&a->gpu, 2 * 4 * 8), *recv = ct_alloc(&a->gpu, 2 * 4 * 8);
    int32_t *n_send = ct_up(&a->gpu, counts, sizeof(counts));
    int32_t *n_recv = ct_alloc(&a->gpu, sizeof(counts));
    for (int i = 0; i < 2 && a->st == TD_OK; i++) {
        a->st = td_comm_all_to_all_rows(a->comm, send, n_send, 4, 8, recv, n_recv, a->gpu.stream);
        td_stream_sync(a->gpu.stream, NULL);
    }
}

TEST(a_count_out_of_bounds_moves_no_more_than_fits_and_a_later_call_says_so)
{
    ct_need_gpus(1);
    ct_rank args[CT_MAX_RANKS];
    td_comm_group *group = NULL;
    TD_EQ(TD_OK, ct_make_group(2, TD_COMM_PEER, 0, 0, DEADLINE_MS, &group, NULL));
    ct_run_in(group, 2, 0, bad_count_main, args);
    int told = 0;
    for (int r = 0; r < 2; r++) {
        TD_TRUE(args[r].st == TD_INTERNAL || args[r].st == TD_CANCELLED);
        told += args[r].st == TD_INTERNAL;
    }
    TD_TRUE(told > 0);
    td_comm_group_destroy(group);
}

static void size_main(ct_rank *a)
{
    void *send = ct_alloc(&a->gpu, 64), *recv = ct_alloc(&a->gpu, 256);
    a->st = td_comm_all_gather(a->comm, send, 8 + a->rank, recv, a->gpu.stream);
}

TEST(ranks_that_disagree_about_sizes_fail)
{
    ct_need_gpus(1);
    ct_rank args[CT_MAX_RANKS];
    td_comm_group *group = NULL;
    TD_EQ(TD_OK, ct_make_group(3, TD_COMM_PEER, 0, 0, DEADLINE_MS, &group, NULL));
    ct_run_in(group, 3, 0, size_main, args);
    for (int r = 0; r < 3; r++)
        TD_TRUE(args[r].st == TD_INTERNAL || args[r].st == TD_CANCELLED);
    td_comm_group_destroy(group);
}

/* Rank 0 comes alone. */
static void alone_main(ct_rank *a)
{
    void *send = ct_alloc(&a->gpu, 64), *recv = ct_alloc(&a->gpu, 256);
    if (a->rank == 0)
        a->st = td_comm_all_gather(a->comm, send, 8, recv, a->gpu.stream);
}

TEST(a_rank_that_never_comes_ends_the_wait_at_the_deadline_and_the_group)
{
    ct_need_gpus(1);
    ct_rank args[CT_MAX_RANKS];
    td_comm_group *group = NULL;
    TD_EQ(TD_OK, ct_make_group(2, TD_COMM_PEER, 0, 0, 100, &group, NULL));
    ct_run_in(group, 2, 0, alone_main, args);
    TD_EQ(TD_DEADLINE, args[0].st);
    TD_EQ(TD_CANCELLED, td_comm_barrier(td_comm_group_rank(group, 1)));
    td_comm_group_destroy(group);
}

static void abort_main(ct_rank *a)
{
    if (a->rank == 0) {
        alone_main(a);
        return;
    }
    td_sleep_ms(30);
    td_comm_abort(a->comm);
}

TEST(abort_ends_a_wait_at_once)
{
    ct_need_gpus(1);
    ct_rank args[CT_MAX_RANKS];
    td_comm_group *group = NULL;
    TD_EQ(TD_OK, ct_make_group(2, TD_COMM_PEER, 0, 0, 60000, &group, NULL));
    int64_t start = td_now_ns();
    ct_run_in(group, 2, 0, abort_main, args);
    TD_TRUE(td_now_ns() - start < 30 * TD_NS_PER_S);
    TD_EQ(TD_CANCELLED, args[0].st);
    td_comm_group_destroy(group);
}

TEST(groups_that_cannot_be_are_refused_by_name)
{
    ct_need_gpus(1);
    td_comm_group *group = NULL;
    td_err err = {0};
    TD_EQ(TD_INVALID, ct_make_group(0, TD_COMM_PEER, 0, 0, 100, &group, &err));
    TD_EQ(TD_INVALID, ct_make_group(2, TD_COMM_PEER, 0, 0, 0, &group, &err));
    TD_EQ(TD_UNSUPPORTED, ct_make_group(2, TD_COMM_PEER, 0, 63, 100, &group, &err));
    TD_TRUE(strstr(err.text, "GPU 63 was asked for") != NULL);
    TD_EQ(TD_UNSUPPORTED, ct_make_group(2, TD_COMM_NCCL, 0, 0, 100, &group, &err));
    TD_TRUE(strstr(err.text, "both on GPU 0") != NULL || strstr(err.text, "without NCCL") != NULL);
}

static void all_kinds_main(ct_rank *a)
{
    gather_main(a);
    ct_clear(&a->gpu);
    sum_main(a);
    ct_clear(&a->gpu);
    there_and_back_main(a);
}

TEST(nccl_with_one_rank_does_the_same)
{
    ct_need_gpus(1);
    run_ranks(1, TD_COMM_NCCL, all_kinds_main);
}
