#include "prefill/engine.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "prefill/readers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLLECTIVE_DEADLINE_MS 60000 /* a rank that is so late in a collective is stuck */

typedef struct {
    uint32_t first_layer, last_layer;
    uint32_t n_reported; /* ranks */
    uint32_t *crc;       /* [n_ranks, max_pages] */
} group_slot;

struct td_prefill_engine {
    td_prefill_engine_conf conf;
    td_checkpoint *ckpt;
    td_model_config config;
    td_kv_layout layout;
    td_fingerprint fingerprint;
    td_comm_group *comm;
    uint32_t n_ranks, n_started, n_ready, max_pages, layer_group;
    td_rank_thread *ranks; /* [n_ranks] */
    td_xfer *xfers[TD_PREFILL_MAX_RANKS];
    unsigned char *blobs;
    uint32_t n_blobs;
    size_t blob_bytes;
    /* the step under way */
    uint64_t step;
    bool busy;
    uint32_t n_seqs, n_done;
    struct {
        uint32_t first_page, last_page;
    } seqs[TD_STEP_MAX_SEQS];
    td_step_result results[TD_STEP_MAX_SEQS]; /* rank 0's */
    uint32_t n_groups;
    group_slot *groups; /* [n_groups] */
    uint32_t *merged;   /* [max_pages] */
    unsigned char *message;
    size_t message_bytes;
    bool failed;
};

static void fatal(td_prefill_engine *e, const td_err *err)
{
    if (e->failed)
        return;
    e->failed = true;
    e->conf.on_fatal(e->conf.user, err);
}

/* ---- boot ---- */

static td_status open_xfers(td_prefill_engine *e, td_err *err)
{
    const td_worker_conf *w = &e->conf.conf->w;
    for (uint32_t r = 0; r < e->n_ranks; r++) {
        const td_kv_slab *slab = &e->ranks[r].self.slab;
        td_xfer_region regions[] = {
            [TD_XFER_PAGES] = {slab->base, slab->page_stride, slab->n_pages, 1},
            [TD_XFER_BLOBS] = {e->blobs, e->blob_bytes, r == 0 ? e->n_blobs : 1, 1},
        };
        td_xfer_config conf;
        char listen[272];
        if (w->kv_path == TD_XFER_DIRECT && !td_device_is_gpu(e->ranks[r].self.device))
            return td_fail(err, TD_CONFIG, "kv-path direct is for pages in GPU memory");
        td_xfer_config_init(&conf);
        conf.listen = td_kv_rank_addr(&e->conf.kv_listen, r, listen);
        conf.transport = (td_xfer_transport)w->transport;
        conf.allow_tcp = w->allow_tcp;
        conf.net_devices = w->net_devices[0] != '\0' ? w->net_devices : NULL;
        conf.port_range = w->port_range[0] != '\0' ? w->port_range : NULL;
        conf.incarnation = td_serve_incarnation(e->conf.serve);
        conf.rank = r;
        conf.regions = regions;
        conf.n_regions = 2;
        conf.max_readers = TD_PREFILL_MAX_READERS;
        conf.device = e->ranks[r].self.device;
        conf.device_regions = 1U << TD_XFER_PAGES;
        conf.path = (td_xfer_path)w->kv_path;
        conf.crc = td_rank_page_crc;
        conf.crc_arg = &e->ranks[r].self;
        conf.ring_bytes = (uint64_t)w->kv_ring_mib << 20;
        td_status st = td_xfer_create(&conf, &e->xfers[r], err);
        if (st != TD_OK)
            return st;
    }
    return TD_OK;
}

