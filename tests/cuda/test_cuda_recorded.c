/* Collectives in recorded steps, between ranks on two GPUs: launched thousands of times they stay
 * in step and bring the bytes of their own turn, mixed with steps of another shape and with
 * collectives that are not recorded, however late a rank is; and no wait without an end. */
#include "common/base/clock.h"
#include "tests/cuda/rank_threads.h"

TD_TEST_MAIN

#define N 2 /* ranks, a GPU each */
#define TURNS 3000
#define SYNC_EVERY 64 /* launches */
#define BYTES 4100    /* that a rank brings to the gather of a turn */
#define FLOATS 1003   /* of a rank's share of the sum */
#define CAP 5         /* rows for a rank, of ROW bytes */
#define ROW 64
#define ROWS_BYTES ((size_t)N * CAP * ROW)

static td_comm_group *open_group(uint32_t step, int64_t deadline_ms)
{
    td_comm_group *group = NULL;
    td_err err = {0};
    td_status st = ct_make_group(N, TD_COMM_PEER, 0, step, deadline_ms, &group, &err);
    if (st < 0)
        printf("%s\n", err.text);
    TD_EQ(TD_OK, st);
    return group;
}

typedef td_status (*step_fn)(ct_rank *a, void *arg);

/* Once as it is, so that all code is on the GPU, then recorded. */
static td_graph *record(ct_rank *a, step_fn step, void *arg)
{
    td_graph *graph = NULL;
    size_t n_nodes = 0;
    TD_EQ(TD_OK, step(a, arg));
    ct_sync(&a->gpu);
    TD_EQ(TD_OK, td_graph_begin(a->gpu.stream, NULL));
    TD_EQ(TD_OK, step(a, arg));
    TD_EQ(TD_OK, td_graph_end(a->gpu.stream, &graph, &n_nodes, NULL));
    TD_TRUE(n_nodes > 0);
    ct_sync(&a->gpu);
    TD_EQ(TD_OK, td_comm_barrier(a->comm));
    return graph;
}

/* ---- thousands of turns ---- */

typedef struct { /* device memory of a rank */
    char *bytes, *sent, *gathered;
    float *floats, *sent_floats, *sum;
    char *rows, *sent_rows, *got_rows;
    int32_t *counts, *sent_counts, *got_counts;
} buffers;

/* All three collectives; what was sent is overwritten at once. */
static td_status all_three(ct_rank *a, void *arg)
{
    const buffers *b = arg;
    td_stream *s = a->gpu.stream;
    const size_t n_floats = N * FLOATS * sizeof(float), n_counts = N * sizeof(int32_t);
    td_status st = td_stream_copy(s, b->sent, b->bytes, BYTES);
    if (st == TD_OK)
        st = td_comm_all_gather(a->comm, b->sent, BYTES, b->gathered, s);
    TD_EQ(TD_OK, td_stream_fill(s, b->sent, 0xee, BYTES));
    TD_EQ(TD_OK, td_stream_copy(s, b->sent_floats, b->floats, n_floats));
    if (st == TD_OK)
        st = td_comm_reduce_scatter_f32(a->comm, b->sent_floats, FLOATS, b->sum, s);
    TD_EQ(TD_OK, td_stream_fill(s, b->sent_floats, 0xee, n_floats));
    TD_EQ(TD_OK, td_stream_copy(s, b->sent_rows, b->rows, ROWS_BYTES));
    TD_EQ(TD_OK, td_stream_copy(s, b->sent_counts, b->counts, n_counts));
    if (st == TD_OK)
        st = td_comm_all_to_all_rows(a->comm, b->sent_rows, b->sent_counts, CAP, ROW, b->got_rows,
                                     b->got_counts, s);
    TD_EQ(TD_OK, td_stream_fill(s, b->sent_rows, 0xee, ROWS_BYTES));
    TD_EQ(TD_OK, td_stream_fill(s, b->sent_counts, 0xee, n_counts));
    return st;
}

static td_status gather_alone(ct_rank *a, void *arg)
{
    const buffers *b = arg;
    return td_comm_all_gather(a->comm, b->bytes, BYTES, b->gathered, a->gpu.stream);
}

