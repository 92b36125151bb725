/* comm_nccl.cu - collectives through NCCL, for ranks that have a GPU each. libnccl.so.2 is loaded
 * when this form is asked for. Sums are a gather and the own kernel that adds in rank order, not
 * NCCL's reductions, whose order is its own; counted rows travel in blocks for the worst case, and
 * a kernel keeps what the counts say. Sizes of different ranks are not compared: ranks that
 * disagree wait until the deadline. Compiled where nccl.h is found. */
#include "kernels/cuda/comm.cuh"

#if __has_include(<nccl.h>)
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <nccl.h>
#include <sched.h>
extern "C" {
#include "common/base/clock.h"
}

#define LIBRARY "libnccl.so.2"
#define OLDEST NCCL_VERSION(2, 18, 0) /* communicators that do not block; takes a newer config */
#define SETTLE_STEP_NS (50 * TD_NS_PER_MS) /* no time between two looks counts for more */

#define NCCL_MAP(X)                                                                                \
    X(GetVersion)                                                                                  \
    X(GetErrorString)                                                                              \
    X(GetUniqueId)                                                                                 \
    X(CommInitRankConfig)                                                                          \
    X(CommGetAsyncError)                                                                           \
    X(CommAbort)                                                                                   \
    X(GroupStart)                                                                                  \
    X(GroupEnd)                                                                                    \
    X(AllGather)                                                                                   \
    X(Send)                                                                                        \
    X(Recv)

typedef struct { /* functions of the library, names without their prefix */
#define MEMBER(name) decltype(&nccl##name) name;
    NCCL_MAP(MEMBER)
#undef MEMBER
} nccl_api;

typedef struct nccl_group nccl_group;

typedef struct { /* td_comm_head first */
    td_comm_head head;
    nccl_group *group;
    ncclComm_t comm; /* NULL: given up. The rank's own thread only, once the group is open */
} nccl_rank;

struct nccl_group { /* td_cuda_comm first */
    td_cuda_comm c;
    nccl_api api;
    int64_t deadline_ms;
    nccl_rank ranks[TD_CUDA_COMM_MAX_RANKS];
};

static nccl_group *group_of(td_comm_group *group)
{
    return reinterpret_cast<nccl_group *>(group);
}

static nccl_rank *rank_of(td_comm *comm)
{
    return reinterpret_cast<nccl_rank *>(comm);
}

/* Ends what the rank's stream waits for; its own thread, or when all threads have left. */
static void give_up(void *rank)
{
    nccl_rank *me = static_cast<nccl_rank *>(rank);
    if (me->comm != NULL)
        me->group->api.CommAbort(me->comm);
    me->comm = NULL;
}

static void destroy(td_comm_group *group)
{
    nccl_group *g = group_of(group);
    for (uint32_t r = 0; r < g->c.head.n_ranks; r++) {
        cudaSetDevice(g->c.gpus[r]);
        give_up(&g->ranks[r]); /* nothing is under way: frees it without waiting for peers */
    }
    td_cuda_comm_fini(&g->c);
    free(g);
}

static void abort_group(td_comm_group *group)
{
    td_cuda_guard_end(group_of(group)->c.guard); /* every rank's thread gives up its own share */
    td_comm_group_abort(group_of(group)->c.host);
}

static td_comm *get_rank(td_comm_group *group, uint32_t rank)
{
    return reinterpret_cast<td_comm *>(&group_of(group)->ranks[rank]);
}

/* Inside a group NCCL may say that it is still at it. */
static int refused(ncclResult_t r)
{
    return r != ncclSuccess && r != ncclInProgress;
}

/* Until NCCL has enqueued what it was asked for. */
static ncclResult_t settle(const nccl_rank *me, ncclResult_t r, td_status *st)
{
    const int64_t limit_ns = me->group->deadline_ms * TD_NS_PER_MS;
    int64_t waited = 0, last = td_now_ns();
    *st = TD_OK;
    while (r == ncclInProgress) {
        if (td_cuda_guard_dead(me->group->c.guard))
            *st = TD_CANCELLED;
        else if (waited > limit_ns)
            *st = TD_DEADLINE;
        if (*st < 0)
            return r;
        sched_yield();
        const ncclResult_t asked = me->group->api.CommGetAsyncError(me->comm, &r);
        if (asked != ncclSuccess)
            r = asked;
        const int64_t now = td_now_ns(); /* time in which the process was stopped does not count */
        waited += now - last < SETTLE_STEP_NS ? now - last : SETTLE_STEP_NS;
        last = now;
    }
    if (r != ncclSuccess)
        *st = TD_CUDA;
    return r;
}

