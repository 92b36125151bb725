#include "decode/engine.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/ring.h"
#include "common/transfer/desc.h"
#include "decode/followers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {    /* the engine's own view of a slot */
    uint64_t owner; /* 0: free */
    int32_t n_generated, min_tokens, n_stop;
    int32_t stop[TD_SAMPLING_MAX_FORBID];
} slot_state;

struct td_decode_engine {
    td_decode_engine_conf conf;
    td_checkpoint *ckpt; /* until ready */
    td_model_config config;
    td_kv_layout layout;
    td_fingerprint fingerprint;
    td_rank_options options;
    uint32_t n_slots, drafts;
    unsigned char *blobs; /* [n_slots, blob_bytes] as they are drawn */
    size_t blob_bytes;
    td_ring *commands;
    td_mailbox *events;
    td_progress *progress;
    pthread_t thread;
    bool started;
    atomic_bool closing; /* nobody takes events any more */
    /* the thread's own */
    td_rank rank;
    td_followers *followers; /* the other ranks; NULL: there is one */
    td_decode *decoder;
    unsigned char *states;     /* [n_slots, blob_bytes] device; NULL: kernels read the blobs */
    slot_state *slots;         /* [n_slots] */
    td_decode_result *results; /* [n_slots] */
    td_engine_event *event;    /* with room for [n_slots] results */
};

/* ---- the thread ---- */

/* A loop that is behind is waited for: the router's streams are then behind as well. */
static void push_event(td_decode_engine *e, size_t n_behind)
{
    while (td_mailbox_push(e->events, e->event, sizeof(*e->event) + n_behind) != TD_OK &&
           !atomic_load_explicit(&e->closing, memory_order_relaxed)) {
        td_progress_tick(e->progress);
        td_sleep_ms(1);
    }
}

static void push_plain(td_decode_engine *e, td_from_engine_kind kind, td_status st,
                       const td_err *err)
{
    memset(e->event, 0, sizeof(*e->event));
    e->event->kind = kind;
    e->event->status = st;
    if (st != TD_OK)
        snprintf(e->event->text, sizeof(e->event->text), "%.255s", err->text);
    push_event(e, 0);
}

static void leave(td_decode_engine *e, uint32_t slot)
{
    td_engine_command command = {.kind = TD_TO_ENGINE_LEAVE, .slot = slot};
    if (e->followers != NULL)
        td_followers_tell(e->followers, &command);
    td_decode_leave(e->decoder, slot);
    e->slots[slot].owner = 0;
}

/* The state that was drawn, to where kernels read it. Pages are there. */
static td_status take_in(td_decode_engine *e, const td_engine_command *c, void **hidden)
{
    unsigned char *blob = e->blobs + (size_t)c->slot * e->blob_bytes;
    td_status st = TD_OK;
    *hidden = blob;
    if (e->states == NULL)
        return TD_OK;
    *hidden = e->states + (size_t)c->slot * e->blob_bytes;
    if (e->drafts > 0)
        st = td_stream_write(td_device_stream(e->rank.device), *hidden, blob, e->blob_bytes);
    return st;
}

static td_status join(td_decode_engine *e, const td_engine_command *c, td_err *err)
{
    slot_state *s = &e->slots[c->slot];
    void *hidden;
    if (e->followers != NULL)
        td_followers_tell(e->followers, c);
    td_status st = take_in(e, c, &hidden);
    if (st != TD_OK)
        return td_fail(err, st, "taking a prompt's hidden state to the device failed");
    td_assert(s->owner == 0);
    td_decode_seq seq = td_command_seq(c, hidden);
    *s = (slot_state){.owner = c->owner,
                      .n_generated = 1, /* the first token came from prefill */
                      .min_tokens = c->sampling.min_tokens,
                      .n_stop = c->sampling.n_forbid};
    memcpy(s->stop, c->sampling.forbid, sizeof(s->stop));
    st = td_decode_join(e->decoder, c->slot, &seq, err);
    return st == TD_OK && e->followers != NULL ? td_followers_joined(e->followers, err) : st;
}

static bool is_stop(const slot_state *s, int32_t token)
{
    for (int32_t i = 0; i < s->n_stop; i++)
        if (s->stop[i] == token)
            return true;
    return false;
}

/* Cuts a step's tokens at the first that ends the request. */
static void judge(td_decode_engine *e, const td_decode_result *r, td_engine_result *out)
{
    slot_state *s = &e->slots[r->slot];
    *out = (td_engine_result){.owner = s->owner,
                              .slot = r->slot,
                              .n_drafted = r->n_drafted,
                              .n_accepted = r->n_accepted,
                              .ending = r->done ? TD_ENDED_LENGTH : TD_GOES_ON};
    for (uint32_t i = 0; i < r->n_tokens; i++) {
        s->n_generated++;
        if (s->n_generated > s->min_tokens && is_stop(s, r->tokens[i])) {
            out->ending = TD_ENDED_STOP;
            break;
        }
        out->tokens[out->n_tokens++] = r->tokens[i];
    }
    if (out->ending != TD_GOES_ON)
        leave(e, r->slot);
}

