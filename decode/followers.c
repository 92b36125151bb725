#include "decode/followers.h"

#include "common/base/clock.h"
#include "common/base/ring.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define COLLECTIVE_DEADLINE_MS 60000 /* a rank that is so late in a collective is stuck */

typedef enum { BOOTING, READY, FAILED } follower_state;

typedef struct {
    td_followers *all;
    uint32_t rank;
    td_ring *commands;
    pthread_t thread;
    bool started;
    _Atomic int state; /* follower_state; FAILED: st and err are written and stay */
    td_status st;
    td_err err;
    /* the thread's own until it has ended */
    td_rank self;
    td_decode *decoder;
    unsigned char *states;     /* [n_slots, blob_bytes] device */
    td_decode_result *results; /* [n_slots] */
} follower;

struct td_followers {
    td_followers_conf conf;
    td_comm_group *group;
    uint32_t n;              /* followers */
    _Atomic uint32_t n_open; /* ranks that have their weights */
    _Atomic bool ended;      /* a rank failed, or all are to end */
    follower *followers;     /* [n]; rank r is r - 1 */
};

td_decode_seq td_command_seq(const td_engine_command *join, const void *hidden)
{
    return (td_decode_seq){
        .prompt_len = join->prompt_len,
        .first_token = join->first_token,
        .hidden = hidden,
        .pages = (const uint32_t *)(join + 1),
        .n_pages = join->n_pages,
        .max_new_tokens = join->max_new_tokens,
        .max_drafts = join->max_drafts,
        .sampling = join->sampling,
    };
}

/* This rank has its weights; until all have, unless one fails. */
static td_status wait_until_open(td_followers *t, td_progress *progress, td_err *err)
{
    atomic_fetch_add(&t->n_open, 1);
    while (atomic_load(&t->n_open) <= t->n) {
        if (atomic_load(&t->ended))
            return td_fail(err, TD_CANCELLED, "another rank failed");
        if (progress != NULL)
            td_progress_tick(progress);
        td_sleep_ms(1); /* weights are being read */
    }
    return TD_OK;
}

/* ---- a follower's thread ---- */

static td_status boot(follower *f, td_err *err)
{
    const td_followers_conf *c = &f->all->conf;
    td_rank_options options = c->options;
    options.rank = f->rank;
    f->results = calloc(c->n_slots, sizeof(*f->results));
    if (f->results == NULL)
        return td_fail(err, TD_NOMEM, "rank %u: no memory", f->rank);
    td_status st = td_rank_open(&f->self, &options, err);
    if (st == TD_OK)
        st = wait_until_open(f->all, NULL, err);
    if (st != TD_OK)
        return st;
    td_engine_config engine =
        td_rank_engine(&f->self, options.layout, td_comm_group_rank(f->all->group, f->rank));
    engine.draft_prenorm = c->draft_prenorm;
    engine.graphs = engine.graphs && c->graphs;
    st = td_decode_create(&engine, c->n_slots, c->drafts, 0, &f->decoder, err);
    return st == TD_OK ? td_device_alloc(f->self.device, c->n_slots * c->blob_bytes,
                                         (void **)&f->states, err)
                       : st;
}

