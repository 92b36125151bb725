#include "prefill/rank_thread.h"

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/base/log.h"
#include "prefill/messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t td_step_max_pages(uint32_t chunk, uint32_t max_batch)
{
    return chunk / TD_PAGE_TOKENS + max_batch;
}

size_t td_rank_event_bytes(uint32_t chunk, uint32_t max_batch)
{
    size_t crcs = (size_t)td_step_max_pages(chunk, max_batch) * sizeof(uint32_t);
    size_t results = (size_t)max_batch * sizeof(td_step_result);
    return td_pad8(sizeof(td_rank_event) + (crcs > results ? crcs : results));
}

static void push_event(td_rank_thread *t, size_t n_behind)
{
    td_status st = td_mailbox_push(t->events, t->event, sizeof(td_rank_event) + n_behind);
    td_assert(st == TD_OK); /* room for all events of a step: see start_rank() in engine.c */
}

static td_rank_event *new_event(td_rank_thread *t, td_from_rank_kind kind)
{
    memset(t->event, 0, sizeof(*t->event));
    t->event->kind = kind;
    t->event->rank = t->rank;
    t->event->step = t->step;
    return t->event;
}

static void set_failure(td_rank_event *e, td_status st, const td_err *err)
{
    e->status = st;
    if (st != TD_OK)
        snprintf(e->text, sizeof(e->text), "%.255s", err->text);
}

/* ---- finished layers ---- */

static const td_step_seq *next_seq(const td_step_seq *seq)
{
    const char *p = (const char *)(seq + 1);
    p += td_pad8((size_t)seq->n_tokens * sizeof(int32_t));
    p += td_pad8((size_t)seq->n_pages * sizeof(uint32_t));
    return (const td_step_seq *)p;
}

static const int32_t *seq_tokens(const td_step_seq *seq)
{
    return (const int32_t *)(seq + 1);
}

static const uint32_t *seq_pages(const td_step_seq *seq)
{
    return (const uint32_t *)((const char *)(seq + 1) +
                              td_pad8((size_t)seq->n_tokens * sizeof(int32_t)));
}

/* The pages that this rank serves, of those that the step's chunks finish. */
static uint32_t own_pages(const td_rank_thread *t, int32_t *out)
{
    uint32_t n = 0;
    const td_step_seq *seq = (const td_step_seq *)(t->head + 1);
    for (uint32_t i = 0; i < t->head->n_seqs; i++, seq = next_seq(seq)) {
        uint32_t first, last;
        td_step_pages(seq->start, seq->n_tokens, &first, &last);
        for (uint32_t p = first; p < last; p++)
            if (p % t->options.n_ranks == t->rank)
                out[n++] = (int32_t)seq_pages(seq)[p];
    }
    return n;
}

static td_status checksum(td_rank_thread *t, uint32_t first_layer, uint32_t last_layer,
                          uint32_t *crc, uint32_t *n_out, td_err *err)
{
    td_stream *stream = td_device_stream(t->self.device);
    int32_t *ids = (int32_t *)crc; /* same size; ids are read before sums are written */
    uint32_t n = own_pages(t, ids);
    uint64_t offset, n_bytes;
    td_kv_layout_range(t->options.layout, first_layer, last_layer, &offset, &n_bytes);
    td_status st = td_stream_write(stream, t->page_ids, ids, n * sizeof(*ids));
    if (st == TD_OK)
        st = td_rank_page_crc(&t->self, stream, t->page_ids, n, offset, n_bytes, t->page_crc);
    if (st == TD_OK)
        st = td_stream_read(stream, crc, t->page_crc, n * sizeof(*crc));
    if (st == TD_OK)
        st = td_stream_sync(stream, err);
    *n_out = n;
    return st == TD_OK
               ? TD_OK
               : td_fail(err, st, "checksums of layers %u..%u failed", first_layer, last_layer);
}

