#include "decode/request.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/kv/pool_metrics.h"
#include "common/serve/message.h"
#include "decode/draw.h"
#include "proto/tandem/v1/decode.pb-c.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct td_requests {
    td_requests_conf conf;
    td_peers *peers;
    td_xfer *xfer;
    td_request *rows; /* [n_rows] */
    uint32_t n_rows;
    uint32_t counts[TD_REQUEST_N_STATES];
    td_kv_pool *pool;
    uint64_t owners;
    uint32_t turn; /* see td_draw_retry() */
    td_recent recent[TD_N_RECENT];
    uint32_t n_ended;
    td_metric *m_active, *m_streams, *m_transfers, *m_drafted, *m_accepted, *m_tokens, *m_failed,
        *m_bytes, *m_early;
    td_kv_pool_metrics m_pages;
};

static const char *const state_names[] = {"free", "connecting", "drawing", "running", "ending"};

static void update_gauges(td_requests *t)
{
    uint32_t streams = 0, transfers = 0;
    for (uint32_t i = 0; i < t->n_rows; i++) {
        const td_request *r = &t->rows[i];
        streams += r->state != TD_REQUEST_FREE && r->call != NULL;
        transfers +=
            r->state == TD_REQUEST_CONNECTING || r->state == TD_REQUEST_DRAWING || r->n_jobs > 0;
    }
    td_metric_set(t->m_active, td_requests_active(t));
    td_metric_set(t->m_streams, streams);
    td_metric_set(t->m_transfers, transfers);
    td_kv_pool_metrics_update(&t->m_pages, t->pool);
}

static void set_state(td_requests *t, td_request *r, td_request_state state)
{
    static const unsigned may_enter[] = {
        [TD_REQUEST_FREE] = 1U << TD_REQUEST_CONNECTING,
        [TD_REQUEST_CONNECTING] = 1U << TD_REQUEST_DRAWING | 1U << TD_REQUEST_ENDING,
        [TD_REQUEST_DRAWING] =
            1U << TD_REQUEST_RUNNING | 1U << TD_REQUEST_CONNECTING | 1U << TD_REQUEST_ENDING,
        [TD_REQUEST_RUNNING] = 1U << TD_REQUEST_ENDING,
        [TD_REQUEST_ENDING] = 1U << TD_REQUEST_FREE,
    };
    td_assert(may_enter[r->state] & 1U << state);
    td_debug("request.state", "req=%s number=%" PRIu64 " from=%s to=%s", r->id, r->owner,
             state_names[r->state], state_names[state]);
    t->counts[r->state]--;
    t->counts[state]++;
    r->state = state;
    r->since_ns = td_now_ns();
}

/* ---- the end ---- */

static void remember(td_requests *t, const td_request *r, const char *stage, const char *why)
{
    td_recent *e = &t->recent[t->n_ended++ % TD_N_RECENT];
    *e = (td_recent){.stage = stage,
                     .n_pages = r->n_prompt_pages,
                     .n_bytes = r->n_bytes_drawn,
                     .n_bytes_total = td_draw_bytes(t, r),
                     .ended_ns = td_now_ns()};
    memcpy(e->id, r->id, sizeof(e->id));
    snprintf(e->peer, sizeof(e->peer), "%s", r->peer != NULL ? r->peer->address : "");
    snprintf(e->error, sizeof(e->error), "%.199s", why);
}

static void free_row(td_requests *t, td_request *r)
{
    td_kv_slab *slab = td_decode_engine_slab(t->conf.engine);
    for (uint32_t i = 0; i < r->n_pages; i++)
        td_kv_slab_retire(slab, r->pages[i]);
    td_kv_pool_give(t->pool, r->owner, r->pages, r->n_pages);
    free(r->prompt);
    free(r->pages);
    free(r->next_layer);
    free(r->jobs);
    r->prompt = r->pages = r->next_layer = NULL;
    r->jobs = NULL;
    set_state(t, r, TD_REQUEST_FREE);
    update_gauges(t);
}