static td_status step(td_decode_engine *e, td_err *err)
{
    uint32_t n;
    if (e->followers != NULL)
        td_followers_step(e->followers);
    td_status st = td_decode_run(e->decoder, e->results, &n, err);
    if (st != TD_OK)
        return st;
    memset(e->event, 0, sizeof(*e->event));
    e->event->kind = TD_FROM_ENGINE_STEP;
    e->event->n = n;
    td_engine_result *out = (td_engine_result *)(e->event + 1);
    for (uint32_t i = 0; i < n; i++)
        judge(e, &e->results[i], &out[i]);
    if (n > 0)
        push_event(e, n * sizeof(*out));
    return TD_OK;
}

/* Takes every command that is there. False: stop. */
static bool take_commands(td_decode_engine *e, td_status *st, td_err *err)
{
    const void *msg;
    size_t len;
    while (td_ring_peek(e->commands, &msg, &len) == TD_OK) {
        const td_engine_command *c = msg;
        bool stop = c->kind == TD_TO_ENGINE_STOP;
        if (c->kind == TD_TO_ENGINE_JOIN) {
            *st = join(e, c, err);
        } else if (c->kind == TD_TO_ENGINE_LEAVE) {
            if (e->slots[c->slot].owner == c->owner)
                leave(e, c->slot);
            memset(e->event, 0, sizeof(*e->event));
            e->event->kind = TD_FROM_ENGINE_LEFT;
            e->event->slot = c->slot;
            e->event->owner = c->owner;
            push_event(e, 0);
        }
        td_ring_pop(e->commands);
        if (stop)
            return false;
        if (*st != TD_OK)
            return true;
    }
    return true;
}

static td_status open_followers(td_decode_engine *e, td_err *err)
{
    const td_decode_conf *c = e->conf.conf;
    td_followers_conf conf = {.options = e->options,
                              .comm = (td_comm_form)c->comm,
                              .first = &e->rank,
                              .blobs = e->blobs,
                              .blob_bytes = e->blob_bytes,
                              .n_slots = e->n_slots,
                              .drafts = e->drafts,
                              .draft_prenorm = c->w.draft_prenorm,
                              .graphs = c->graphs,
                              .spin_ns = (int64_t)c->w.spin_us * 1000,
                              .progress = e->progress};
    return td_followers_open(&conf, &e->followers, err);
}

static td_status boot(td_decode_engine *e, td_err *err)
{
    td_status st = e->options.n_ranks > 1 ? open_followers(e, err) : TD_OK;
    if (st == TD_OK)
        st = td_rank_open(&e->rank, &e->options, err);
    if (st == TD_OK && e->followers != NULL)
        st = td_followers_opened(e->followers, err);
    if (st != TD_OK)
        return st;
    td_engine_config engine = td_rank_engine(
        &e->rank, &e->layout, e->followers == NULL ? NULL : td_followers_comm(e->followers));
    engine.draft_prenorm = e->conf.conf->w.draft_prenorm;
    engine.graphs = engine.graphs && e->conf.conf->graphs;
    st = td_decode_create(&engine, e->n_slots, e->drafts, 0, &e->decoder, err);
    if (st == TD_OK && e->rank.slab.is_remote)
        st = td_device_alloc(e->rank.device, e->n_slots * e->blob_bytes, (void **)&e->states, err);
    if (st == TD_OK && e->followers != NULL)
        st = td_followers_ready(e->followers, err);
    if (st == TD_OK)
        st = td_fingerprint_model(&e->fingerprint, e->conf.conf->w.model, e->ckpt, err);
    return st;
}

static void *engine_main(void *arg)
{
    td_decode_engine *e = arg;
    int64_t spin_ns = (int64_t)e->conf.conf->w.spin_us * 1000;
    td_err err;
    td_status st = boot(e, &err);
    bool dead = st != TD_OK;
    if (dead && e->followers != NULL)
        st = td_followers_blame(e->followers, st, &err);
    push_plain(e, TD_FROM_ENGINE_READY, st, &err);
    for (;;) {
        td_progress_tick(e->progress);
        bool busy = !dead && td_decode_active(e->decoder) > 0;
        if (!busy)
            td_ring_wait(e->commands, spin_ns, td_now_ns() + TD_NS_PER_S);
        st = TD_OK;
        if (!take_commands(e, &st, &err))
            break;
        if (st == TD_OK && !dead && td_decode_active(e->decoder) > 0)
            st = step(e, &err);
        if (st != TD_OK && !dead) {
            dead = true;
            if (e->followers != NULL)
                st = td_followers_blame(e->followers, st, &err);
            push_plain(e, TD_FROM_ENGINE_FATAL, st, &err);
        }
    }
    td_followers_close(e->followers); /* nobody reads the decoder's buffers any more */
    e->followers = NULL;
    td_decode_destroy(e->decoder);
    e->decoder = NULL;
    if (e->states != NULL)
        td_device_free(e->rank.device, e->states);
    return NULL;
}