static float number(uint32_t rank, int turn, size_t i)
{
    return (float)((rank * 7 + (uint32_t)turn * 3 + i) % 1000) + 0.25f * (float)rank;
}

static int32_t count(uint32_t from, uint32_t to, int turn)
{
    return (int32_t)((from * 2 + to + (uint32_t)turn) % (CAP + 1));
}

typedef struct { /* what a rank brings in every turn and what it gets, on the device and here */
    char *bytes, *gathered;
    float *floats, *sum;
    char *rows, *got_rows;
    int32_t *counts, *got_counts;
} history;

#define HISTORY_MAP(X)                                                                             \
    X(bytes, (size_t)BYTES)                                                                        \
    X(gathered, (size_t)N *BYTES)                                                                  \
    X(floats, N *FLOATS * sizeof(float))                                                           \
    X(sum, FLOATS * sizeof(float))                                                                 \
    X(rows, ROWS_BYTES)                                                                            \
    X(got_rows, ROWS_BYTES)                                                                        \
    X(counts, N * sizeof(int32_t))                                                                 \
    X(got_counts, N * sizeof(int32_t))

static history make_up(uint32_t rank)
{
    history h;
#define NEW(name, n_bytes) h.name = calloc(TURNS, n_bytes);
    HISTORY_MAP(NEW)
#undef NEW
    for (int t = 0; t < TURNS; t++) {
        for (size_t k = 0; k < BYTES; k++)
            h.bytes[(size_t)t * BYTES + k] = (char)ct_byte(rank, k, t);
        for (size_t k = 0; k < (size_t)N * FLOATS; k++)
            h.floats[(size_t)t * N * FLOATS + k] = number(rank, t, k);
        for (size_t k = 0; k < ROWS_BYTES; k++)
            h.rows[(size_t)t * ROWS_BYTES + k] = (char)ct_byte(rank + 5, k, t);
        for (uint32_t r = 0; r < N; r++)
            h.counts[t * N + (int)r] = count(rank, r, t);
    }
    return h;
}

static void check_turn(uint32_t rank, const history *h, int t)
{
    for (uint32_t r = 0; r < N; r++) {
        const char *gathered = h->gathered + ((size_t)t * N + r) * BYTES;
        for (size_t k = 0; k < BYTES; k++)
            if (gathered[k] != (char)ct_byte(r, k, t)) {
                printf("turn %d: rank %u has byte %zu of rank %u wrong\n", t, rank, k, r);
                TD_TRUE(0);
            }
        const size_t n = (size_t)count(r, rank, t) * ROW;
        TD_EQ(count(r, rank, t), h->got_counts[t * N + (int)r]);
        const char *rows = h->got_rows + (size_t)t * ROWS_BYTES + (size_t)r * CAP * ROW;
        for (size_t k = 0; k < n; k++)
            TD_TRUE(rows[k] == (char)ct_byte(r + 5, (size_t)rank * CAP * ROW + k, t));
    }
    for (size_t k = 0; k < FLOATS; k++) {
        float want = 0;
        for (uint32_t r = 0; r < N; r++)
            want += number(r, t, rank * FLOATS + k);
        TD_TRUE(h->sum[(size_t)t * FLOATS + k] == want);
    }
}

/* Every seventh turn's gather comes from a step of another shape, every eleventh turn's is not
 * recorded; both bring what the recorded step would have. */
static void turn(ct_rank *a, const buffers *b, td_graph *all, td_graph *gather, int t)
{
    TD_EQ(TD_OK, td_graph_launch(all, a->gpu.stream));
    if (t % 7 == 3) {
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, b->gathered, 0x55, (size_t)N * BYTES));
        TD_EQ(TD_OK, td_graph_launch(gather, a->gpu.stream));
    }
    if (t % 11 == 5) {
        TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, b->gathered, 0x66, (size_t)N * BYTES));
        TD_EQ(TD_OK, td_comm_all_gather(a->comm, b->bytes, BYTES, b->gathered, a->gpu.stream));
    }
}

