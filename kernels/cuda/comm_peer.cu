/* comm_peer.cu - collectives of ranks that reach each other's device memory: on one GPU, or on
 * several with peer access. A collective is: record that my bytes are ready, meet on the host and
 * exchange pointers, let my stream wait for the peers' events, one kernel that reads their memory,
 * record that I am done, meet again, let my stream wait until the peers are done with my memory.
 * The host only meets, it waits for no device; an event is recorded before anybody's stream waits
 * for it, so streams that share a hardware queue cannot block each other.
 * In a step that is being recorded, streams cannot wait for each other's events: there the ranks
 * meet on the host as well, so the pointers of the recorded step are known, but the streams meet in
 * a kernel (comm_meet.cu), which waits for the others'. Only ranks with a GPU each do that: on one
 * GPU nothing promises that the rank that is waited for gets to run. */
#include "kernels/cuda/comm.cuh"

#include <cstdlib>
extern "C" {
#include "common/base/clock.h"
}

/* The deadline is the host's, which does not count time in which the process was stopped. Should no
 * thread look at the stream, a wait on the GPU ends by itself, later. */
#define LIMIT_DEADLINES 10

typedef struct { /* what a rank shows the others in a collective */
    const void *send;
    const int32_t *counts;
    size_t size; /* must be equal on all ranks, as must be: */
    int recording;
} peer_offer;

typedef struct { /* td_comm_head first */
    td_comm_head head;
    td_comm *host;
    cudaEvent_t ready, done;
    int recording; /* in the running collective, which is part of a recorded step */
    td_comm_meeting meeting;
} peer_rank;

typedef struct { /* td_cuda_comm first */
    td_cuda_comm c;
    peer_offer offers[TD_CUDA_COMM_MAX_RANKS]; /* written before the first meeting, read until the
                                                  second */
    peer_rank ranks[TD_CUDA_COMM_MAX_RANKS];
    int shared; /* ranks share a GPU */
} peer_group;

static peer_group *group_of(td_comm_group *group)
{
    return reinterpret_cast<peer_group *>(group);
}

static peer_rank *rank_of(td_comm *comm)
{
    return reinterpret_cast<peer_rank *>(comm);
}

static void destroy(td_comm_group *group)
{
    peer_group *g = group_of(group);
    for (uint32_t r = 0; r < g->c.head.n_ranks; r++) {
        cudaSetDevice(g->c.gpus[r]);
        if (g->ranks[r].ready != NULL)
            cudaEventDestroy(g->ranks[r].ready);
        if (g->ranks[r].done != NULL)
            cudaEventDestroy(g->ranks[r].done);
        cudaFree(g->ranks[r].meeting.turns[r]);
    }
    td_cuda_comm_fini(&g->c);
    free(g);
}

static void abort_group(td_comm_group *group)
{
    td_cuda_comm *c = &group_of(group)->c;
    td_cuda_guard_end(c->guard);
    *(volatile int *)c->stop = TD_CUDA_STOP_DEAD; /* ends what kernels wait for, on all ranks */
    td_comm_group_abort(c->host);
}

static void give_up(void *rank)
{
    abort_group(static_cast<peer_rank *>(rank)->head.group);
}

static td_status ended(peer_rank *me, td_status st)
{
    if (st < 0)
        abort_group(me->head.group);
    return st;
}

static td_comm *get_rank(td_comm_group *group, uint32_t rank)
{
    return reinterpret_cast<td_comm *>(&group_of(group)->ranks[rank]);
}

static td_status barrier(td_comm *comm)
{
    peer_rank *me = rank_of(comm);
    const td_status st = td_cuda_comm_check(&group_of(me->head.group)->c);
    return ended(me, st == TD_OK ? td_comm_barrier(me->host) : st);
}

/* Everybody's event to everybody else's stream: record mine, meet, wait for the others'. In a
 * recorded step the streams meet by themselves. */