/* ---- the loop's side ---- */

/* Why steps are enqueued operation by operation; "" when they are recorded. */
static const char *why_enqueued(const td_decode_engine *e)
{
    if (td_decode_graphs_report(e->decoder)->n_graphs > 0)
        return "";
    if (!e->conf.conf->graphs)
        return "graphs is off";
    if (!td_device_records(e->rank.device))
        return "the device records no steps";
    return td_comm_unrecordable(td_followers_comm(e->followers));
}

static void take_ready(td_decode_engine *e, const td_engine_event *event)
{
    if (event->status != TD_OK) {
        td_err err;
        td_fail(&err, (td_status)event->status, "%s", event->text);
        e->conf.on_fatal(e->conf.user, &err);
        return;
    }
    td_checkpoint_close(e->ckpt); /* the weights are in the rank's memory */
    e->ckpt = NULL;
    td_fingerprint_run(&e->fingerprint, &e->layout, e->conf.conf->w.precise,
                       e->conf.conf->w.draft_prenorm);
    td_fingerprint_set(&e->fingerprint, "protocol", "%u", TD_XFER_PROTOCOL);
    const td_decode_graphs *graphs = td_decode_graphs_report(e->decoder);
    td_info(
        "decode.device",
        "device=\"%s\" ranks=%u comm=%s graphs=%u graphs_mib=%.1f graphs_ms=%.0f enqueued=\"%s\"",
        td_device_name(e->rank.device), e->options.n_ranks,
        e->followers == NULL ? "none" : td_followers_form(e->followers), graphs->n_graphs,
        (double)graphs->n_bytes / (1 << 20), (double)graphs->took_ns / (double)TD_NS_PER_MS,
        why_enqueued(e));
    e->conf.on_ready(e->conf.user);
}

static void on_event(void *user, const void *msg, size_t len)
{
    td_decode_engine *e = user;
    const td_engine_event *event = msg;
    td_assert(len >= sizeof(*event));
    switch (event->kind) {
    case TD_FROM_ENGINE_READY: take_ready(e, event); break;
    case TD_FROM_ENGINE_STEP: {
        const td_engine_result *results = (const td_engine_result *)(event + 1);
        for (uint32_t i = 0; i < event->n; i++)
            e->conf.on_result(e->conf.user, &results[i]);
        break;
    }
    case TD_FROM_ENGINE_LEFT: e->conf.on_left(e->conf.user, event->slot, event->owner); break;
    default: {
        td_err err;
        td_fail(&err, (td_status)event->status, "decode step: %s", event->text);
        e->conf.on_fatal(e->conf.user, &err);
    }
    }
}

td_status td_decode_engine_join(td_decode_engine *e, const td_engine_command *command,
                                const uint32_t *pages)
{
    size_t len = sizeof(*command) + command->n_pages * sizeof(*pages);
    unsigned char *msg = malloc(len);
    if (msg == NULL)
        return TD_NOMEM;
    memcpy(msg, command, sizeof(*command));
    memcpy(msg + sizeof(*command), pages, command->n_pages * sizeof(*pages));
    td_status st = td_ring_push(e->commands, msg, len);
    free(msg);
    return st;
}

td_status td_decode_engine_leave(td_decode_engine *e, uint32_t slot, uint64_t owner)
{
    td_engine_command command = {.kind = TD_TO_ENGINE_LEAVE, .slot = slot, .owner = owner};
    return td_ring_push(e->commands, &command, sizeof(command));
}

static td_status open_model(td_decode_engine *e, td_err *err)
{
    const td_worker_conf *w = &e->conf.conf->w;
    td_status st = td_model_config_load(w->model, &e->config, err);
    if (st == TD_OK)
        st = td_checkpoint_open(w->model, &e->ckpt, err);
    if (st != TD_OK)
        return st;
    bool draft = td_weights_has_draft(e->ckpt, &e->config);
    e->drafts = draft ? e->conf.conf->drafts : 0;
    if (e->drafts < e->conf.conf->drafts)
        td_warn("decode.drafts", "wanted=%u used=0 why=\"the checkpoint has no draft layer\"",
                e->conf.conf->drafts);
    e->blob_bytes = td_model_hidden_bytes(&e->config, w->precise);
    return td_model_kv_layout(&e->config, w->precise,
                              td_rank_kv_dtype((td_rank_kv)w->kv, w->precise), draft, &e->layout,
                              err);
}