static td_status begin(nccl_rank *me, td_stream *s)
{
    int recording = 0;
    td_status st = td_cuda_comm_check(&me->group->c);
    td_cuda_guard_set(s, me->group->c.guard, me);
    if (st == TD_OK)
        st = td_cuda_recording(s, &recording);
    if (st == TD_OK && recording)
        return TD_UNSUPPORTED;
    return st == TD_OK && me->comm == NULL ? TD_CANCELLED : st;
}

/* What a collective ends with: r is NCCL's answer, st what failed before. */
static td_status end(nccl_rank *me, td_status st, ncclResult_t r, td_stream *s)
{
    if (st == TD_OK) {
        r = settle(me, r, &st);
        if (st == TD_CUDA && s->error[0] == '\0')
            snprintf(s->error, sizeof(s->error), "NCCL: %s", me->group->api.GetErrorString(r));
    }
    if (st < 0) {
        abort_group(me->head.group);
        give_up(me);
    }
    return st;
}

static td_status barrier(td_comm *comm)
{
    nccl_rank *me = rank_of(comm);
    return end(me, td_comm_barrier(td_comm_group_rank(me->group->c.host, me->head.rank)),
               ncclSuccess, NULL);
}

static td_status all_gather(td_comm *comm, const void *send, size_t n_bytes, void *recv,
                            td_stream *s)
{
    nccl_rank *me = rank_of(comm);
    const td_status st = begin(me, s);
    ncclResult_t r = ncclSuccess;
    if (st == TD_OK && n_bytes > 0)
        r = me->group->api.AllGather(send, recv, n_bytes, ncclUint8, me->comm, s->stream);
    return end(me, st, r, s);
}

/* Block r of send to rank r, everybody's block for me to recv, in rank order; and, unless counts is
 * NULL, one i32 of counts with each. */
static ncclResult_t exchange(nccl_rank *me, const void *send, size_t block_bytes, void *recv,
                             const int32_t *counts, int32_t *recv_counts, td_stream *s)
{
    const nccl_api *api = &me->group->api;
    ncclResult_t first = api->GroupStart();
    for (uint32_t i = 0; i < me->group->c.head.n_ranks && !refused(first); i++) {
        const int peer = (int)i;
        const char *out = static_cast<const char *>(send) + i * block_bytes;
        char *in = static_cast<char *>(recv) + i * block_bytes;
        if (block_bytes > 0)
            first = api->Send(out, block_bytes, ncclUint8, peer, me->comm, s->stream);
        if (block_bytes > 0 && !refused(first))
            first = api->Recv(in, block_bytes, ncclUint8, peer, me->comm, s->stream);
        if (counts != NULL && !refused(first))
            first = api->Send(counts + i, 1, ncclInt32, peer, me->comm, s->stream);
        if (counts != NULL && !refused(first))
            first = api->Recv(recv_counts + i, 1, ncclInt32, peer, me->comm, s->stream);
    }
    const ncclResult_t ended = api->GroupEnd();
    return refused(first) ? first : ended;
}

static td_status reduce_scatter_f32(td_comm *comm, const float *send, size_t n, float *recv,
                                    td_stream *s)
{
    nccl_rank *me = rank_of(comm);
    const uint32_t n_ranks = td_comm_n_ranks(comm);
    td_status st = begin(me, s);
    float *parts = NULL;
    if (st == TD_OK &&
        (parts = static_cast<float *>(td_cuda_scratch(s, n_ranks * n * sizeof(float)))) == NULL)
        st = TD_NOMEM;
    ncclResult_t r = ncclSuccess;
    if (st == TD_OK)
        r = exchange(me, send, n * sizeof(float), parts, NULL, NULL, s);
    st = end(me, st, r, s);
    td_comm_sources from = {};
    for (uint32_t i = 0; i < n_ranks; i++)
        from.p[i] = parts + i * n;
    return st == TD_OK ? td_comm_sum_launch(&from, n_ranks, n, recv, s) : st;
}

static td_status all_to_all_rows(td_comm *comm, const void *send, const int32_t *send_counts,
                                 uint32_t cap_rows, size_t row_bytes, void *recv,
                                 int32_t *recv_counts, td_stream *s)
{
    nccl_rank *me = rank_of(comm);
    const uint32_t n_ranks = td_comm_n_ranks(comm);
    const size_t block = cap_rows * row_bytes, all = (n_ranks * block + 255) / 256 * 256;
    td_status st = begin(me, s);
    char *rows = NULL;
    if (st == TD_OK &&
        (rows = static_cast<char *>(td_cuda_scratch(s, all + n_ranks * sizeof(int32_t)))) == NULL)
        st = TD_NOMEM;
    int32_t *counts = reinterpret_cast<int32_t *>(rows + all);
    ncclResult_t r = ncclSuccess;
    if (st == TD_OK)
        r = exchange(me, send, block, rows, send_counts, counts, s);
    st = end(me, st, r, s);
    td_comm_rows kept = {{},        {},   n_ranks,     cap_rows,
                         row_bytes, recv, recv_counts, me->group->c.fault};
    for (uint32_t i = 0; i < n_ranks; i++) {
        kept.from.p[i] = rows + i * block;
        kept.counts.p[i] = counts + i;
    }
    return st == TD_OK ? td_comm_rows_launch(&kept, s) : st;
}

