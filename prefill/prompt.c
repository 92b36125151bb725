#include "prefill/prompt.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/kv/pool_metrics.h"
#include "common/serve/message.h"
#include "prefill/schedule.h"
#include "proto/tandem/v1/prefill.pb-c.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct td_prompts {
    td_prompts_conf conf;
    td_prompt *rows; /* [n_rows] */
    uint32_t n_rows;
    uint32_t counts[TD_PROMPT_N_STATES];
    td_kv_pool *pool;
    uint8_t *blob_used;         /* [n_blobs] */
    uint32_t *blob_generations; /* [n_blobs]; of the last use, 0 before the first */
    uint64_t owners, arrivals;
    td_task start; /* build the next step, outside the caller's stack */
    td_timer leases;
    int64_t looked_ns; /* at the leases */
    td_step_plan plan; /* of the step under way */
    td_metric *m_active, *m_streams, *m_transfers, *m_leases, *m_prompt_tokens;
    td_kv_pool_metrics m_pages;
};

static const char *const state_names[] = {"free", "waiting", "computing", "served"};

static void update_gauges(td_prompts *p)
{
    uint32_t streams = 0;
    for (uint32_t i = 0; i < p->n_rows; i++)
        streams += p->rows[i].state != TD_PROMPT_FREE && p->rows[i].call != NULL;
    td_metric_set(p->m_active, td_prompts_active(p));
    td_metric_set(p->m_streams, streams);
    td_metric_set(p->m_transfers, p->counts[TD_PROMPT_SERVED]);
    td_kv_pool_metrics_update(&p->m_pages, p->pool);
}

static void set_state(td_prompts *p, td_prompt *r, td_prompt_state state)
{
    static const unsigned may_enter[] = {
        [TD_PROMPT_FREE] = 1U << TD_PROMPT_WAITING,
        [TD_PROMPT_WAITING] = 1U << TD_PROMPT_COMPUTING | 1U << TD_PROMPT_FREE,
        [TD_PROMPT_COMPUTING] = 1U << TD_PROMPT_SERVED | 1U << TD_PROMPT_FREE,
        [TD_PROMPT_SERVED] = 1U << TD_PROMPT_FREE,
    };
    td_assert(may_enter[r->state] & 1U << state);
    td_debug("prompt.state", "req=%s number=%" PRIu64 " from=%s to=%s", r->id, r->number,
             state_names[r->state], state_names[state]);
    p->counts[r->state]--;
    p->counts[state]++;
    r->state = state;
    r->since_ns = td_now_ns();
}

/* Gives everything back. Not while a chunk of it is being computed. */
static void end_prompt(td_prompts *p, td_prompt *r)
{
    td_assert(!r->in_step);
    if (r->n_pages > 0 && r->state != TD_PROMPT_WAITING) {
        td_prefill_engine_retire(p->conf.engine, r->pages, r->n_pages);
        td_kv_pool_give(p->pool, r->owner, r->pages, r->n_pages);
    }
    if (r->blob_slot >= 0) {
        td_prefill_engine_retire_blob(p->conf.engine, (uint32_t)r->blob_slot);
        p->blob_used[r->blob_slot] = 0;
    }
    free(r->tokens);
    free(r->pages);
    free(r->generations);
    r->tokens = NULL;
    r->pages = r->generations = NULL;
    r->call = NULL;
    r->reader->n_prompts--;
    set_state(p, r, TD_PROMPT_FREE);
    td_task_defer(&p->start); /* there may be room for one that waits */
    update_gauges(p);
}

static void cancel(td_prompts *p, td_prompt *r)
{
    r->call = NULL;
    if (r->in_step)
        r->cancelled = true;
    else
        end_prompt(p, r);
}

static void fail(td_prompts *p, td_prompt *r, td_grpc_status status, const char *message)
{
    td_warn("prompt.fail", "req=%s status=%s why=\"%s\"", r->id, td_grpc_status_name(status),
            message);
    if (r->call != NULL)
        td_rpc_call_finish(r->call, status, message);
    cancel(p, r);
}