static td_status open_tables(td_decode_engine *e, td_err *err)
{
    size_t max_pages = (size_t)e->config.max_positions / TD_KV_PAGE_ROWS + 2;
    size_t command = sizeof(td_engine_command) + max_pages * sizeof(uint32_t) + 16;
    size_t event = sizeof(td_engine_event) + e->n_slots * sizeof(td_engine_result) + 16;
    size_t blobs = (e->n_slots * e->blob_bytes + 4095) / 4096 * 4096;
    e->slots = calloc(e->n_slots, sizeof(*e->slots));
    e->results = calloc(e->n_slots, sizeof(*e->results));
    e->event = malloc(event);
    e->blobs = aligned_alloc(4096, blobs);
    if (e->slots == NULL || e->results == NULL || e->event == NULL || e->blobs == NULL)
        return td_fail(err, TD_NOMEM, "decode engine: no memory");
    memset(e->blobs, 0, blobs);
    /* A slot has at most a leave, a join and another leave on their way. */
    size_t commands = e->n_slots * (command + 2 * (sizeof(td_engine_command) + 16)) + command;
    td_status st = td_ring_create(commands, NULL, NULL, &e->commands, err);
    if (st == TD_OK)
        st = td_mailbox_open(e->conf.loop, 8 * event + e->n_slots * 2 * sizeof(td_engine_event),
                             on_event, e, &e->events, err);
    return st;
}

td_status td_decode_engine_open(const td_decode_engine_conf *conf, td_decode_engine **out,
                                td_err *err)
{
    td_decode_engine *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return td_fail(err, TD_NOMEM, "decode engine: no memory");
    const td_worker_conf *w = &conf->conf->w;
    e->conf = *conf;
    e->n_slots = w->max_requests;
    td_status st = open_model(e, err);
    if (st == TD_OK)
        st = open_tables(e, err);
    e->options = (td_rank_options){.ckpt = e->ckpt,
                                   .config = &e->config,
                                   .layout = &e->layout,
                                   .precise = w->precise,
                                   .poison = w->debug_poison,
                                   .moe = TD_MOE_FUSED,
                                   .tensor = conf->conf->ranks > 1,
                                   .n_ranks = conf->conf->ranks,
                                   .spin_us = w->spin_us,
                                   .n_pages = w->kv_pages,
                                   .backend = (td_backend_kind)w->backend,
                                   .gpu = w->gpu,
                                   .ranks_per_gpu = conf->conf->ranks_per_gpu};
    td_rank_set_threads(&e->options, w->threads);
    e->progress = td_serve_add_engine(conf->serve, "decode");
    if (st == TD_OK && pthread_create(&e->thread, NULL, engine_main, e) != 0)
        st = td_fail(err, TD_INTERNAL, "decode engine: no thread");
    if (st != TD_OK) {
        td_decode_engine_close(e);
        return st;
    }
    e->started = true;
    *out = e;
    return TD_OK;
}

void td_decode_engine_stop(td_decode_engine *e)
{
    if (e == NULL || !e->started)
        return;
    atomic_store_explicit(&e->closing, true, memory_order_relaxed);
    td_engine_command stop = {.kind = TD_TO_ENGINE_STOP};
    while (td_ring_push(e->commands, &stop, sizeof(stop)) == TD_FULL)
        td_sleep_ms(1); /* the thread takes commands between any two steps */
    pthread_join(e->thread, NULL);
    e->started = false;
}

void td_decode_engine_close(td_decode_engine *e)
{
    if (e == NULL)
        return;
    td_decode_engine_stop(e);
    td_rank_close(&e->rank);
    td_mailbox_close(e->events);
    td_ring_destroy(e->commands);
    td_checkpoint_close(e->ckpt);
    free(e->slots);
    free(e->results);
    free(e->event);
    free(e->blobs);
    free(e);
}

const td_model_config *td_decode_engine_config(const td_decode_engine *e)
{
    return &e->config;
}

const td_kv_layout *td_decode_engine_layout(const td_decode_engine *e)
{
    return &e->layout;
}

const td_fingerprint *td_decode_engine_fingerprint(const td_decode_engine *e)
{
    return &e->fingerprint;
}

td_kv_slab *td_decode_engine_slab(td_decode_engine *e)
{
    return &e->rank.slab;
}

td_rank *td_decode_engine_rank(td_decode_engine *e)
{
    return &e->rank;
}

unsigned char *td_decode_engine_blobs(td_decode_engine *e)
{
    return e->blobs;
}

size_t td_decode_engine_blob_bytes(const td_decode_engine *e)
{
    return e->blob_bytes;
}

uint32_t td_decode_engine_drafts(const td_decode_engine *e)
{
    return e->drafts;
}