static void on_layer_done(void *arg, uint32_t layer)
{
    td_rank_thread *t = arg;
    uint32_t n_target = (uint32_t)t->options.config->n_layers;
    td_progress_tick(t->progress);
    bool ends_group =
        layer + 1 - t->group_first >= t->layer_group || layer + 1 == n_target || layer == n_target;
    if (!ends_group || t->hook_status != TD_OK)
        return;
    td_rank_event *e = new_event(t, TD_FROM_RANK_GROUP);
    e->first_layer = t->group_first;
    e->last_layer = layer + 1;
    t->group_first = layer + 1;
    t->hook_status =
        checksum(t, e->first_layer, e->last_layer, (uint32_t *)(e + 1), &e->n, &t->hook_err);
    if (t->hook_status == TD_OK)
        push_event(t, e->n * sizeof(uint32_t));
}

/* ---- a step ---- */

/* Pages that come into use with this chunk: checked (poison) and zeroed, so that unused slots
 * travel as zeros. */
static td_status open_pages(td_rank_thread *t, const td_step_seq *seq, td_err *err)
{
    uint32_t first, last;
    td_step_pages(seq->start, seq->n_tokens, &first, &last);
    for (uint32_t p = first; p < last; p++) {
        td_status st = td_rank_open_page(&t->self, seq_pages(seq)[p], err);
        if (st != TD_OK)
            return st;
    }
    return TD_OK;
}

/* The states that this step left in device memory to where the transfer thread reads them. */
static td_status fetch_blobs(td_rank_thread *t, const td_prefill_seq *seqs, td_err *err)
{
    td_stream *stream = td_device_stream(t->self.device);
    td_status st = TD_OK;
    for (uint32_t i = 0; t->states != t->blobs && i < t->head->n_seqs && st == TD_OK; i++) {
        const unsigned char *state = seqs[i].hidden_out;
        if (state != NULL)
            st = td_stream_read(stream, t->blobs + (state - t->states), state, t->blob_bytes);
    }
    if (st == TD_OK)
        st = td_stream_sync(stream, err);
    return st;
}

static td_status run_step(td_rank_thread *t, int32_t *first_tokens, td_err *err)
{
    td_prefill_seq seqs[TD_STEP_MAX_SEQS];
    const td_step_seq *seq = (const td_step_seq *)(t->head + 1);
    for (uint32_t i = 0; i < t->head->n_seqs; i++, seq = next_seq(seq)) {
        td_status st = open_pages(t, seq, err);
        if (st != TD_OK)
            return st;
        seqs[i] = (td_prefill_seq){
            .start = seq->start,
            .n_tokens = seq->n_tokens,
            .tokens = seq_tokens(seq),
            .next_token = seq->next_token,
            .pages = seq_pages(seq),
            .n_pages = seq->n_pages,
            .sampling = seq->ends ? &seq->sampling : NULL,
            .hidden_out = seq->blob_slot >= 0 && t->rank == 0 && seq->ends
                              ? t->states + (size_t)seq->blob_slot * t->blob_bytes
                              : NULL,
        };
    }
    td_prefill_batch batch = {
        .seqs = seqs, .n_seqs = t->head->n_seqs, .on_layer_done = on_layer_done, .hook_arg = t};
    t->group_first = 0;
    t->hook_status = TD_OK;
    td_status st = td_prefill_run(t->prefill, &batch, first_tokens, err);
    if (st == TD_OK)
        st = fetch_blobs(t, seqs, err);
    if (st == TD_OK && t->hook_status != TD_OK) {
        *err = t->hook_err;
        st = t->hook_status;
    }
    return st;
}