static td_prompt *find(td_prompts *p, const char *incarnation, uint64_t number)
{
    for (uint32_t i = 0; i < p->n_rows; i++) {
        td_prompt *r = &p->rows[i];
        if (r->state != TD_PROMPT_FREE && r->number == number &&
            strcmp(r->reader->incarnation, incarnation) == 0)
            return r;
    }
    return NULL;
}

/* ---- admission ---- */

static int32_t take_blob(td_prompts *p)
{
    uint32_t n = td_prefill_engine_blobs(p->conf.engine);
    for (uint32_t i = 0; i < n; i++)
        if (!p->blob_used[i]) {
            p->blob_used[i] = 1;
            return (int32_t)i;
        }
    td_assert(!"a blob for every row");
    return -1;
}

/* All its pages at once: a prompt that computes never waits for one. False: no room yet. */
static bool admit(td_prompts *p, td_prompt *r)
{
    if (td_kv_pool_take(p->pool, r->n_pages, r->owner, r->pages, r->generations) != TD_OK)
        return false;
    if (r->want_draft) {
        r->blob_slot = take_blob(p);
        uint32_t *generation = &p->blob_generations[r->blob_slot];
        r->blob_generation = *generation = *generation + 1 == 0 ? 1 : *generation + 1;
    }
    r->began_ns = td_now_ns();
    set_state(p, r, TD_PROMPT_COMPUTING);
    return true;
}

/* In order of arrival; the first that does not fit holds up those behind it. */
static void admit_waiting(td_prompts *p)
{
    while (p->counts[TD_PROMPT_WAITING] > 0) {
        td_prompt *first = NULL;
        for (uint32_t i = 0; i < p->n_rows; i++)
            if (p->rows[i].state == TD_PROMPT_WAITING &&
                (first == NULL || p->rows[i].order < first->order))
                first = &p->rows[i];
        td_assert(first != NULL);
        if (!admit(p, first))
            return;
    }
}

static void start_step(td_task *task, void *user)
{
    td_prompts *p = user;
    (void)task;
    admit_waiting(p);
    update_gauges(p);
    if (td_prefill_engine_busy(p->conf.engine))
        return;
    td_schedule_next(p->rows, p->n_rows, p->conf.conf->chunk, p->conf.conf->max_batch, &p->plan);
    if (p->plan.n == 0)
        return;
    td_chunk chunks[TD_STEP_MAX_SEQS];
    for (uint32_t i = 0; i < p->plan.n; i++) {
        td_prompt *r = &p->rows[p->plan.rows[i]];
        td_schedule_chunk(r, p->plan.n_tokens[i], &chunks[i]);
        r->in_step = true;
    }
    td_prefill_engine_step(p->conf.engine, chunks, p->plan.n);
}

static td_status check(td_prompts *p, const td_prompt_args *a, uint32_t n_pages, td_err *err)
{
    if (find(p, a->reader->incarnation, a->number) != NULL)
        return td_fail(err, TD_INVALID, "number %" PRIu64 " is in use by this decode daemon",
                       a->number);
    if (n_pages > td_kv_pool_n_pages(p->pool))
        return td_fail(err, TD_TOO_LARGE,
                       "can never fit: the prompt's %zu tokens need %u KV pages, the pool has %u",
                       a->n_tokens, n_pages, td_kv_pool_n_pages(p->pool));
    if (p->counts[TD_PROMPT_FREE] == 0)
        return td_fail(err, TD_EXHAUSTED, "prefill: %u prompts are here, the most there may be",
                       p->n_rows);
    /* Whoever fits has been let in: those that wait are in front of this one. */
    bool waits =
        p->counts[TD_PROMPT_WAITING] > 0 || td_kv_pool_count(p->pool, TD_PAGE_FREE) < n_pages;
    if (waits && p->counts[TD_PROMPT_WAITING] >= p->conf.conf->queue_length)
        return td_fail(err, TD_EXHAUSTED, "prefill: no free pages, and %u prompts wait already",
                       p->counts[TD_PROMPT_WAITING]);
    return TD_OK;
}