/* NCCL's collectives can be recorded, but ncclCommAbort() waits until every recorded step that
 * holds some of its communicator is destroyed: a group could not be given up. */
static const char *unrecordable(const td_comm_group *group)
{
    (void)group;
    return "not supported for ranks that meet through NCCL";
}

static const td_comm_class nccl_class = {"nccl",          destroy,    abort_group,
                                         get_rank,        all_gather, reduce_scatter_f32,
                                         all_to_all_rows, barrier,    unrecordable};

static td_status load(nccl_api *api, td_err *err)
{
    int version = 0;
    setenv("NCCL_NVLS_ENABLE", "0", 0); /* multicast needs more of the host than every host has */
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return td_fail(err, TD_UNSUPPORTED, "comm nccl: " LIBRARY " cannot be loaded: %s",
                       dlerror());
#define LOAD(name)                                                                                 \
    api->name = reinterpret_cast<decltype(api->name)>(dlsym(library, "nccl" #name));               \
    if (api->name == NULL)                                                                         \
        return td_fail(err, TD_UNSUPPORTED, "comm nccl: " LIBRARY " has no nccl" #name);
    NCCL_MAP(LOAD)
#undef LOAD
    if (api->GetVersion(&version) != ncclSuccess || version < OLDEST)
        return td_fail(err, TD_UNSUPPORTED,
                       "comm nccl: " LIBRARY " has version code %d, needed is %d or a later one",
                       version, OLDEST);
    return TD_OK;
}

static td_status open_ranks(nccl_group *g, td_err *err)
{
    const uint32_t n = g->c.head.n_ranks;
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    td_status st = TD_OK;
    ncclResult_t r = g->api.GetUniqueId(&id);
    if (r == ncclSuccess && (r = g->api.GroupStart()) == ncclSuccess) {
        for (uint32_t i = 0; i < n && !refused(r); i++) {
            cudaSetDevice(g->c.gpus[i]);
            r = g->api.CommInitRankConfig(&g->ranks[i].comm, (int)n, id, (int)i, &config);
        }
        const ncclResult_t ended = g->api.GroupEnd(); /* in any case: it is this thread's */
        r = refused(r) ? r : ended;
    }
    for (uint32_t i = 0; i < n && st == TD_OK; i++) /* the group's answer is every rank's */
        r = settle(&g->ranks[i], r == ncclSuccess ? ncclInProgress : r, &st);
    return st == TD_OK ? TD_OK
                       : td_fail(err, st, "comm nccl: %u ranks: %s", n, g->api.GetErrorString(r));
}

td_status td_cuda_nccl_create(const td_backend_comm_options *o, td_comm_group **out, td_err *err)
{
    for (uint32_t a = 0; a < o->n_ranks; a++)
        for (uint32_t b = 0; b < a; b++)
            if (o->gpus[a] == o->gpus[b])
                return td_fail(err, TD_UNSUPPORTED,
                               "comm nccl: ranks %u and %u are both on GPU %u: NCCL wants a GPU "
                               "for each; ask for peer",
                               b, a, o->gpus[a]);
    nccl_group *g = static_cast<nccl_group *>(calloc(1, sizeof(*g)));
    if (g == NULL)
        return td_fail(err, TD_NOMEM, "comm: no memory for %u ranks", o->n_ranks);
    g->c.head = {&nccl_class, o->n_ranks};
    g->deadline_ms = o->deadline_ms;
    for (uint32_t r = 0; r < o->n_ranks; r++) {
        g->ranks[r].head = {reinterpret_cast<td_comm_group *>(g), r};
        g->ranks[r].group = g;
    }
    td_status st = td_cuda_comm_init(&g->c, o, give_up, err);
    if (st == TD_OK)
        st = load(&g->api, err);
    if (st == TD_OK)
        st = open_ranks(g, err);
    if (st == TD_OK)
        *out = reinterpret_cast<td_comm_group *>(g);
    else
        destroy(reinterpret_cast<td_comm_group *>(g));
    return st;
}
#else
td_status td_cuda_nccl_create(const td_backend_comm_options *options, td_comm_group **out,
                              td_err *err)
{
    (void)options;
    (void)out;
    return td_fail(err, TD_UNSUPPORTED, "comm nccl: not supported: built without NCCL");
}
#endif