static void take_step(td_rank_thread *t, const td_step_head *head)
{
    int32_t first_tokens[TD_STEP_MAX_SEQS];
    td_err err;
    t->head = head;
    t->step = head->step;
    td_status st = run_step(t, first_tokens, &err);
    if (st != TD_OK && t->comm != NULL)
        td_comm_group_abort(t->comm); /* the others wait for us */
    td_rank_event *e = new_event(t, TD_FROM_RANK_DONE);
    set_failure(e, st, &err);
    e->n = head->n_seqs;
    td_step_result *results = (td_step_result *)(e + 1);
    const td_step_seq *seq = (const td_step_seq *)(head + 1);
    for (uint32_t i = 0; i < head->n_seqs; i++, seq = next_seq(seq)) {
        bool blob = st == TD_OK && t->rank == 0 && seq->ends && seq->blob_slot >= 0;
        results[i].first_token = st == TD_OK ? first_tokens[i] : -1;
        results[i].blob_crc =
            blob ? td_crc32c(0, t->blobs + (size_t)seq->blob_slot * t->blob_bytes, t->blob_bytes)
                 : 0;
    }
    push_event(t, head->n_seqs * sizeof(*results));
}

/* ---- life ---- */

static td_status boot(td_rank_thread *t, td_err *err)
{
    td_status st = td_rank_open(&t->self, &t->options, err);
    if (st != TD_OK)
        return st;
    td_comm *comm = t->comm != NULL ? td_comm_group_rank(t->comm, t->rank) : NULL;
    td_engine_config engine = td_rank_engine(&t->self, t->options.layout, comm);
    engine.split = t->split;
    engine.draft_prenorm = t->draft_prenorm;
    st = td_prefill_create(&engine, t->chunk, t->max_batch, &t->prefill, err);
    uint32_t n = td_step_max_pages(t->chunk, t->max_batch);
    if (st == TD_OK)
        st = td_device_alloc(t->self.device, n * sizeof(*t->page_ids), (void **)&t->page_ids, err);
    if (st == TD_OK)
        st = td_device_alloc(t->self.device, n * sizeof(*t->page_crc), (void **)&t->page_crc, err);
    t->states = t->blobs;
    if (st == TD_OK && t->self.slab.is_remote && t->rank == 0)
        st = td_device_alloc(t->self.device, t->n_blobs * t->blob_bytes, (void **)&t->states, err);
    if (st == TD_OK && t->fingerprint != NULL)
        st = td_fingerprint_model(t->fingerprint, t->model_dir, t->options.ckpt, err);
    return st;
}

static void shut_down(td_rank_thread *t)
{
    td_prefill_destroy(t->prefill);
    t->prefill = NULL;
    if (t->self.device != NULL) {
        td_device_free(t->self.device, t->page_ids);
        td_device_free(t->self.device, t->page_crc);
        if (t->states != t->blobs)
            td_device_free(t->self.device, t->states);
    }
    /* the slab outlives the thread: the transfer thread reads it */
}

static void *rank_main(void *arg)
{
    td_rank_thread *t = arg;
    td_err err;
    td_status st = boot(t, &err);
    set_failure(new_event(t, TD_FROM_RANK_READY), st, &err);
    push_event(t, 0);
    for (;;) {
        td_progress_tick(t->progress);
        const void *msg;
        size_t len;
        if (td_ring_wait(t->steps, t->spin_ns, td_now_ns() + TD_NS_PER_S) != TD_OK ||
            td_ring_peek(t->steps, &msg, &len) != TD_OK)
            continue;
        const td_step_head *head = msg;
        bool stop = head->kind == TD_TO_RANK_STOP;
        if (!stop)
            take_step(t, head);
        td_ring_pop(t->steps);
        if (stop)
            break;
    }
    shut_down(t);
    return NULL;
}

td_status td_rank_thread_start(td_rank_thread *t, td_err *err)
{
    t->event_bytes = td_rank_event_bytes(t->chunk, t->max_batch);
    t->event = malloc(t->event_bytes);
    if (t->event == NULL)
        return td_fail(err, TD_NOMEM, "rank %u: no memory", t->rank);
    if (pthread_create(&t->thread, NULL, rank_main, t) != 0)
        return td_fail(err, TD_INTERNAL, "rank %u: no thread", t->rank);
    return TD_OK;
}