td_status td_prompts_add(td_prompts *p, const td_prompt_args *a, td_err *err)
{
    uint32_t n_pages = (uint32_t)((a->n_tokens + TD_PAGE_TOKENS - 1) / TD_PAGE_TOKENS);
    td_status st = check(p, a, n_pages, err);
    if (st != TD_OK)
        return st;
    td_prompt *r = p->rows;
    while (r->state != TD_PROMPT_FREE)
        r++;
    *r = (td_prompt){.owner = ++p->owners,
                     .number = a->number,
                     .reader = a->reader,
                     .call = a->call,
                     .n_tokens = (int32_t)a->n_tokens,
                     .sampling = *a->sampling,
                     .want_draft = a->want_draft,
                     .n_pages = n_pages,
                     .blob_slot = -1,
                     .arrived_ns = td_now_ns(),
                     .order = ++p->arrivals};
    strncpy(r->id, a->id, sizeof(r->id) - 1);
    r->tokens = malloc(a->n_tokens * sizeof(*r->tokens));
    r->pages = malloc(n_pages * sizeof(*r->pages));
    r->generations = malloc(n_pages * sizeof(*r->generations));
    if (r->tokens == NULL || r->pages == NULL || r->generations == NULL) {
        free(r->tokens);
        free(r->pages);
        free(r->generations);
        *r = (td_prompt){0};
        return td_fail(err, TD_NOMEM, "no memory for a prompt of %zu tokens", a->n_tokens);
    }
    memcpy(r->tokens, a->tokens, a->n_tokens * sizeof(*r->tokens));
    r->reader->n_prompts++;
    set_state(p, r, TD_PROMPT_WAITING);
    admit_waiting(p);
    td_task_defer(&p->start);
    update_gauges(p);
    return TD_OK;
}

/* ---- what the engine finishes ---- */

static void announce(td_prompts *p, td_prompt *r, const td_step_chunk *c, uint32_t first_layer,
                     uint32_t last_layer, const uint32_t *crc)
{
    Tandem__V1__PagesReady pages = TANDEM__V1__PAGES_READY__INIT;
    uint32_t n = c->last_page - c->first_page;
    pages.first_layer = first_layer;
    pages.last_layer = last_layer;
    pages.first_page = c->first_page;
    pages.n_page_ids = pages.n_generations = pages.n_crc32c = n;
    pages.page_ids = r->pages + c->first_page;
    pages.generations = r->generations + c->first_page;
    pages.crc32c = (uint32_t *)crc;
    td_ready_pages ready = {.pages = pages.page_ids,
                            .generations = pages.generations,
                            .n = n,
                            .first_page = c->first_page,
                            .last_layer = last_layer};
    td_prefill_engine_publish(p->conf.engine, &ready);
    Tandem__V1__PrefillEvent event = TANDEM__V1__PREFILL_EVENT__INIT;
    event.incarnation = (char *)p->conf.incarnation;
    event.event_case = TANDEM__V1__PREFILL_EVENT__EVENT_PAGES;
    event.pages = &pages;
    td_status st = td_message_send(r->call, &event.base);
    if (st == TD_NOMEM || st == TD_TOO_LARGE) /* others are followed by td_prompts_call_gone() */
        fail(p, r, td_grpc_from_status(st), "prefill: pages could not be announced");
}

void td_prompts_on_group(td_prompts *p, uint32_t first_layer, uint32_t last_layer,
                         const uint32_t *crc, uint32_t n)
{
    int32_t draft = td_prefill_engine_layout(p->conf.engine)->draft_layer;
    uint32_t at = 0;
    for (uint32_t i = 0; i < p->plan.n; i++) {
        td_prompt *r = &p->rows[p->plan.rows[i]];
        td_step_chunk c = td_schedule_pages(r, p->plan.n_tokens[i]);
        if (r->call != NULL && (r->want_draft || (int32_t)first_layer != draft))
            announce(p, r, &c, first_layer, last_layer, crc + at);
        at += c.last_page - c.first_page;
    }
    td_assert(at == n);
}