static void free_if_let_go(td_requests *t, td_request *r)
{
    if (r->state == TD_REQUEST_ENDING && r->n_jobs == 0 && !r->in_engine)
        free_row(t, r);
}

void td_request_let_go(td_requests *t, td_request *r)
{
    free_if_let_go(t, r);
}

/* The call has been answered or is gone: gives everything back, now or when the last get and the
 * engine let go. */
static void end_request(td_requests *t, td_request *r, const char *stage, const char *why)
{
    remember(t, r, stage, why);
    r->call = NULL;
    set_state(t, r, TD_REQUEST_ENDING);
    td_draw_stop(t, r);
    if (r->in_engine && td_decode_engine_leave(t->conf.engine, r->slot, r->owner) != TD_OK)
        td_assert(!"room for a leave per slot");
    if (r->peer != NULL)
        r->peer->n_requests--;
    free_if_let_go(t, r);
    update_gauges(t);
}

/* TD_NOMEM, TD_TOO_LARGE: a piece is missing, the request cannot go on. Other refusals are followed
 * by td_requests_call_gone(). */
static td_status send_event(td_request *r, Tandem__V1__DecodeEvent *event)
{
    event->drafted_tokens = r->n_drafted;
    event->accepted_tokens = r->n_accepted;
    if (r->first_sent_ns != 0) {
        event->admission_s = (double)(r->asked_ns - r->arrived_ns) / 1e9;
        event->prefill_s = (double)(r->prefilled_ns - r->asked_ns) / 1e9;
        event->transfer_s = (double)(r->drawn_ns - r->prefilled_ns) / 1e9;
        event->first_token_s = (double)(r->first_sent_ns - r->drawn_ns) / 1e9;
    }
    td_status st = td_message_send(r->call, &event->base);
    return st == TD_NOMEM || st == TD_TOO_LARGE ? st : TD_OK;
}

void td_request_fail(td_requests *t, td_request *r, td_status st, const char *stage,
                     const char *side, const char *why)
{
    Tandem__V1__Failure failure = TANDEM__V1__FAILURE__INIT;
    Tandem__V1__DecodeEvent event = TANDEM__V1__DECODE_EVENT__INIT;
    failure.stage = (char *)stage;
    failure.side = (char *)side;
    failure.peer = r->peer != NULL ? r->peer->address : (char *)"";
    failure.cause = (char *)td_status_name(st);
    event.failure = &failure;
    td_metric_add(t->m_failed, 1);
    td_warn("request.fail", "req=%s stage=%s side=%s peer=%s cause=%s why=\"%s\"", r->id, stage,
            side, failure.peer, failure.cause, why);
    if (r->call != NULL) {
        send_event(r, &event);
        td_rpc_call_finish(
            r->call, st == TD_TOO_LARGE ? TD_GRPC_OUT_OF_RANGE : td_grpc_from_status(st), why);
    }
    if (r->state != TD_REQUEST_ENDING)
        end_request(t, r, "failed", why);
}

static void finish(td_requests *t, td_request *r, td_ending ending)
{
    Tandem__V1__DecodeEvent event = TANDEM__V1__DECODE_EVENT__INIT;
    event.finish_reason = (char *)(ending == TD_ENDED_STOP ? "stop" : "length");
    td_info("request.done",
            "req=%s prompt_tokens=%u generated_tokens=%u drafted=%u accepted=%u reason=%s", r->id,
            r->n_prompt, r->n_sent, r->n_drafted, r->n_accepted, event.finish_reason);
    if (r->first_sent_ns == 0) /* it stopped before the first token: the times are told now */
        r->first_sent_ns = td_now_ns();
    td_status st = send_event(r, &event);
    td_rpc_call_finish(r->call, td_grpc_from_status(st), st == TD_OK ? NULL : td_status_text(st));
    end_request(t, r, "done", "");
}