static td_status order(peer_rank *me, cudaEvent_t peer_rank::*event, td_stream *s)
{
    peer_group *g = group_of(me->head.group);
    td_status st = me->recording
                       ? td_comm_meet_launch(&me->meeting, s)
                       : td_cuda_keep(s, "an event", cudaEventRecord(me->*event, s->stream));
    if (st == TD_OK)
        st = td_comm_barrier(me->host);
    for (uint32_t r = 0; r < g->c.head.n_ranks && st == TD_OK; r++)
        if (r != me->head.rank && !me->recording)
            st = td_cuda_keep(s, "waiting for a peer",
                              cudaStreamWaitEvent(s->stream, g->ranks[r].*event, 0));
    return st;
}

/* The offers of all ranks, whose bytes the stream has from here on. */
static td_status begin(peer_rank *me, peer_offer mine, td_stream *s, const peer_offer **all)
{
    peer_group *g = group_of(me->head.group);
    peer_offer *offers = g->offers;
    td_status st = td_cuda_comm_check(&g->c);
    if (st < 0)
        return st;
    td_cuda_guard_set(s, g->c.guard, me);
    st = td_cuda_recording(s, &me->recording);
    if (st == TD_OK && me->recording && g->shared)
        st = TD_UNSUPPORTED;
    if (st < 0)
        return st;
    mine.recording = me->recording;
    offers[me->head.rank] = mine;
    st = order(me, &peer_rank::ready, s);
    for (uint32_t r = 0; r < g->c.head.n_ranks && st == TD_OK; r++)
        if (offers[r].size != mine.size || offers[r].recording != mine.recording)
            st = TD_INTERNAL;
    *all = offers;
    return st;
}

/* My memory is mine again from here on. */
static td_status end(peer_rank *me, td_status st, td_stream *s)
{
    if (st == TD_OK)
        st = order(me, &peer_rank::done, s);
    return ended(me, st);
}

static td_status all_gather(td_comm *comm, const void *send, size_t n_bytes, void *recv,
                            td_stream *s)
{
    peer_rank *me = rank_of(comm);
    const uint32_t n = td_comm_n_ranks(comm);
    const peer_offer *all = NULL;
    td_comm_sources from = {};
    td_status st = begin(me, {send, NULL, n_bytes, 0}, s, &all);
    for (uint32_t r = 0; r < n && st == TD_OK; r++)
        from.p[r] = all[r].send;
    if (st == TD_OK)
        st = td_comm_gather_launch(&from, n, n_bytes, recv, s);
    return end(me, st, s);
}

static td_status reduce_scatter_f32(td_comm *comm, const float *send, size_t n, float *recv,
                                    td_stream *s)
{
    peer_rank *me = rank_of(comm);
    const peer_offer *all = NULL;
    td_comm_sources from = {};
    td_status st = begin(me, {send, NULL, n, 0}, s, &all);
    for (uint32_t r = 0; r < td_comm_n_ranks(comm) && st == TD_OK; r++)
        from.p[r] = static_cast<const float *>(all[r].send) + me->head.rank * n;
    if (st == TD_OK)
        st = td_comm_sum_launch(&from, td_comm_n_ranks(comm), n, recv, s);
    return end(me, st, s);
}

static td_status all_to_all_rows(td_comm *comm, const void *send, const int32_t *send_counts,
                                 uint32_t cap_rows, size_t row_bytes, void *recv,
                                 int32_t *recv_counts, td_stream *s)
{
    peer_rank *me = rank_of(comm);
    const peer_offer *all = NULL;
    const size_t block = cap_rows * row_bytes;
    td_comm_rows rows = {{},        {},   td_comm_n_ranks(comm), cap_rows,
                         row_bytes, recv, recv_counts,           group_of(me->head.group)->c.fault};
    td_status st = begin(me, {send, send_counts, block, 0}, s, &all);
    for (uint32_t r = 0; r < rows.n && st == TD_OK; r++) {
        rows.from.p[r] = static_cast<const char *>(all[r].send) + me->head.rank * block;
        rows.counts.p[r] = all[r].counts + me->head.rank;
    }
    if (st == TD_OK)
        st = td_comm_rows_launch(&rows, s);
    return end(me, st, s);
}

static const char *unrecordable(const td_comm_group *group)
{
    return reinterpret_cast<const peer_group *>(group)->shared ? "ranks share a GPU" : NULL;
}

static const td_comm_class peer_class = {"peer",          destroy,    abort_group,
                                         get_rank,        all_gather, reduce_scatter_f32,
                                         all_to_all_rows, barrier,    unrecordable};