static void thousands_main(ct_rank *a)
{
    history host = make_up(a->rank), dev;
    buffers b;
    td_stream *s = a->gpu.stream;
    void *slow = ct_alloc(&a->gpu, CT_SLOW_BYTES);
#define UP(name, n_bytes)                                                                          \
    dev.name = ct_up(&a->gpu, host.name, TURNS * (n_bytes));                                       \
    b.name = ct_alloc(&a->gpu, n_bytes);
    HISTORY_MAP(UP)
#undef UP
    b.sent = ct_alloc(&a->gpu, BYTES);
    b.sent_floats = ct_alloc(&a->gpu, N * FLOATS * sizeof(float));
    b.sent_rows = ct_alloc(&a->gpu, ROWS_BYTES);
    b.sent_counts = ct_alloc(&a->gpu, N * sizeof(int32_t));
    td_graph *all = record(a, all_three, &b), *gather = record(a, gather_alone, &b);
    for (int t = 0; t < TURNS; t++) {
        if (t % 100 < N)
            ct_be_late(a, slow, t);
        if (t % 100 == 50 && (uint32_t)(t / 100) % N == a->rank)
            td_sleep_ms(3);
#define IN(name, n_bytes)                                                                          \
    TD_EQ(TD_OK, td_stream_copy(s, b.name, (char *)dev.name + (size_t)t * (n_bytes), n_bytes));
        HISTORY_MAP(IN)
#undef IN
        turn(a, &b, all, gather, t);
#define OUT(name, n_bytes)                                                                         \
    TD_EQ(TD_OK, td_stream_copy(s, (char *)dev.name + (size_t)t * (n_bytes), b.name, n_bytes));
        HISTORY_MAP(OUT)
#undef OUT
        if (t % SYNC_EVERY == 0)
            ct_sync(&a->gpu);
    }
#define DOWN(name, n_bytes) ct_down(&a->gpu, host.name, dev.name, TURNS *(n_bytes));
    HISTORY_MAP(DOWN)
#undef DOWN
    for (int t = 0; t < TURNS; t++)
        check_turn(a->rank, &host, t);
    td_graph_destroy(all, s);
    td_graph_destroy(gather, s);
#define FREE(name, n_bytes) free(host.name);
    HISTORY_MAP(FREE)
#undef FREE
}

TEST(thousands_of_launches_stay_in_step_and_bring_their_own_turns_bytes)
{
    ct_need_gpus(N);
    ct_rank args[N];
    td_comm_group *group = open_group(1, 20000);
    TD_TRUE(td_comm_unrecordable(td_comm_group_rank(group, 0)) == NULL);
    ct_run_in(group, N, 1, thousands_main, args);
    td_comm_group_destroy(group);
}

/* ---- no wait without an end ---- */

static td_status small_gather(ct_rank *a, void *arg)
{
    char *memory = arg; /* [1 + N, 64] */
    return td_comm_all_gather(a->comm, memory, 64, memory + 64, a->gpu.stream);
}

static td_graph *record_small(ct_rank *a)
{
    return record(a, small_gather, ct_alloc(&a->gpu, 64 * (1 + N)));
}

/* Rank 0 launches alone; says how its wait ended. */
static void alone_main(ct_rank *a)
{
    td_graph *graph = record_small(a);
    if (a->rank == 0) {
        a->st = td_graph_launch(graph, a->gpu.stream);
        if (a->st == TD_OK)
            a->st = td_stream_sync(a->gpu.stream, NULL);
        TD_EQ(TD_CANCELLED, td_stream_sync(a->gpu.stream, NULL)); /* it is empty now */
    }
    td_graph_destroy(graph, a->gpu.stream);
}

static void abort_main(ct_rank *a)
{
    if (a->rank == 0) {
        alone_main(a);
        return;
    }
    td_graph *graph = record_small(a);
    td_sleep_ms(50);
    td_comm_abort(a->comm);
    td_graph_destroy(graph, a->gpu.stream);
}

TEST(abort_ends_a_launched_steps_wait_at_once)
{
    ct_need_gpus(N);
    ct_rank args[N];
    td_comm_group *group = open_group(1, 60000);
    int64_t start = td_now_ns();
    ct_run_in(group, N, 1, abort_main, args);
    TD_TRUE(td_now_ns() - start < 30 * TD_NS_PER_S);
    TD_EQ(TD_CANCELLED, args[0].st);
    td_comm_group_destroy(group);
}