static void take_ready(td_prefill_engine *e, const td_rank_event *event)
{
    td_err err;
    if (event->status != TD_OK) {
        td_fail(&err, (td_status)event->status, "rank %u: %s", event->rank, event->text);
        fatal(e, &err);
        return;
    }
    if (++e->n_ready < e->n_ranks)
        return;
    td_checkpoint_close(e->ckpt); /* the weights are in the ranks' memory */
    e->ckpt = NULL;
    td_fingerprint_run(&e->fingerprint, &e->layout, e->conf.conf->w.precise,
                       e->conf.conf->w.draft_prenorm);
    td_fingerprint_set(&e->fingerprint, "protocol", "%u", TD_XFER_PROTOCOL);
    if (open_xfers(e, &err) != TD_OK) {
        fatal(e, &err);
        return;
    }
    for (uint32_t r = 0; r < e->n_ranks; r++)
        td_info("prefill.device", "rank=%u device=\"%s\" kv=%s comm=%s", r,
                td_device_name(e->ranks[r].self.device), td_xfer_kv_path(e->xfers[r]),
                e->comm == NULL ? "none" : td_comm_group_form(e->comm));
    e->conf.on_ready(e->conf.user);
}

/* ---- a step's events ---- */

/* Every rank listed its pages in order of chunk and page; page p is rank p mod n_ranks's. */
static uint32_t merge(td_prefill_engine *e, const group_slot *g)
{
    uint32_t next[TD_PREFILL_MAX_RANKS] = {0}, n = 0;
    for (uint32_t i = 0; i < e->n_seqs; i++)
        for (uint32_t p = e->seqs[i].first_page; p < e->seqs[i].last_page; p++) {
            uint32_t r = p % e->n_ranks;
            e->merged[n++] = g->crc[r * e->max_pages + next[r]++];
        }
    return n;
}

static void take_group(td_prefill_engine *e, const td_rank_event *event)
{
    group_slot *g = NULL;
    for (uint32_t i = 0; i < e->n_groups && g == NULL; i++)
        if (e->groups[i].n_reported > 0 && e->groups[i].first_layer == event->first_layer)
            g = &e->groups[i];
    for (uint32_t i = 0; i < e->n_groups && g == NULL; i++)
        if (e->groups[i].n_reported == 0)
            g = &e->groups[i];
    td_assert(g != NULL && event->n <= e->max_pages);
    g->first_layer = event->first_layer;
    g->last_layer = event->last_layer;
    memcpy(g->crc + (size_t)event->rank * e->max_pages, event + 1, event->n * sizeof(uint32_t));
    if (++g->n_reported < e->n_ranks)
        return;
    g->n_reported = 0;
    e->conf.on_group(e->conf.user, g->first_layer, g->last_layer, e->merged, merge(e, g));
}

static void take_done(td_prefill_engine *e, const td_rank_event *event)
{
    if (event->status != TD_OK) {
        td_err err;
        td_fail(&err, (td_status)event->status, "rank %u: %s", event->rank, event->text);
        fatal(e, &err);
        return;
    }
    if (event->rank == 0)
        memcpy(e->results, event + 1, event->n * sizeof(td_step_result));
    if (++e->n_done < e->n_ranks)
        return;
    e->busy = false;
    e->conf.on_done(e->conf.user, e->results, e->n_seqs);
}

static void on_rank_event(void *user, const void *msg, size_t len)
{
    td_prefill_engine *e = user;
    const td_rank_event *event = msg;
    td_assert(len >= sizeof(*event) && event->rank < e->n_ranks);
    if (e->failed)
        return;
    switch (event->kind) {
    case TD_FROM_RANK_READY: take_ready(e, event); break;
    case TD_FROM_RANK_GROUP: take_group(e, event); break;
    case TD_FROM_RANK_DONE: take_done(e, event); break;
    default: td_assert(!"known event");
    }
}

/* ---- a step's start ---- */

static size_t append(unsigned char *at, const void *bytes, size_t n)
{
    if (n > 0)
        memcpy(at, bytes, n);
    return td_pad8(n);
}

static size_t step_bytes(const td_chunk *chunks, uint32_t n)
{
    size_t bytes = sizeof(td_step_head);
    for (uint32_t i = 0; i < n; i++)
        bytes += sizeof(td_step_seq) + td_pad8((size_t)chunks[i].n_tokens * sizeof(int32_t)) +
                 td_pad8(chunks[i].n_pages * sizeof(uint32_t));
    return bytes;
}