static void serve(td_prompts *p, td_prompt *r, const td_step_result *result)
{
    int64_t now = td_now_ns();
    Tandem__V1__PrefillDone done = TANDEM__V1__PREFILL_DONE__INIT;
    done.first_token = (uint32_t)result->first_token;
    if (r->blob_slot >= 0) {
        done.blob_slot = (uint32_t)r->blob_slot;
        done.blob_generation = r->blob_generation;
        done.blob_crc32c = result->blob_crc;
        td_prefill_engine_publish_blob(p->conf.engine, done.blob_slot, r->blob_generation);
    }
    done.queue_s = (double)(r->began_ns - r->arrived_ns) / 1e9;
    done.compute_s = (double)(now - r->began_ns) / 1e9;
    Tandem__V1__PrefillEvent event = TANDEM__V1__PREFILL_EVENT__INIT;
    event.incarnation = (char *)p->conf.incarnation;
    event.event_case = TANDEM__V1__PREFILL_EVENT__EVENT_DONE;
    event.done = &done;
    td_metric_add(p->m_prompt_tokens, r->n_tokens);
    td_info("prompt.done", "req=%s tokens=%d pages=%u queue_ms=%.1f compute_ms=%.1f", r->id,
            r->n_tokens, r->n_pages, done.queue_s * 1e3, done.compute_s * 1e3);
    td_kv_pool_mark(p->pool, r->owner, r->pages, r->n_pages, TD_PAGE_SERVED);
    set_state(p, r, TD_PROMPT_SERVED);
    r->lease_ns = now + p->conf.conf->lease_ms * TD_NS_PER_MS;
    td_message_reply(r->call, &event.base);
    r->call = NULL;
}

void td_prompts_on_done(td_prompts *p, const td_step_result *results, uint32_t n)
{
    td_assert(n == p->plan.n);
    for (uint32_t i = 0; i < n; i++) {
        td_prompt *r = &p->rows[p->plan.rows[i]];
        r->in_step = false;
        r->n_done += p->plan.n_tokens[i];
        if (r->cancelled)
            end_prompt(p, r);
        else if (r->n_done == r->n_tokens)
            serve(p, r, &results[i]);
    }
    p->plan.n = 0;
    td_task_defer(&p->start);
}

/* ---- from the decode daemon ---- */

void td_prompts_release(td_prompts *p, const char *incarnation, uint64_t number)
{
    td_prompt *r = find(p, incarnation, number);
    if (r == NULL)
        return;
    if (r->state == TD_PROMPT_SERVED)
        end_prompt(p, r);
    else if (!r->cancelled)
        fail(p, r, TD_GRPC_CANCELLED, "released by the decode daemon");
}

bool td_prompts_renew(td_prompts *p, const char *incarnation, uint64_t number)
{
    td_prompt *r = find(p, incarnation, number);
    if (r == NULL || r->cancelled)
        return false;
    r->lease_ns = td_now_ns() + p->conf.conf->lease_ms * TD_NS_PER_MS;
    return true;
}

void td_prompts_call_gone(td_prompts *p, td_rpc_call *call, td_grpc_status why)
{
    for (uint32_t i = 0; i < p->n_rows; i++) {
        td_prompt *r = &p->rows[i];
        if (r->state == TD_PROMPT_FREE || r->call != call)
            continue;
        td_info("prompt.cancel", "req=%s state=%s why=%s", r->id, state_names[r->state],
                td_grpc_status_name(why));
        cancel(p, r);
        return;
    }
}

/* A process that was stopped finds its timers due before it has read what waits in its sockets: the
 * renewals of its peers may be among it. */
static bool was_stopped(td_prompts *p, int64_t now)
{
    int64_t since_ns = now - p->looked_ns;
    p->looked_ns = now;
    return since_ns > p->conf.conf->lease_ms * TD_NS_PER_MS / 2;
}

static void end_leases(td_timer *timer, void *user)
{
    td_prompts *p = user;
    int64_t now = td_now_ns();
    (void)timer;
    if (was_stopped(p, now))
        return;
    for (uint32_t i = 0; i < p->n_rows; i++) {
        td_prompt *r = &p->rows[i];
        if (r->state != TD_PROMPT_SERVED || now < r->lease_ns)
            continue;
        td_warn("prompt.lease_end", "req=%s peer=%s remote=%s incarnation=%s pages=%u held_ms=%.0f",
                r->id, r->reader->address, r->reader->remote, r->reader->incarnation, r->n_pages,
                (double)(now - r->since_ns) / 1e6);
        td_metric_add(p->m_leases, 1);
        end_prompt(p, r);
    }
}

/* ---- the table ---- */