/* False: the request has ended. */
static bool send_tokens(td_requests *t, td_request *r, const int32_t *tokens, uint32_t n)
{
    if (n == 0)
        return true;
    Tandem__V1__DecodeEvent event = TANDEM__V1__DECODE_EVENT__INIT;
    event.n_token_ids = n;
    event.token_ids = (uint32_t *)tokens;
    if (r->first_sent_ns == 0)
        r->first_sent_ns = td_now_ns();
    r->n_sent += n;
    td_metric_add(t->m_tokens, n);
    td_status st = send_event(r, &event);
    if (st == TD_OK)
        return true;
    td_request_fail(t, r, st, "decode", "decode", "tokens could not be sent");
    return false;
}

void td_requests_call_gone(td_requests *t, td_rpc_call *call, td_grpc_status why)
{
    for (uint32_t i = 0; i < t->n_rows; i++) {
        td_request *r = &t->rows[i];
        if (r->state == TD_REQUEST_FREE || r->call != call)
            continue;
        td_info("request.cancel", "req=%s state=%s why=%s", r->id, state_names[r->state],
                td_grpc_status_name(why));
        end_request(t, r, "cancelled", td_grpc_status_name(why));
        return;
    }
}

void td_request_ask_again(td_requests *t, td_request *r)
{
    td_info("request.again", "req=%s peer=%s why=\"it does not know this process\"", r->id,
            r->peer->address);
    r->asked_again = true;
    r->asked_ns = 0;
    set_state(t, r, TD_REQUEST_CONNECTING);
    update_gauges(t);
    td_peer_greet_again(r->peer);
}

/* ---- running ---- */

static bool ends_at_once(const td_request *r, td_ending *ending)
{
    *ending = TD_ENDED_LENGTH;
    for (int32_t i = 0; i < r->sampling.n_forbid; i++)
        if (r->sampling.forbid[i] == r->first_token && r->sampling.min_tokens < 1) {
            *ending = TD_ENDED_STOP;
            return true;
        }
    return r->max_tokens == 1;
}

void td_request_drawn(td_requests *t, td_request *r)
{
    td_ending ending;
    r->drawn_ns = td_now_ns();
    td_metric_add(t->m_bytes, (int64_t)r->n_bytes_drawn);
    td_metric_add(t->m_early, (int64_t)r->n_bytes_early);
    td_kv_pool_mark(t->pool, r->owner, r->pages, r->n_pages, TD_PAGE_HELD);
    td_peer_release(r->peer, r->owner, r->id);
    r->released = true;
    set_state(t, r, TD_REQUEST_RUNNING);
    bool ends = ends_at_once(r, &ending);
    bool shown = !(ends && ending == TD_ENDED_STOP);
    if (shown && !send_tokens(t, r, &r->first_token, 1))
        return;
    if (ends) {
        finish(t, r, ending);
        return;
    }
    td_engine_command join = {.kind = TD_TO_ENGINE_JOIN,
                              .slot = r->slot,
                              .owner = r->owner,
                              .prompt_len = (int32_t)r->n_prompt,
                              .first_token = r->first_token,
                              .max_new_tokens = (int32_t)r->max_tokens - 1,
                              .max_drafts = td_decode_engine_drafts(t->conf.engine),
                              .n_pages = r->n_pages,
                              .sampling = r->sampling};
    td_status st = td_decode_engine_join(t->conf.engine, &join, r->pages);
    if (st != TD_OK) {
        td_request_fail(t, r, st, "decode", "decode", "the engine takes no request");
        return;
    }
    r->in_engine = true;
    update_gauges(t);
}