static void write_step(td_prefill_engine *e, const td_chunk *chunks, uint32_t n)
{
    unsigned char *at = e->message;
    td_step_head head = {.kind = TD_TO_RANK_STEP, .n_seqs = n, .step = e->step};
    at += append(at, &head, sizeof(head));
    for (uint32_t i = 0; i < n; i++) {
        const td_chunk *c = &chunks[i];
        td_step_seq seq = {.start = c->start,
                           .n_tokens = c->n_tokens,
                           .next_token = c->next_token,
                           .n_pages = c->n_pages,
                           .blob_slot = c->blob_slot,
                           .ends = c->ends,
                           .sampling = *c->sampling};
        at += append(at, &seq, sizeof(seq));
        at += append(at, c->tokens, (size_t)c->n_tokens * sizeof(*c->tokens));
        at += append(at, c->pages, c->n_pages * sizeof(*c->pages));
        td_step_pages(c->start, c->n_tokens, &e->seqs[i].first_page, &e->seqs[i].last_page);
    }
}

void td_prefill_engine_step(td_prefill_engine *e, const td_chunk *chunks, uint32_t n)
{
    td_assert(!e->busy && n > 0 && n <= e->conf.conf->max_batch);
    size_t bytes = step_bytes(chunks, n);
    td_assert(bytes <= e->message_bytes);
    e->step++;
    e->n_seqs = n;
    e->n_done = 0;
    write_step(e, chunks, n);
    e->busy = true;
    for (uint32_t r = 0; r < e->n_ranks; r++) {
        td_status st = td_ring_push(e->ranks[r].steps, e->message, bytes);
        td_assert(st == TD_OK); /* room for two: the last step's may not be dropped yet */
    }
}

/* ---- open and close ---- */

static td_status open_model(td_prefill_engine *e, td_err *err)
{
    const td_prefill_conf *c = e->conf.conf;
    td_status st = td_model_config_load(c->w.model, &e->config, err);
    if (st == TD_OK)
        st = td_checkpoint_open(c->w.model, &e->ckpt, err);
    if (st != TD_OK)
        return st;
    bool draft = td_weights_has_draft(e->ckpt, &e->config);
    st = td_model_kv_layout(&e->config, c->w.precise,
                            td_rank_kv_dtype((td_rank_kv)c->w.kv, c->w.precise), draft, &e->layout,
                            err);
    e->blob_bytes = td_model_hidden_bytes(&e->config, c->w.precise);
    return st;
}

static td_status open_tables(td_prefill_engine *e, td_err *err)
{
    const td_prefill_conf *c = e->conf.conf;
    uint32_t max_context_pages = (uint32_t)e->config.max_positions / TD_PAGE_TOKENS + 1;
    e->max_pages = td_step_max_pages(c->chunk, c->max_batch);
    e->layer_group = c->layer_group > 0 ? c->layer_group : ((uint32_t)e->config.n_layers + 3) / 4;
    e->n_groups = e->layout.n_layers / e->layer_group + 3;
    e->n_blobs = c->w.max_requests;
    e->message_bytes =
        sizeof(td_step_head) + (size_t)c->chunk * sizeof(int32_t) +
        c->max_batch * (sizeof(td_step_seq) + max_context_pages * sizeof(uint32_t) + 32);
    e->message = malloc(e->message_bytes);
    e->merged = calloc(e->max_pages, sizeof(*e->merged));
    e->groups = calloc(e->n_groups, sizeof(*e->groups));
    e->ranks = calloc(e->n_ranks, sizeof(*e->ranks));
    e->blobs = aligned_alloc(4096, (e->n_blobs * e->blob_bytes + 4095) / 4096 * 4096);
    if (e->message == NULL || e->merged == NULL || e->groups == NULL || e->ranks == NULL ||
        e->blobs == NULL)
        return td_fail(err, TD_NOMEM, "prefill engine: no memory");
    memset(e->blobs, 0, (e->n_blobs * e->blob_bytes + 4095) / 4096 * 4096);
    for (uint32_t i = 0; i < e->n_groups; i++) {
        e->groups[i].crc = calloc((size_t)e->n_ranks * e->max_pages, sizeof(uint32_t));
        if (e->groups[i].crc == NULL)
            return td_fail(err, TD_NOMEM, "prefill engine: no memory");
    }
    if (e->n_ranks == 1)
        return TD_OK;
    td_rank_options ranks = {.n_ranks = e->n_ranks,
                             .spin_us = c->w.spin_us,
                             .backend = (td_backend_kind)c->w.backend,
                             .gpu = c->w.gpu,
                             .ranks_per_gpu = c->ranks_per_gpu};
    return td_rank_group(&ranks, (td_comm_form)c->comm, COLLECTIVE_DEADLINE_MS, &e->comm, err);
}