/* GPU a's kernels may read GPU b's memory. */
static td_status reach(int a, int b, td_err *err)
{
    int can = 0;
    if (a == b)
        return TD_OK;
    cudaError_t e = cudaDeviceCanAccessPeer(&can, a, b);
    if (e == cudaSuccess && !can)
        return td_fail(err, TD_UNSUPPORTED,
                       "comm peer: GPU %d cannot read the memory of GPU %d: ask for nccl", a, b);
    if (e == cudaSuccess)
        e = cudaSetDevice(a);
    if (e == cudaSuccess)
        e = cudaDeviceEnablePeerAccess(b, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
        e = cudaSuccess;
    }
    return e == cudaSuccess ? TD_OK
                            : td_fail(err, TD_CUDA, "GPU %d: access to the memory of GPU %d: %s", a,
                                      b, cudaGetErrorString(e));
}

/* On the current GPU, which is the rank's own. */
static cudaError_t open_turns(peer_group *g, uint32_t r)
{
    td_comm_turns *turns = NULL;
    cudaError_t e = cudaMalloc((void **)&turns, sizeof(*turns));
    if (e != cudaSuccess)
        return e;
    g->ranks[r].meeting.turns[r] = turns;
    e = cudaMemset(turns, 0, sizeof(*turns));
    if (e == cudaSuccess)
        e = cudaDeviceSynchronize(); /* before a peer can write to them */
    return e == cudaSuccess ? td_comm_meet_load() : e;
}

static td_status open_rank(peer_group *g, uint32_t r, td_err *err)
{
    for (uint32_t other = 0; other < g->c.head.n_ranks; other++) {
        const td_status st = reach(g->c.gpus[r], g->c.gpus[other], err);
        if (st < 0)
            return st;
    }
    peer_rank *me = &g->ranks[r];
    me->head = {reinterpret_cast<td_comm_group *>(g), r};
    me->host = td_comm_group_rank(g->c.host, r);
    cudaError_t e = cudaSetDevice(g->c.gpus[r]);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&me->ready, cudaEventDisableTiming);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&me->done, cudaEventDisableTiming);
    if (e == cudaSuccess && !g->shared)
        e = open_turns(g, r);
    return e == cudaSuccess
               ? TD_OK
               : td_fail(err, TD_CUDA, "GPU %d: events and memory of the collectives: %s",
                         g->c.gpus[r], cudaGetErrorString(e));
}

/* Steps can be recorded: all know where the others' turns are, and streams may wait on the GPU. */
static void open_meetings(peer_group *g, int64_t deadline_ms)
{
    const uint32_t n = g->c.head.n_ranks;
    for (uint32_t r = 0; r < n; r++) {
        td_comm_meeting *m = &g->ranks[r].meeting;
        for (uint32_t other = 0; other < n; other++)
            m->turns[other] = g->ranks[other].meeting.turns[other];
        m->rank = r;
        m->n = n;
        m->stop = g->c.stop;
        m->limit_ns = LIMIT_DEADLINES * static_cast<uint64_t>(deadline_ms) * TD_NS_PER_MS;
    }
    g->c.guard->give_up = give_up;
    g->c.guard->stop = g->c.stop;
}

td_status td_cuda_peer_create(const td_backend_comm_options *o, td_comm_group **out, td_err *err)
{
    peer_group *g = static_cast<peer_group *>(calloc(1, sizeof(*g)));
    if (g == NULL)
        return td_fail(err, TD_NOMEM, "comm: no memory for %u ranks", o->n_ranks);
    g->c.head = {&peer_class, o->n_ranks};
    for (uint32_t a = 0; a < o->n_ranks; a++)
        for (uint32_t b = 0; b < a; b++)
            g->shared |= o->gpus[a] == o->gpus[b];
    td_status st = td_cuda_comm_init(&g->c, o, NULL, err);
    for (uint32_t r = 0; r < o->n_ranks && st == TD_OK; r++)
        st = open_rank(g, r, err);
    if (st == TD_OK && !g->shared)
        open_meetings(g, o->deadline_ms);
    if (st == TD_OK)
        *out = reinterpret_cast<td_comm_group *>(g);
    else
        destroy(reinterpret_cast<td_comm_group *>(g));
    return st;
}