TEST(a_rank_that_does_not_launch_ends_the_wait_at_the_deadline_and_the_group)
{
    ct_need_gpus(N);
    ct_rank args[N];
    td_comm_group *group = open_group(1, 300);
    ct_run_in(group, N, 1, alone_main, args);
    TD_EQ(TD_DEADLINE, args[0].st);
    TD_EQ(TD_CANCELLED, td_comm_barrier(td_comm_group_rank(group, 1)));
    td_comm_group_destroy(group);
}

/* Nothing but the GPU is there to end the wait. */
static void unwatched_main(ct_rank *a)
{
    td_graph *graph = record_small(a);
    td_event *end = NULL;
    TD_EQ(TD_OK, td_event_create(a->gpu.device, &end, NULL));
    if (a->rank == 0) {
        const int64_t start = td_now_ns();
        TD_EQ(TD_OK, td_graph_launch(graph, a->gpu.stream));
        TD_EQ(TD_OK, td_event_record(end, a->gpu.stream));
        while ((a->st = td_event_poll(end, a->gpu.stream)) == TD_PENDING &&
               td_now_ns() - start < 30 * TD_NS_PER_S)
            td_sleep_ms(5);
        printf("  a wait with a deadline of 200 ms that nobody looks at ended after %lld ms\n",
               (long long)((td_now_ns() - start) / TD_NS_PER_MS));
        TD_EQ(TD_OK, a->st);
        a->st = td_stream_sync(a->gpu.stream, NULL);
    }
    td_event_destroy(a->gpu.device, end);
    td_graph_destroy(graph, a->gpu.stream);
}

TEST(a_wait_that_no_thread_looks_at_ends_by_itself)
{
    ct_need_gpus(N);
    ct_rank args[N];
    td_comm_group *group = open_group(1, 200);
    ct_run_in(group, N, 1, unwatched_main, args);
    TD_EQ(TD_DEADLINE, args[0].st);
    td_comm_group_destroy(group);
}

/* ---- refusals ---- */

/* Rank 0 records; rank 1 does, too, if `both`, and brings other bytes if not. */
static void record_odd(ct_rank *a, int both, size_t n_bytes)
{
    char *memory = ct_alloc(&a->gpu, 64 * (1 + N));
    td_graph *graph = NULL;
    size_t n_nodes = 0;
    const int records = both || a->rank == 0;
    if (records)
        TD_EQ(TD_OK, td_graph_begin(a->gpu.stream, NULL));
    a->st = td_comm_all_gather(a->comm, memory, n_bytes, memory + 64, a->gpu.stream);
    if (records)
        td_graph_end(a->gpu.stream, &graph, &n_nodes, NULL);
    td_graph_destroy(graph, a->gpu.stream);
}

static void sizes_main(ct_rank *a)
{
    record_odd(a, 1, 8 + a->rank);
}

static void one_records_main(ct_rank *a)
{
    record_odd(a, 0, 8);
}

static void refused(uint32_t step, ct_rank_main fn, td_status why)
{
    ct_rank args[N];
    td_comm_group *group = open_group(step, 20000);
    int n = 0;
    ct_run_in(group, N, step, fn, args);
    for (int r = 0; r < N; r++) {
        TD_TRUE(args[r].st == why || args[r].st == TD_CANCELLED);
        n += args[r].st == why;
    }
    TD_TRUE(n > 0);
    td_comm_group_destroy(group);
}

TEST(ranks_that_disagree_while_they_record_fail)
{
    ct_need_gpus(N);
    refused(1, sizes_main, TD_INTERNAL);
    refused(1, one_records_main, TD_INTERNAL);
}

static void same_main(ct_rank *a)
{
    record_odd(a, 1, 8);
}

TEST(ranks_on_one_gpu_say_why_they_do_not_record_and_refuse_to)
{
    ct_need_gpus(1);
    td_comm_group *group = open_group(0, 20000);
    TD_STR("ranks share a GPU", td_comm_unrecordable(td_comm_group_rank(group, 0)));
    td_comm_group_destroy(group);
    refused(0, same_main, TD_UNSUPPORTED);
}