static td_status start_rank(td_prefill_engine *e, uint32_t r, td_err *err)
{
    static const char *const names[] = {"rank 0", "rank 1", "rank 2", "rank 3"};
    const td_prefill_conf *c = e->conf.conf;
    td_rank_thread *t = &e->ranks[r];
    t->rank = r;
    t->options = (td_rank_options){.ckpt = e->ckpt,
                                   .config = &e->config,
                                   .layout = &e->layout,
                                   .precise = c->w.precise,
                                   .poison = c->w.debug_poison,
                                   .moe = (td_moe_mode)c->moe,
                                   .rank = r,
                                   .n_ranks = e->n_ranks,
                                   .spin_us = c->w.spin_us,
                                   .n_pages = c->w.kv_pages,
                                   .backend = (td_backend_kind)c->w.backend,
                                   .gpu = c->w.gpu,
                                   .ranks_per_gpu = c->ranks_per_gpu};
    td_rank_set_threads(&t->options, c->w.threads);
    t->model_dir = c->w.model;
    t->split = (td_cp_split)c->split;
    t->draft_prenorm = c->w.draft_prenorm;
    t->chunk = c->chunk;
    t->max_batch = c->max_batch;
    t->layer_group = e->layer_group;
    t->spin_ns = (int64_t)c->w.spin_us * 1000;
    t->blobs = e->blobs;
    t->blob_bytes = e->blob_bytes;
    t->n_blobs = e->n_blobs;
    t->comm = e->comm;
    t->fingerprint = r == 0 ? &e->fingerprint : NULL;
    t->progress = td_serve_add_engine(e->conf.serve, r < 4 ? names[r] : "rank");
    size_t event = td_rank_event_bytes(c->chunk, c->max_batch) + 16;
    td_status st = td_ring_create(2 * e->message_bytes + 4096, NULL, NULL, &t->steps, err);
    if (st == TD_OK)
        st = td_mailbox_open(e->conf.loop, (e->n_groups + 4) * event, on_rank_event, e, &t->events,
                             err);
    if (st == TD_OK)
        st = td_rank_thread_start(t, err);
    if (st == TD_OK)
        e->n_started++;
    return st;
}

td_status td_prefill_engine_open(const td_prefill_engine_conf *conf, td_prefill_engine **out,
                                 td_err *err)
{
    td_prefill_engine *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return td_fail(err, TD_NOMEM, "prefill engine: no memory");
    e->conf = *conf;
    e->n_ranks = conf->conf->ranks;
    td_status st = TD_OK;
    if (conf->conf->w.debug_faults[0] != '\0')
        st = td_fail(err, TD_CONFIG,
                     "debug-faults is for the decode daemon: faults are provoked by the reader");
    if (st == TD_OK && conf->conf->chunk % TD_PAGE_TOKENS != 0)
        st = td_fail(err, TD_CONFIG, "chunk is %u, must be a multiple of %d", conf->conf->chunk,
                     TD_PAGE_TOKENS);
    if (st == TD_OK)
        st = open_model(e, err);
    if (st == TD_OK)
        st = open_tables(e, err);
    for (uint32_t r = 0; r < e->n_ranks && st == TD_OK; r++)
        st = start_rank(e, r, err);
    if (st != TD_OK) {
        td_prefill_engine_close(e);
        return st;
    }
    *out = e;
    return TD_OK;
}