/* Copies the prompt's pages out of rank 0's memory, and its state. */
static td_status join(follower *f, const td_engine_command *c, td_err *err)
{
    const td_followers_conf *conf = &f->all->conf;
    const uint32_t *pages = (const uint32_t *)(c + 1);
    const uint32_t n = ((uint32_t)c->prompt_len + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    size_t at = (size_t)c->slot * conf->blob_bytes;
    td_status st = TD_OK;
    for (uint32_t i = 0; i < n && st == TD_OK; i++)
        st = td_rank_take_page(&f->self, conf->first, pages[i]);
    if (st == TD_OK && conf->drafts > 0)
        st = td_stream_write(td_device_stream(f->self.device), f->states + at, conf->blobs + at,
                             conf->blob_bytes);
    if (st != TD_OK)
        return td_fail(err, st, "rank %u: copying a prompt's pages failed", f->rank);
    td_decode_seq seq = td_command_seq(c, f->states + at);
    st = td_decode_join(f->decoder, c->slot, &seq, err); /* returns when all of it is there */
    return st == TD_OK ? td_comm_barrier(td_comm_group_rank(f->all->group, f->rank)) : st;
}

static td_status obey(follower *f, const td_engine_command *c, td_err *err)
{
    uint32_t n;
    switch (c->kind) {
    case TD_TO_ENGINE_JOIN: return join(f, c, err);
    case TD_TO_ENGINE_LEAVE: td_decode_leave(f->decoder, c->slot); return TD_OK;
    default: return td_decode_run(f->decoder, f->results, &n, err);
    }
}

static void fail(follower *f, td_status st)
{
    f->st = st;
    atomic_store_explicit(&f->state, FAILED, memory_order_release);
    atomic_store(&f->all->ended, true);
    td_comm_group_abort(f->all->group);
}

static void *follower_main(void *arg)
{
    follower *f = arg;
    td_status st = boot(f, &f->err);
    if (st == TD_OK)
        atomic_store_explicit(&f->state, READY, memory_order_release);
    else
        fail(f, st);
    for (;;) {
        const void *msg;
        size_t len;
        if (td_ring_wait(f->commands, f->all->conf.spin_ns, td_now_ns() + TD_NS_PER_S) != TD_OK ||
            td_ring_peek(f->commands, &msg, &len) != TD_OK)
            continue;
        const td_engine_command *c = msg;
        const bool stop = c->kind == TD_TO_ENGINE_STOP;
        if (!stop && st == TD_OK && (st = obey(f, c, &f->err)) != TD_OK)
            fail(f, st);
        td_ring_pop(f->commands);
        if (stop)
            return NULL;
    }
}

/* ---- rank 0's side ---- */

static td_status start(td_followers *t, follower *f, td_err *err)
{
    const td_followers_conf *c = &t->conf;
    size_t pages = (size_t)c->options.config->max_positions / TD_KV_PAGE_ROWS + 2;
    size_t command = sizeof(td_engine_command) + 16, join = command + pages * sizeof(uint32_t);
    /* A step, what it ends, and one join: rank 0 waits for each join and in each step. */
    td_status st =
        td_ring_create((c->n_slots + 3) * command + 2 * join, NULL, NULL, &f->commands, err);
    if (st != TD_OK)
        return st;
    if (pthread_create(&f->thread, NULL, follower_main, f) != 0)
        return td_fail(err, TD_INTERNAL, "rank %u: no thread", f->rank);
    f->started = true;
    return TD_OK;
}

td_status td_followers_open(const td_followers_conf *conf, td_followers **out, td_err *err)
{
    td_followers *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return td_fail(err, TD_NOMEM, "decode engine: no memory");
    t->conf = *conf;
    t->n = conf->options.n_ranks - 1;
    t->followers = calloc(t->n, sizeof(*t->followers));
    td_status st = t->followers == NULL ? td_fail(err, TD_NOMEM, "decode engine: no memory")
                                        : td_rank_group(&conf->options, conf->comm,
                                                        COLLECTIVE_DEADLINE_MS, &t->group, err);
    for (uint32_t i = 0; i < t->n && st == TD_OK; i++) {
        t->followers[i].all = t;
        t->followers[i].rank = i + 1;
        st = start(t, &t->followers[i], err);
    }
    if (st == TD_OK)
        *out = t;
    else
        td_followers_close(t);
    return st;
}

static void tell(td_followers *t, const td_engine_command *command, size_t len)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (!t->followers[i].started)
            continue;
        td_status st = td_ring_push(t->followers[i].commands, command, len);
        td_assert(st == TD_OK); /* room for all that can be on its way: see start() */
    }
}

void td_followers_close(td_followers *t)
{
    if (t == NULL)
        return;
    td_engine_command stop = {.kind = TD_TO_ENGINE_STOP};
    atomic_store(&t->ended, true);
    if (t->group != NULL)
        td_comm_group_abort(t->group);
    if (t->followers != NULL)
        tell(t, &stop, sizeof(stop));
    for (uint32_t i = 0; t->followers != NULL && i < t->n; i++)
        if (t->followers[i].started)
            pthread_join(t->followers[i].thread, NULL);
    for (uint32_t i = 0; t->followers != NULL && i < t->n; i++) {
        follower *f = &t->followers[i];
        td_decode_destroy(f->decoder);
        if (f->self.device != NULL)
            td_device_free(f->self.device, f->states);
        td_rank_close(&f->self);
        td_ring_destroy(f->commands);
        free(f->results);
    }
    td_comm_group_destroy(t->group);
    free(t->followers);
    free(t);
}

td_comm *td_followers_comm(td_followers *t)
{
    return td_comm_group_rank(t->group, 0);
}

const char *td_followers_form(const td_followers *t)
{
    return td_comm_group_form(t->group);
}

td_status td_followers_opened(td_followers *t, td_err *err)
{
    return wait_until_open(t, t->conf.progress, err);
}

td_status td_followers_ready(td_followers *t, td_err *err)
{
    for (uint32_t i = 0; i < t->n; i++) {
        follower *f = &t->followers[i];
        int state;
        while ((state = atomic_load_explicit(&f->state, memory_order_acquire)) == BOOTING) {
            td_progress_tick(t->conf.progress);
            td_sleep_ms(1); /* weights are being read */
        }
        if (state == FAILED)
            return td_fail(err, f->st, "rank %u: %s", f->rank, f->err.text);
    }
    return TD_OK;
}

void td_followers_tell(td_followers *t, const td_engine_command *command)
{
    size_t n_pages = command->kind == TD_TO_ENGINE_JOIN ? command->n_pages : 0;
    tell(t, command, sizeof(*command) + n_pages * sizeof(uint32_t));
}

void td_followers_step(td_followers *t)
{
    td_engine_command step = {.kind = TD_TO_ENGINE_STEP};
    tell(t, &step, sizeof(step));
}

td_status td_followers_joined(td_followers *t, td_err *err)
{
    td_status st = td_comm_barrier(td_followers_comm(t));
    return st == TD_OK ? TD_OK : td_fail(err, st, "a rank did not take a prompt over");
}

td_status td_followers_blame(td_followers *t, td_status st, td_err *err)
{
    atomic_store(&t->ended, true);
    td_comm_group_abort(t->group);
    if (st != TD_CANCELLED && st != TD_DEADLINE)
        return st;
    for (uint32_t i = 0; i < t->n; i++) {
        const follower *f = &t->followers[i];
        if (atomic_load_explicit(&f->state, memory_order_acquire) == FAILED &&
            f->st != TD_CANCELLED)
            return td_fail(err, f->st, "rank %u: %s", f->rank, f->err.text);
    }
    return st;
}
