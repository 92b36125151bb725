#include "decode/draw.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/message.h"
#include "proto/tandem/v1/prefill.pb-c.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct td_pending_get {
    td_pending_get *next;
    uint32_t rank, region, first_layer, last_layer, n_pages;
    uint64_t offset, n_bytes;
    int64_t deadline_ns;  /* from the announcement on: waiting for room counts */
    td_xfer_page pages[]; /* [n_pages] */
};

static bool wants_draft(const td_requests *t)
{
    return td_decode_engine_drafts(td_requests_get_conf(t)->engine) > 0;
}

/* Layers that are drawn: the target's, and the draft layer behind them if it is used. */
static uint32_t n_layers(const td_requests *t)
{
    const td_kv_layout *layout = td_decode_engine_layout(td_requests_get_conf(t)->engine);
    return layout->draft_layer >= 0 && !wants_draft(t) ? (uint32_t)layout->draft_layer
                                                       : layout->n_layers;
}

/* ---- gets ---- */

/* Before the get is posted: a job that nobody knows of would outlive its pages. */
static td_status reserve_job(td_request *r, td_err *err)
{
    if (r->n_jobs < r->jobs_capacity)
        return TD_OK;
    uint32_t capacity = r->jobs_capacity == 0 ? 16 : r->jobs_capacity * 2;
    td_xfer_job *grown = realloc(r->jobs, capacity * sizeof(*grown));
    if (grown == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a transfer");
    r->jobs = grown;
    r->jobs_capacity = capacity;
    return TD_OK;
}

static bool forget_job(td_request *r, td_xfer_job job)
{
    for (uint32_t i = 0; i < r->n_jobs; i++)
        if (r->jobs[i].slot == job.slot && r->jobs[i].generation == job.generation) {
            r->jobs[i] = r->jobs[--r->n_jobs];
            return true;
        }
    return false;
}

static td_status post(td_requests *t, td_request *r, const td_pending_get *g, td_err *err)
{
    td_xfer_get_args args = {.tag = r->owner,
                             .region = g->region,
                             .n_pages = g->n_pages,
                             .offset = g->offset,
                             .n_bytes = g->n_bytes,
                             .first_layer = g->first_layer,
                             .last_layer = g->last_layer,
                             .deadline_ns = g->deadline_ns,
                             .pages = g->pages};
    td_status st = reserve_job(r, err);
    if (st == TD_OK)
        st = td_xfer_get(td_requests_xfer(t), r->peer->links[g->rank], &args, &r->jobs[r->n_jobs],
                         err);
    if (st == TD_OK)
        r->n_jobs++;
    return st;
}

/* The first that waits. TD_FULL: it goes on waiting. */
static td_status post_first(td_requests *t, td_request *r, td_err *err)
{
    td_pending_get *g = r->pending;
    td_status st = post(t, r, g, err);
    if (st == TD_OK) {
        r->pending = g->next;
        free(g);
    }
    return st;
}

static bool waits(const td_request *r)
{
    return r->state == TD_REQUEST_DRAWING && r->pending != NULL;
}

static bool others_wait(td_requests *t, const td_request *r)
{
    for (uint32_t i = 0; i < td_requests_rows(t); i++) {
        const td_request *other = td_requests_row(t, i);
        if (other != r && waits(other))
            return true;
    }
    return false;
}

/* Posts what was announced, in order, unless there is no room or others wait for it already. */
static td_status post_announced(td_requests *t, td_request *r, td_err *err)
{
    td_status st = others_wait(t, r) ? TD_FULL : TD_OK;
    while (st == TD_OK && r->pending != NULL)
        st = post_first(t, r, err);
    return st == TD_FULL ? TD_OK : st;
}

static void append(td_requests *t, td_request *r, td_pending_get *g)
{
    int64_t timeout_ns = td_requests_get_conf(t)->conf->transfer_timeout_ms * TD_NS_PER_MS;
    g->deadline_ns = td_now_ns() + timeout_ns;
    if (r->deadline_ns < g->deadline_ns)
        g->deadline_ns = r->deadline_ns;
    g->next = NULL;
    *(r->pending != NULL ? &r->last_pending->next : &r->pending) = g;
    r->last_pending = g;
}

static td_pending_get *new_get(uint32_t n_pages)
{
    return calloc(1, sizeof(td_pending_get) + n_pages * sizeof(td_xfer_page));
}

void td_draw_discard(td_request *r)
{
    while (r->pending != NULL) {
        td_pending_get *g = r->pending;
        r->pending = g->next;
        free(g);
    }
}

/* ---- what prefill announces ---- */

static td_status check_pages(td_requests *t, const td_request *r, const Tandem__V1__PagesReady *p,
                             td_err *err)
{
    size_t n = p->n_page_ids;
    if (n == 0 || p->n_generations != n || p->n_crc32c != n)
        return td_fail(err, TD_PROTOCOL, "%zu pages with %zu generations and %zu checksums", n,
                       p->n_generations, p->n_crc32c);
    if (p->first_page >= r->n_prompt_pages || n > r->n_prompt_pages - p->first_page)
        return td_fail(err, TD_PROTOCOL, "pages %u..%zu of a prompt with %u", p->first_page,
                       p->first_page + n, r->n_prompt_pages);
    if (p->first_layer >= p->last_layer || p->last_layer > n_layers(t))
        return td_fail(err, TD_PROTOCOL, "layers %u..%u of %u", p->first_layer, p->last_layer,
                       n_layers(t));
    for (size_t i = 0; i < n; i++)
        if (r->next_layer[p->first_page + i] != p->first_layer)
            return td_fail(err, TD_PROTOCOL, "page %zu: layers from %u on, expected from %u on",
                           p->first_page + i, p->first_layer, r->next_layer[p->first_page + i]);
        else if (p->generations[i] == 0)
            return td_fail(err, TD_PROTOCOL, "page %zu without a generation", p->first_page + i);
    return TD_OK;
}

/* Page p is drawn from rank p mod ranks: one get for each rank's share. */
static td_status draw_share(td_requests *t, td_request *r, const Tandem__V1__PagesReady *p,
                            uint32_t rank, td_err *err)
{
    const td_kv_layout *layout = td_decode_engine_layout(td_requests_get_conf(t)->engine);
    uint32_t done = 0, n = (uint32_t)p->n_page_ids;
    while (done < n) {
        td_pending_get *g = new_get(n < TD_XFER_MAX_JOB_PAGES ? n : TD_XFER_MAX_JOB_PAGES);
        if (g == NULL)
            return td_fail(err, TD_NOMEM, "no memory for a transfer of %u pages", n);
        for (; done < n && g->n_pages < TD_XFER_MAX_JOB_PAGES; done++) {
            uint32_t page = p->first_page + done;
            if (page % r->peer->n_ranks == rank)
                g->pages[g->n_pages++] = (td_xfer_page){.remote = p->page_ids[done],
                                                        .local = r->pages[page],
                                                        .generation = p->generations[done],
                                                        .crc32c = p->crc32c[done],
                                                        .number = page};
        }
        if (g->n_pages == 0) {
            free(g);
            continue;
        }
        g->rank = rank;
        g->region = TD_XFER_PAGES;
        g->first_layer = p->first_layer;
        g->last_layer = p->last_layer;
        td_kv_layout_range(layout, p->first_layer, p->last_layer, &g->offset, &g->n_bytes);
        append(t, r, g);
    }
    return TD_OK;
}

static td_status take_pages(td_requests *t, td_request *r, const Tandem__V1__PagesReady *p,
                            td_err *err)
{
    td_status st = check_pages(t, r, p, err);
    for (uint32_t rank = 0; st == TD_OK && rank < r->peer->n_ranks; rank++)
        st = draw_share(t, r, p, rank, err);
    if (st != TD_OK)
        return st;
    for (size_t i = 0; i < p->n_page_ids; i++)
        r->next_layer[p->first_page + i] = p->last_layer;
    return post_announced(t, r, err);
}

static td_status take_done(td_requests *t, td_request *r, const Tandem__V1__PrefillDone *d,
                           td_err *err)
{
    const td_decode_engine *engine = td_requests_get_conf(t)->engine;
    if (d->first_token >= (uint32_t)td_decode_engine_config(engine)->vocab_size)
        return td_fail(err, TD_PROTOCOL, "first token %u is outside the vocabulary",
                       d->first_token);
    for (uint32_t i = 0; i < r->n_prompt_pages; i++)
        if (r->next_layer[i] != n_layers(t))
            return td_fail(err, TD_PROTOCOL, "page %u: %u of %u layers were announced", i,
                           r->next_layer[i], n_layers(t));
    r->prefill_done = true;
    r->first_token = (int32_t)d->first_token;
    r->prefilled_ns = td_now_ns();
    if (!wants_draft(t))
        return TD_OK;
    td_pending_get *g = new_get(1);
    if (g == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a transfer");
    g->region = TD_XFER_BLOBS;
    g->n_bytes = td_decode_engine_blob_bytes(engine);
    g->n_pages = 1;
    g->pages[0] = (td_xfer_page){.remote = d->blob_slot,
                                 .local = r->slot,
                                 .generation = d->blob_generation,
                                 .crc32c = d->blob_crc32c};
    append(t, r, g);
    return post_announced(t, r, err);
}

uint64_t td_draw_bytes(const td_requests *t, const td_request *r)
{
    const td_decode_engine *engine = td_requests_get_conf(t)->engine;
    uint64_t offset, n_bytes;
    td_kv_layout_range(td_decode_engine_layout(engine), 0, n_layers(t), &offset, &n_bytes);
    return r->n_prompt_pages * n_bytes + (wants_draft(t) ? td_decode_engine_blob_bytes(engine) : 0);
}

/* Everything that a page needs before it may be read. */
static void check_complete(td_requests *t, td_request *r)
{
    if (!r->prefill_done || r->n_jobs > 0 || r->pending != NULL || r->state != TD_REQUEST_DRAWING)
        return;
    uint64_t formula = td_draw_bytes(t, r);
    if (r->n_bytes_drawn != formula) {
        char why[160];
        snprintf(why, sizeof(why), "%" PRIu64 " bytes of KV arrived, the formula says %" PRIu64,
                 r->n_bytes_drawn, formula);
        td_request_fail(t, r, TD_DATA_LOSS, "transfer", "decode", why);
        return;
    }
    td_request_drawn(t, r);
}

/* ---- the stream ---- */

static td_status take_event(td_requests *t, td_request *r, const Tandem__V1__PrefillEvent *e,
                            td_err *err)
{
    if (strcmp(e->incarnation, r->peer->incarnation) != 0)
        return td_fail(err, TD_PROTOCOL, "an event of incarnation \"%.16s\", its stream is of %s",
                       e->incarnation, r->peer->incarnation);
    if (r->prefill_done)
        return td_fail(err, TD_PROTOCOL, "an event behind the last one");
    switch (e->event_case) {
    case TANDEM__V1__PREFILL_EVENT__EVENT_PAGES: return take_pages(t, r, e->pages, err);
    case TANDEM__V1__PREFILL_EVENT__EVENT_DONE: return take_done(t, r, e->done, err);
    default: return td_fail(err, TD_PROTOCOL, "an event that is neither pages nor the last one");
    }
}

static void on_event(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    td_request *r = user;
    td_requests *t = r->table;
    ProtobufCMessage *message;
    td_err err;
    (void)req;
    free(r->prompt); /* it was taken, and the router keeps it */
    r->prompt = NULL;
    td_status st =
        td_message_unpack(&tandem__v1__prefill_event__descriptor, msg, len, &message, &err);
    if (st == TD_OK) {
        st = take_event(t, r, (const Tandem__V1__PrefillEvent *)message, &err);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    if (st != TD_OK)
        td_request_fail(t, r, st, "prefill", "prefill", err.text);
    else
        check_complete(t, r);
}

static void on_stream_end(td_rpc_request *req, void *user, td_grpc_status status,
                          const char *message)
{
    td_request *r = user;
    (void)req;
    r->stream = NULL;
    if (r->prefill_done) /* however it ends: what is still to be drawn has deadlines of its own */
        return;
    /* It knows us no more: it forgets who has not asked for long. */
    bool forgot_us = status == TD_GRPC_FAILED_PRECONDITION && r->prompt != NULL;
    if (forgot_us && !r->asked_again) {
        td_request_ask_again(r->table, r);
        return;
    }
    td_status st = status == TD_GRPC_OK             ? TD_PROTOCOL
                   : status == TD_GRPC_OUT_OF_RANGE ? TD_TOO_LARGE
                   : forgot_us                      ? TD_PEER_LOST
                                                    : td_grpc_to_status(status);
    td_request_fail(r->table, r, st, "prefill", "prefill",
                    status == TD_GRPC_OK ? "prefill ended the stream before its last event"
                                         : message);
}

void td_draw_start(td_requests *t, td_request *r)
{
    Tandem__V1__Sampling sampling = TANDEM__V1__SAMPLING__INIT;
    Tandem__V1__PrefillRequest msg = TANDEM__V1__PREFILL_REQUEST__INIT;
    sampling.temperature = r->sampling.temperature;
    sampling.top_p = r->sampling.top_p;
    sampling.top_k = (uint32_t)r->sampling.top_k;
    sampling.seed = r->sampling.seed;
    sampling.min_tokens = (uint32_t)r->sampling.min_tokens;
    sampling.n_stop_token_ids = (size_t)r->sampling.n_forbid;
    sampling.stop_token_ids = (uint32_t *)r->sampling.forbid;
    msg.request_id = r->id;
    msg.incarnation = r->peer->incarnation;
    msg.decode_incarnation = (char *)td_requests_get_conf(t)->incarnation;
    msg.n_token_ids = r->n_prompt;
    msg.token_ids = r->prompt;
    msg.sampling = &sampling;
    msg.want_draft = wants_draft(t);
    msg.number = r->owner;
    td_rpc_header headers[] = {{"x-request-id", r->id}};
    td_rpc_request_args args = {.path = "/tandem.v1.Prefill/Prefill",
                                .deadline_ns = r->deadline_ns,
                                .headers = headers,
                                .n_headers = 1,
                                .on_message = on_event,
                                .on_finish = on_stream_end,
                                .user = r};
    td_err err;
    td_status st = td_message_start(r->peer->client, &args, &msg.base, &r->stream, &err);
    if (st != TD_OK) {
        r->stream = NULL;
        td_request_fail(t, r, st, "prefill", "prefill", err.text);
    }
}

void td_draw_stop(td_requests *t, td_request *r)
{
    td_rpc_request_cancel(r->stream);
    r->stream = NULL;
    /* Also when its last event has not come: it may be on its way, and the pages wait for us. */
    if (r->asked_ns != 0 && !r->released)
        td_peer_release(r->peer, r->owner, r->id);
    r->released = true;
    td_draw_discard(r);
    for (uint32_t i = 0; i < r->n_jobs; i++)
        td_xfer_cancel(td_requests_xfer(t), r->jobs[i]);
}

void td_draw_on_job(td_requests *t, const td_xfer_event *event)
{
    td_request *r = td_requests_find(t, event->tag);
    if (r == NULL || !forget_job(r, event->job))
        return;
    if (event->n_refetched > 0)
        td_warn("kv.refetch", "req=%s peer=%s pages=%u", r->id, r->peer->address,
                event->n_refetched);
    if (r->state == TD_REQUEST_ENDING) {
        td_request_let_go(t, r);
        return;
    }
    if (event->status != TD_OK) {
        /* A transfer that takes too long while the request has time: the peer does not serve. */
        bool too_slow = event->status == TD_DEADLINE && td_now_ns() < r->deadline_ns;
        /* It gave a page up that we still want: the lease ended while we slept. */
        bool gave_up = event->status == TD_MISMATCH;
        td_status st = too_slow || gave_up ? TD_PEER_LOST : event->status;
        const char *side = st == TD_PEER_LOST ? "prefill" : "decode";
        td_request_fail(t, r, st, "transfer", side, event->err.text);
        return;
    }
    r->n_bytes_drawn += event->n_bytes;
    if (!r->prefill_done)
        r->n_bytes_early += event->n_bytes;
    check_complete(t, r);
}

/* One get of each row in turn; whoever found no room is the first next time. */
void td_draw_retry(td_requests *t)
{
    uint32_t n_rows = td_requests_rows(t), *turn = td_requests_turn(t);
    for (uint32_t n_idle = 0; n_idle < n_rows; n_idle++) {
        td_request *r = td_requests_row(t, *turn);
        td_err err;
        if (waits(r)) {
            td_status st = post_first(t, r, &err);
            if (st == TD_FULL)
                return;
            if (st != TD_OK)
                td_request_fail(t, r, st, "transfer", "prefill", err.text);
            n_idle = 0;
        }
        *turn = (*turn + 1) % n_rows;
    }
}