void td_prefill_engine_close(td_prefill_engine *e)
{
    if (e == NULL)
        return;
    td_step_head stop = {.kind = TD_TO_RANK_STOP};
    for (uint32_t r = 0; r < e->n_started; r++)
        td_ring_push(e->ranks[r].steps, &stop,
                     sizeof(stop)); /* there is room: no step is under way */
    for (uint32_t r = 0; r < e->n_started; r++)
        pthread_join(e->ranks[r].thread, NULL);
    /* It waits for the ranks' streams when it gives its memory back: those are nobody's by now. */
    for (uint32_t r = 0; r < TD_PREFILL_MAX_RANKS; r++)
        td_xfer_destroy(e->xfers[r]);
    for (uint32_t r = 0; e->ranks != NULL && r < e->n_ranks; r++) {
        td_rank_thread *t = &e->ranks[r];
        td_rank_close(&t->self);
        td_mailbox_close(t->events);
        td_ring_destroy(t->steps);
        free(t->event);
    }
    td_comm_group_destroy(e->comm);
    td_checkpoint_close(e->ckpt);
    for (uint32_t i = 0; e->groups != NULL && i < e->n_groups; i++)
        free(e->groups[i].crc);
    free(e->groups);
    free(e->ranks);
    free(e->blobs);
    free(e->merged);
    free(e->message);
    free(e);
}

bool td_prefill_engine_busy(const td_prefill_engine *e)
{
    return e->busy;
}

const td_model_config *td_prefill_engine_config(const td_prefill_engine *e)
{
    return &e->config;
}

const td_kv_layout *td_prefill_engine_layout(const td_prefill_engine *e)
{
    return &e->layout;
}

const td_fingerprint *td_prefill_engine_fingerprint(const td_prefill_engine *e)
{
    return &e->fingerprint;
}

td_xfer *td_prefill_engine_xfer(td_prefill_engine *e, uint32_t rank)
{
    return e->xfers[rank];
}

uint32_t td_prefill_engine_blobs(const td_prefill_engine *e)
{
    return e->n_blobs;
}

size_t td_prefill_engine_blob_bytes(const td_prefill_engine *e)
{
    return e->blob_bytes;
}

void td_prefill_engine_publish(td_prefill_engine *e, const td_ready_pages *ready)
{
    uint64_t offset, n_bytes;
    td_kv_layout_range(&e->layout, 0, ready->last_layer, &offset, &n_bytes);
    for (uint32_t i = 0; i < ready->n; i++)
        td_xfer_publish(e->xfers[(ready->first_page + i) % e->n_ranks], TD_XFER_PAGES,
                        ready->pages[i], ready->generations[i], offset + n_bytes);
}

void td_prefill_engine_publish_blob(td_prefill_engine *e, uint32_t slot, uint32_t generation)
{
    td_xfer_publish(e->xfers[0], TD_XFER_BLOBS, slot, generation, e->blob_bytes);
}

void td_prefill_engine_retire(td_prefill_engine *e, const uint32_t *pages, uint32_t n)
{
    for (uint32_t r = 0; r < e->n_ranks; r++) {
        td_xfer_reclaim(e->xfers[r], TD_XFER_PAGES, pages, n);
        for (uint32_t i = 0; i < n; i++)
            td_kv_slab_retire(&e->ranks[r].self.slab, pages[i]);
    }
}

void td_prefill_engine_retire_blob(td_prefill_engine *e, uint32_t slot)
{
    td_xfer_reclaim(e->xfers[0], TD_XFER_BLOBS, &slot, 1);
}

td_status td_prefill_engine_check_free(td_prefill_engine *e, uint32_t page, td_err *err)
{
    td_status st = TD_OK;
    for (uint32_t r = 0; r < e->n_ranks && st == TD_OK; r++)
        if (td_kv_slab_check(&e->ranks[r].self.slab, page, err) != TD_OK)
            st = td_fail_prefix(err, "rank %u", r);
    return st;
}