static td_status register_metrics(td_prompts *p, td_err *err)
{
    td_metrics *m = p->conf.metrics;
    p->m_active =
        td_metrics_get(m, TD_GAUGE, "tandem_requests_active", "", "prompts here, served ones too");
    p->m_streams =
        td_metrics_get(m, TD_GAUGE, "tandem_streams_open", "", "streams from decode daemons");
    p->m_transfers = td_metrics_get(m, TD_GAUGE, "tandem_transfers_active", "",
                                    "finished prompts whose pages are not released");
    p->m_leases = td_metrics_get(m, TD_COUNTER, "tandem_leases_ended_total", "",
                                 "prompts whose pages were given up when the lease ended");
    p->m_prompt_tokens =
        td_metrics_get(m, TD_COUNTER, "tandem_prompt_tokens_total", "", "prompt tokens computed");
    return td_kv_pool_metrics_init(&p->m_pages, m, err);
}

td_status td_prompts_create(const td_prompts_conf *conf, td_prompts **out, td_err *err)
{
    td_prompts *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return td_fail(err, TD_NOMEM, "prompts: no memory");
    p->conf = *conf;
    p->n_rows = p->counts[TD_PROMPT_FREE] = conf->conf->w.max_requests;
    p->rows = calloc(p->n_rows, sizeof(*p->rows));
    p->blob_used = calloc(td_prefill_engine_blobs(conf->engine), 1);
    p->blob_generations =
        calloc(td_prefill_engine_blobs(conf->engine), sizeof(*p->blob_generations));
    td_task_init(&p->start, conf->loop, start_step, p);
    td_timer_init(&p->leases, conf->loop, end_leases, p);
    td_status st = p->rows != NULL && p->blob_used != NULL && p->blob_generations != NULL
                       ? TD_OK
                       : td_fail(err, TD_NOMEM, "prompts: no memory");
    if (st == TD_OK)
        st = td_kv_pool_create(conf->conf->w.kv_pages, &p->pool, err);
    if (st == TD_OK)
        st = register_metrics(p, err);
    if (st != TD_OK) {
        td_prompts_destroy(p);
        return st;
    }
    int64_t period = conf->conf->lease_ms * TD_NS_PER_MS / 4;
    p->looked_ns = td_now_ns();
    td_timer_every(&p->leases, p->looked_ns + period, period);
    update_gauges(p);
    *out = p;
    return TD_OK;
}

void td_prompts_destroy(td_prompts *p)
{
    if (p == NULL)
        return;
    for (uint32_t i = 0; p->rows != NULL && i < p->n_rows; i++) {
        free(p->rows[i].tokens);
        free(p->rows[i].pages);
        free(p->rows[i].generations);
    }
    td_timer_stop(&p->leases);
    td_task_cancel(&p->start);
    td_kv_pool_destroy(p->pool);
    free(p->rows);
    free(p->blob_used);
    free(p->blob_generations);
    free(p);
}

uint32_t td_prompts_count(const td_prompts *p, td_prompt_state state)
{
    return p->counts[state];
}

uint32_t td_prompts_active(const td_prompts *p)
{
    return p->n_rows - p->counts[TD_PROMPT_FREE];
}

uint64_t td_prompts_tokens_left(const td_prompts *p)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < p->n_rows; i++)
        if (p->rows[i].state == TD_PROMPT_WAITING || p->rows[i].state == TD_PROMPT_COMPUTING)
            n += (uint64_t)(p->rows[i].n_tokens - p->rows[i].n_done);
    return n;
}

const td_kv_pool *td_prompts_pool(const td_prompts *p)
{
    return p->pool;
}

uint32_t td_prompts_check_free(td_prompts *p)
{
    uint32_t n = 0;
    td_err err;
    for (uint32_t page = 0; page < td_kv_pool_n_pages(p->pool); page++)
        if (td_kv_pool_info(p->pool, page).state == TD_PAGE_FREE &&
            td_prefill_engine_check_free(p->conf.engine, page, &err) != TD_OK) {
            td_error("kv.poison", "why=\"%s\"", err.text);
            n++;
        }
    return n;
}

uint32_t td_prompts_rows(const td_prompts *p)
{
    return p->n_rows;
}

const td_prompt *td_prompts_row(const td_prompts *p, uint32_t row)
{
    return &p->rows[row];
}