void td_requests_on_result(td_requests *t, const td_engine_result *result)
{
    td_request *r = &t->rows[result->slot];
    if (r->state == TD_REQUEST_FREE || r->owner != result->owner)
        return;
    if (result->ending != TD_GOES_ON)
        r->in_engine = false;
    if (r->state == TD_REQUEST_ENDING) {
        free_if_let_go(t, r);
        return;
    }
    r->n_drafted += result->n_drafted;
    r->n_accepted += result->n_accepted;
    td_metric_add(t->m_drafted, result->n_drafted);
    td_metric_add(t->m_accepted, result->n_accepted);
    if (send_tokens(t, r, result->tokens, result->n_tokens) && result->ending != TD_GOES_ON)
        finish(t, r, (td_ending)result->ending);
}

void td_requests_on_left(td_requests *t, uint32_t slot, uint64_t owner)
{
    td_request *r = &t->rows[slot];
    if (r->state == TD_REQUEST_FREE || r->owner != owner)
        return;
    r->in_engine = false;
    free_if_let_go(t, r);
}

/* ---- admission ---- */

/* debug-poison: pages that go out again are checked for late writes. */
static td_status open_pages(td_requests *t, const td_request *r, td_err *err)
{
    td_kv_slab *slab = td_decode_engine_slab(t->conf.engine);
    td_status st = TD_OK;
    for (uint32_t i = 0; slab->poison && i < r->n_pages && st == TD_OK; i++)
        st = td_kv_slab_open(slab, r->pages[i], err);
    if (st != TD_OK)
        td_error("kv.poison", "req=%s why=\"%s\"", r->id, err->text);
    return st;
}

static td_status fill_row(td_requests *t, td_request *r, const td_request_args *a, uint32_t n_pages,
                          td_err *err)
{
    *r = (td_request){.table = t,
                      .owner = ++t->owners,
                      .slot = (uint32_t)(r - t->rows),
                      .call = a->call,
                      .n_prompt = (uint32_t)a->n_prompt,
                      .max_tokens = a->max_tokens,
                      .sampling = *a->sampling,
                      .n_pages = n_pages,
                      .n_prompt_pages =
                          (uint32_t)((a->n_prompt + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS),
                      .arrived_ns = td_now_ns(),
                      .deadline_ns = td_rpc_call_deadline_ns(a->call)};
    snprintf(r->id, sizeof(r->id), "%s", a->id);
    snprintf(r->prefill_incarnation, sizeof(r->prefill_incarnation), "%s", a->prefill_incarnation);
    r->prompt = malloc(a->n_prompt * sizeof(*r->prompt));
    r->pages = malloc(n_pages * sizeof(*r->pages));
    r->next_layer = calloc(r->n_prompt_pages, sizeof(*r->next_layer));
    uint32_t *generations = malloc(n_pages * sizeof(*generations));
    td_status st = TD_OK;
    if (r->prompt == NULL || r->pages == NULL || r->next_layer == NULL || generations == NULL)
        st = td_fail(err, TD_NOMEM, "decode: no memory for a request of %zu tokens", a->n_prompt);
    if (st == TD_OK && td_kv_pool_take(t->pool, n_pages, r->owner, r->pages, generations) != TD_OK)
        st = td_fail(err, TD_EXHAUSTED, "decode: no room: needs %u KV pages, %u of %u are free",
                     n_pages, td_kv_pool_count(t->pool, TD_PAGE_FREE), td_kv_pool_n_pages(t->pool));
    free(generations);
    if (st != TD_OK) {
        free(r->prompt);
        free(r->pages);
        free(r->next_layer);
        *r = (td_request){0};
        return st;
    }
    memcpy(r->prompt, a->prompt, a->n_prompt * sizeof(*r->prompt));
    td_kv_pool_mark(t->pool, r->owner, r->pages, r->n_pages, TD_PAGE_FILLING);
    set_state(t, r, TD_REQUEST_CONNECTING);
    return TD_OK;
}

td_status td_requests_admit(td_requests *t, const td_request_args *a, td_err *err)
{
    uint32_t drafts = td_decode_engine_drafts(t->conf.engine);
    uint32_t n_pages = td_decode_pages((int32_t)a->n_prompt, (int32_t)a->max_tokens, drafts);
    if (n_pages > td_kv_pool_n_pages(t->pool))
        return td_fail(err, TD_TOO_LARGE,
                       "decode: can never fit: %zu prompt tokens and %u max_tokens need %u KV "
                       "pages, the pool has %u",
                       a->n_prompt, a->max_tokens, n_pages, td_kv_pool_n_pages(t->pool));
    if (t->counts[TD_REQUEST_FREE] == 0)
        return td_fail(err, TD_EXHAUSTED, "decode: %u requests are here, the most there may be",
                       t->n_rows);
    td_request *r = t->rows;
    while (r->state != TD_REQUEST_FREE)
        r++;
    td_status st = fill_row(t, r, a, n_pages, err);
    if (st != TD_OK)
        return st;
    st = open_pages(t, r, err);
    if (st == TD_OK)
        st = td_peers_get(t->peers, a->prefill_address, &r->peer, err);
    if (st != TD_OK) {
        td_request_fail(t, r, st, "connect", st == TD_PEER_LOST ? "prefill" : "decode", err->text);
        return TD_OK; /* answered */
    }
    r->peer->n_requests++;
    if (r->peer->state == TD_PEER_UP)
        td_requests_on_peer_up(t, r->peer);
    update_gauges(t);
    return TD_OK;
}

/* ---- peers ---- */

void td_requests_on_peer_up(td_requests *t, td_peer *peer)
{
    for (uint32_t i = 0; i < t->n_rows && peer->state == TD_PEER_UP; i++) {
        td_request *r = &t->rows[i];
        if (r->state != TD_REQUEST_CONNECTING || r->peer != peer)
            continue;
        if (r->prefill_incarnation[0] != '\0' &&
            strcmp(r->prefill_incarnation, peer->incarnation) != 0) {
            td_request_fail(t, r, TD_PEER_LOST, "connect", "prefill",
                            "the prefill daemon restarted");
            continue;
        }
        set_state(t, r, TD_REQUEST_DRAWING);
        r->asked_ns = td_now_ns();
        td_draw_start(t, r);
    }
    update_gauges(t);
}

void td_requests_on_peer_down(td_requests *t, td_peer *peer, const td_err *why)
{
    for (uint32_t i = 0; i < t->n_rows; i++) {
        td_request *r = &t->rows[i];
        if (r->peer != peer)
            continue;
        if (r->state == TD_REQUEST_CONNECTING)
            td_request_fail(t, r, why->status, "connect", "prefill", why->text);
        else if (r->state == TD_REQUEST_DRAWING)
            td_request_fail(t, r, why->status, r->prefill_done ? "transfer" : "prefill", "prefill",
                            why->text);
    }
}

uint32_t td_requests_held(td_requests *t, const td_peer *peer, uint64_t *numbers, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_rows && n < max; i++)
        if (t->rows[i].state == TD_REQUEST_DRAWING && t->rows[i].peer == peer &&
            t->rows[i].prefill_done && !t->rows[i].released)
            numbers[n++] = t->rows[i].owner;
    return n;
}

/* ---- the table ---- */

static td_status register_metrics(td_requests *t, td_err *err)
{
    td_metrics *m = t->conf.metrics;
    t->m_active = td_metrics_get(m, TD_GAUGE, "tandem_requests_active", "", "requests here");
    t->m_streams = td_metrics_get(m, TD_GAUGE, "tandem_streams_open", "", "streams to routers");
    t->m_transfers = td_metrics_get(m, TD_GAUGE, "tandem_transfers_active", "",
                                    "requests whose pages are not all here");
    t->m_drafted =
        td_metrics_get(m, TD_COUNTER, "tandem_drafted_tokens_total", "", "drafts verified");
    t->m_accepted =
        td_metrics_get(m, TD_COUNTER, "tandem_accepted_tokens_total", "", "drafts accepted");
    t->m_tokens =
        td_metrics_get(m, TD_COUNTER, "tandem_generated_tokens_total", "", "tokens streamed");
    t->m_failed = td_metrics_get(m, TD_COUNTER, "tandem_requests_failed_total", "",
                                 "requests that failed here");
    t->m_bytes = td_metrics_get(m, TD_COUNTER, "tandem_kv_drawn_bytes_total", "",
                                "bytes of KV drawn and verified");
    t->m_early = td_metrics_get(m, TD_COUNTER, "tandem_kv_drawn_early_bytes_total", "",
                                "those of them that were here before the prompt was computed");
    return td_kv_pool_metrics_init(&t->m_pages, m, err);
}

td_status td_requests_create(const td_requests_conf *conf, td_requests **out, td_err *err)
{
    td_requests *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return td_fail(err, TD_NOMEM, "requests: no memory");
    t->conf = *conf;
    t->n_rows = t->counts[TD_REQUEST_FREE] = conf->conf->w.max_requests;
    t->rows = calloc(t->n_rows, sizeof(*t->rows));
    td_status st = t->rows != NULL ? TD_OK : td_fail(err, TD_NOMEM, "requests: no memory");
    if (st == TD_OK)
        st = td_kv_pool_create(conf->conf->w.kv_pages, &t->pool, err);
    if (st == TD_OK)
        st = register_metrics(t, err);
    if (st != TD_OK) {
        td_requests_destroy(t);
        return st;
    }
    update_gauges(t);
    *out = t;
    return TD_OK;
}

void td_requests_destroy(td_requests *t)
{
    if (t == NULL)
        return;
    for (uint32_t i = 0; t->rows != NULL && i < t->n_rows; i++) {
        td_draw_discard(&t->rows[i]);
        free(t->rows[i].prompt);
        free(t->rows[i].pages);
        free(t->rows[i].next_layer);
        free(t->rows[i].jobs);
    }
    td_kv_pool_destroy(t->pool);
    free(t->rows);
    free(t);
}

void td_requests_set_transport(td_requests *t, td_peers *peers, td_xfer *xfer)
{
    t->peers = peers;
    t->xfer = xfer;
}

td_request *td_requests_find(td_requests *t, uint64_t owner)
{
    for (uint32_t i = 0; i < t->n_rows; i++)
        if (t->rows[i].state != TD_REQUEST_FREE && t->rows[i].owner == owner)
            return &t->rows[i];
    return NULL;
}

const td_requests_conf *td_requests_get_conf(const td_requests *t)
{
    return &t->conf;
}

td_xfer *td_requests_xfer(td_requests *t)
{
    return t->xfer;
}

const td_kv_pool *td_requests_pool(const td_requests *t)
{
    return t->pool;
}

uint32_t td_requests_check_free(const td_requests *t)
{
    const td_kv_slab *slab = td_decode_engine_slab(t->conf.engine);
    uint32_t n = 0;
    td_err err;
    for (uint32_t page = 0; page < td_kv_pool_n_pages(t->pool); page++)
        if (td_kv_pool_info(t->pool, page).state == TD_PAGE_FREE &&
            td_kv_slab_check(slab, page, &err) != TD_OK) {
            td_error("kv.poison", "why=\"%s\"", err.text);
            n++;
        }
    return n;
}

uint32_t td_requests_count(const td_requests *t, td_request_state state)
{
    return t->counts[state];
}

uint32_t td_requests_active(const td_requests *t)
{
    return t->n_rows - t->counts[TD_REQUEST_FREE];
}

uint32_t td_requests_rows(const td_requests *t)
{
    return t->n_rows;
}

uint32_t *td_requests_turn(td_requests *t)
{
    return &t->turn;
}

td_request *td_requests_row(td_requests *t, uint32_t row)
{
    return &t->rows[row];
}

const td_recent *td_requests_recent(const td_requests *t, uint32_t i)
{
    if (i >= t->n_ended || i >= TD_N_RECENT)
        return NULL;
    return &t->recent[(t->n_ended - 1 - i) % TD_N_RECENT];
}
