#include "router/dispatch.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/message.h"
#include "proto/tandem/v1/decode.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ATTEMPTS 2
#define MIN_LOOK_NS (100 * TD_NS_PER_MS)

struct td_dispatch {
    td_dispatch_conf conf;
    td_record *head, *tail; /* the queue */
    td_record **running;    /* [max_requests], [n_running] in use */
    uint32_t n_running, n_queued;
    uint64_t seen_changes; /* of the registry, when the queue was last looked through */
    td_task pump;
    td_metric *m_active, *m_queued, *m_streams, *m_retries;
};

static td_dispatch *owner(const td_record *r)
{
    return r->timer.user;
}

/* ---- queue ---- */

static void queue_insert(td_dispatch *d, td_record *r, bool first)
{
    r->prev = first ? NULL : d->tail;
    r->next = first ? d->head : NULL;
    *(r->prev != NULL ? &r->prev->next : &d->head) = r;
    *(r->next != NULL ? &r->next->prev : &d->tail) = r;
    r->state = TD_RECORD_QUEUED;
    d->n_queued++;
    td_metric_set(d->m_queued, d->n_queued);
}

static void queue_remove(td_dispatch *d, td_record *r)
{
    *(r->prev != NULL ? &r->prev->next : &d->head) = r->next;
    *(r->next != NULL ? &r->next->prev : &d->tail) = r->prev;
    r->prev = r->next = NULL;
    d->n_queued--;
    td_metric_set(d->m_queued, d->n_queued);
    td_timer_stop(&r->timer);
}

/* ---- end of a record ---- */

void td_record_free(td_record *r)
{
    if (r == NULL)
        return;
    free(r->prompt);
    free(r->generated);
    free(r);
}

static void leave_workers(td_dispatch *d, td_record *r)
{
    for (int role = 0; role < TD_N_ROLES; role++) {
        if (r->worker[role] != NULL && r->claimed[role])
            td_worker_unclaim(r->worker[role], r->claim[role]);
        r->claimed[role] = false;
        r->worker[role] = NULL;
    }
    for (uint32_t i = 0; i < d->n_running; i++) {
        if (d->running[i] != r)
            continue;
        d->running[i] = d->running[--d->n_running];
        td_metric_set(d->m_streams, d->n_running);
        break;
    }
    td_task_defer(&d->pump);
}

static void detach(td_dispatch *d, td_record *r)
{
    if (r->state == TD_RECORD_QUEUED)
        queue_remove(d, r);
    td_rpc_request_cancel(r->stream);
    r->stream = NULL;
    leave_workers(d, r);
    r->state = TD_RECORD_ENDED;
    td_metric_set(d->m_active, d->n_queued + d->n_running);
}

static void end_record(td_dispatch *d, td_record *r, td_grpc_status status,
                       const char *finish_reason, const char *message)
{
    td_outcome outcome = {.status = status, .finish_reason = finish_reason};
    snprintf(outcome.message, sizeof(outcome.message), "%s", message);
    detach(d, r);
    r->on_end(r, &outcome);
    td_record_free(r);
}

void td_dispatch_cancel(td_dispatch *d, td_record *r)
{
    detach(d, r);
    td_record_free(r);
}

/* ---- a queued record ---- */

static td_need need_of(const td_record *r)
{
    return (td_need){.n_prompt = r->n_prompt, .max_tokens = r->max_tokens};
}

/* TD_TOO_LARGE: every ready worker of a role, but for the one to avoid, is too small for it even
 * when empty. Where none is ready there is nobody to ask: it waits. */
static td_status check_fits(const td_dispatch *d, const td_record *r, td_err *err)
{
    for (int role = 0; role < TD_N_ROLES; role++) {
        const td_worker *w = td_registry_largest(d->conf.registry, (td_role)role, r->avoid[role]);
        if (w == NULL)
            continue;
        td_claim claim = td_worker_claim_of(w, need_of(r));
        if (claim.pages > td_worker_total_pages(w))
            return td_fail(err, TD_TOO_LARGE,
                           "can never fit: needs %u KV pages (%u prompt + %u max_tokens) of %s %s "
                           "daemon, the largest has %u",
                           claim.pages, r->n_prompt, r->max_tokens,
                           r->avoid[role] != NULL ? "another" : "a", td_role_name((td_role)role),
                           td_worker_total_pages(w));
    }
    return TD_OK;
}

/* When workers have changed: whoever waits for what will never come would also hold up the rest. */
static void end_misfits(td_dispatch *d)
{
    uint64_t changes = td_registry_changes(d->conf.registry);
    if (changes == d->seen_changes)
        return;
    d->seen_changes = changes;
    for (td_record *r = d->head, *next; r != NULL; r = next) {
        td_err err;
        next = r->next;
        if (check_fits(d, r, &err) == TD_OK)
            continue;
        bool lost = r->avoid[TD_ROLE_PREFILL] != NULL || r->avoid[TD_ROLE_DECODE] != NULL;
        end_record(d, r, lost ? TD_GRPC_UNAVAILABLE : TD_GRPC_OUT_OF_RANGE, NULL, err.text);
    }
}

static bool pair_is_ready(const td_dispatch *d, const td_record *r, td_role *missing)
{
    for (int role = 0; role < TD_N_ROLES; role++) {
        *missing = (td_role)role;
        if (!td_registry_any_ready(d->conf.registry, *missing, r->avoid[role]))
            return false;
    }
    return true;
}

/* When a queued record is looked at again: for want of a ready pair, for room at its deadline. */
static void arm_wait(td_dispatch *d, td_record *r)
{
    int64_t wait_ns = d->conf.worker_wait_ms * TD_NS_PER_MS;
    int64_t look_ns = wait_ns / 2 > MIN_LOOK_NS ? wait_ns / 2 : MIN_LOOK_NS;
    int64_t at = r->unready_ns != 0 ? r->unready_ns + wait_ns : td_now_ns() + look_ns;
    td_timer_at(&r->timer, at < r->deadline_ns ? at : r->deadline_ns);
}

static void note_pair(td_dispatch *d, td_record *r, int64_t now, td_role *missing)
{
    if (pair_is_ready(d, r, missing))
        r->unready_ns = 0;
    else if (r->unready_ns == 0)
        r->unready_ns = now;
}

/* As the largest worker would count them; 0: none is ready. */
static uint32_t pages_of(const td_dispatch *d, const td_record *r, td_role role)
{
    const td_worker *w = td_registry_largest(d->conf.registry, role, r->avoid[role]);
    return w != NULL ? td_worker_claim_of(w, need_of(r)).pages : 0;
}

static void on_look(td_timer *timer, void *user)
{
    td_dispatch *d = user;
    td_record *r = (td_record *)((char *)timer - offsetof(td_record, timer));
    int64_t now = td_now_ns();
    td_role missing;
    char text[200];
    note_pair(d, r, now, &missing);
    if (r->unready_ns != 0 &&
        (now >= r->deadline_ns || now - r->unready_ns >= d->conf.worker_wait_ms * TD_NS_PER_MS)) {
        snprintf(text, sizeof(text), "no %s%s daemon is ready",
                 r->avoid[missing] != NULL ? "other " : "", td_role_name(missing));
        end_record(d, r, TD_GRPC_UNAVAILABLE, NULL, text);
    } else if (now >= r->deadline_ns) {
        snprintf(text, sizeof(text),
                 "no room: waited %.3f s for %u pages of prefill and %u of decode",
                 (double)(now - r->arrived_ns) / 1e9, pages_of(d, r, TD_ROLE_PREFILL),
                 pages_of(d, r, TD_ROLE_DECODE));
        end_record(d, r, TD_GRPC_RESOURCE_EXHAUSTED, NULL, text);
    } else {
        arm_wait(d, r);
    }
}

/* ---- a running record ---- */

/* At the head of the queue: it was placed before those that wait. */
static void wait_again(td_dispatch *d, td_record *r)
{
    r->stream = NULL;
    td_role missing;
    leave_workers(d, r);
    queue_insert(d, r, true);
    r->unready_ns = 0;
    note_pair(d, r, td_now_ns(), &missing);
    arm_wait(d, r);
}

static void start_again_or_end(td_dispatch *d, td_record *r, const char *message)
{
    if (r->streamed || r->n_attempts >= MAX_ATTEMPTS) {
        end_record(d, r, TD_GRPC_UNAVAILABLE, NULL, message);
        return;
    }
    td_worker *decode = r->worker[TD_ROLE_DECODE], *prefill = r->worker[TD_ROLE_PREFILL];
    bool prefill_lost = strcmp(r->lost_side, "prefill") == 0 && td_worker_ready(decode);
    r->avoid[TD_ROLE_DECODE] = prefill_lost ? NULL : decode;
    r->avoid[TD_ROLE_PREFILL] = prefill_lost ? prefill : NULL;
    td_role role = prefill_lost ? TD_ROLE_PREFILL : TD_ROLE_DECODE;
    char text[600];
    td_err misfit;
    if (!td_registry_any_ready(d->conf.registry, role, r->avoid[role])) {
        snprintf(text, sizeof(text), "%.300s; no other %s daemon is ready", message,
                 td_role_name(role));
        end_record(d, r, TD_GRPC_UNAVAILABLE, NULL, text);
        return;
    }
    if (check_fits(d, r, &misfit) != TD_OK) {
        snprintf(text, sizeof(text), "%.300s; %.250s", message, misfit.text);
        end_record(d, r, TD_GRPC_UNAVAILABLE, NULL, text);
        return;
    }
    td_warn("request.retry", "req=%s lost=%s decode=%s prefill=%s why=\"%.300s\"", r->id,
            td_role_name(role), decode->address, prefill->address, message);
    td_metric_add(d->m_retries, 1);
    r->first_token_ns = 0;
    r->n_generated = 0;
    r->lost_side[0] = '\0';
    wait_again(d, r);
}

static void wait_for_room(td_dispatch *d, td_record *r)
{
    td_role full = strcmp(r->lost_side, "prefill") == 0 ? TD_ROLE_PREFILL : TD_ROLE_DECODE;
    r->worker[full]->full = true; /* until its next heartbeat */
    r->lost_side[0] = '\0';
    r->n_attempts--;
    wait_again(d, r);
}

static void on_stream_end(td_rpc_request *req, void *user, td_grpc_status status,
                          const char *message)
{
    td_record *r = user;
    td_dispatch *d = owner(r);
    (void)req;
    r->stream = NULL;
    switch (status) {
    case TD_GRPC_OK:
        if (r->finish_reason == NULL)
            end_record(d, r, TD_GRPC_INTERNAL, NULL, "decode ended the stream without a reason");
        else
            end_record(d, r, TD_GRPC_OK, r->finish_reason, "");
        return;
    case TD_GRPC_UNAVAILABLE: start_again_or_end(d, r, message); return;
    case TD_GRPC_RESOURCE_EXHAUSTED:
        if (r->n_generated == 0) { /* its admission was refused */
            wait_for_room(d, r);
            return;
        }
        break;
    default: break;
    }
    end_record(d, r, status, NULL, message);
}

static td_status keep_tokens(td_record *r, const uint32_t *ids, size_t n)
{
    if (n == 0)
        return TD_OK;
    if (r->n_generated + n > r->max_tokens)
        return TD_PROTOCOL;
    if (r->n_generated + n > r->generated_capacity) {
        size_t capacity = 2 * (r->n_generated + n);
        uint32_t *grown = realloc(r->generated, capacity * sizeof(*grown));
        if (grown == NULL)
            return TD_NOMEM;
        r->generated = grown;
        r->generated_capacity = (uint32_t)capacity;
    }
    memcpy(r->generated + r->n_generated, ids, n * sizeof(*ids));
    r->n_generated += (uint32_t)n;
    return TD_OK;
}

/* With the first token every page has been drawn: prefill has room for the next prompt. */
static void leave_prefill(td_dispatch *d, td_record *r)
{
    if (!r->claimed[TD_ROLE_PREFILL])
        return;
    td_worker_unclaim(r->worker[TD_ROLE_PREFILL], r->claim[TD_ROLE_PREFILL]);
    r->claimed[TD_ROLE_PREFILL] = false;
    td_task_defer(&d->pump);
}

static void on_event(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    td_record *r = user;
    td_dispatch *d = owner(r);
    ProtobufCMessage *message;
    td_err err;
    (void)req;
    if (td_message_unpack(&tandem__v1__decode_event__descriptor, msg, len, &message, &err) !=
        TD_OK) {
        end_record(d, r, TD_GRPC_INTERNAL, NULL, err.text);
        return;
    }
    Tandem__V1__DecodeEvent *event = (Tandem__V1__DecodeEvent *)message;
    if (event->failure != NULL) {
        snprintf(r->lost_side, sizeof(r->lost_side), "%s", event->failure->side);
    }
    r->n_drafted = event->drafted_tokens;
    r->n_accepted = event->accepted_tokens;
    r->admission_s = event->admission_s;
    r->prefill_s = event->prefill_s;
    r->transfer_s = event->transfer_s;
    td_status st = keep_tokens(r, event->token_ids, event->n_token_ids);
    uint32_t first = r->n_generated - (uint32_t)event->n_token_ids,
             n = (uint32_t)event->n_token_ids;
    if (event->finish_reason[0] != '\0')
        r->finish_reason = strcmp(event->finish_reason, "length") == 0 ? "length" : "stop";
    if (st == TD_OK && n > 0 && r->first_token_ns == 0) {
        r->first_token_ns = td_now_ns();
        leave_prefill(d, r);
    }
    if (st == TD_OK && n > 0)
        r->on_tokens(r, r->generated + first, n); /* may cancel the record: not used after this */
    tandem__v1__decode_event__free_unpacked(event, NULL);
    if (st != TD_OK)
        end_record(d, r, st == TD_NOMEM ? TD_GRPC_RESOURCE_EXHAUSTED : TD_GRPC_INTERNAL, NULL,
                   st == TD_NOMEM ? "no memory for tokens"
                                  : "decode sent more tokens than asked for");
}

/* ---- placing ---- */

static td_status start(td_record *r, td_err *err)
{
    Tandem__V1__Sampling sampling = TANDEM__V1__SAMPLING__INIT;
    sampling.temperature = r->sampling.temperature;
    sampling.top_p = r->sampling.top_p;
    sampling.top_k = r->sampling.top_k;
    sampling.seed = r->sampling.seed;
    sampling.min_tokens = r->sampling.min_tokens;
    sampling.n_stop_token_ids = r->sampling.n_stop_ids;
    sampling.stop_token_ids = r->sampling.stop_ids;
    Tandem__V1__DecodeRequest msg = TANDEM__V1__DECODE_REQUEST__INIT;
    msg.request_id = r->id;
    msg.n_token_ids = r->n_prompt;
    msg.token_ids = r->prompt;
    msg.max_tokens = r->max_tokens;
    msg.sampling = &sampling;
    msg.prefill_address = r->worker[TD_ROLE_PREFILL]->address;
    msg.prefill_incarnation = r->worker[TD_ROLE_PREFILL]->status->incarnation;
    td_rpc_header headers[] = {{"x-request-id", r->id}};
    td_rpc_request_args args = {
        .path = "/tandem.v1.Decode/Generate",
        .deadline_ns = r->deadline_ns,
        .headers = headers,
        .n_headers = 1,
        .on_message = on_event,
        .on_finish = on_stream_end,
        .user = r,
    };
    return td_message_start(r->worker[TD_ROLE_DECODE]->client, &args, &msg.base, &r->stream, err);
}

/* A ready pair with room; fills the record's claims. */
static bool find_pair(td_dispatch *d, td_record *r, td_worker *chosen[TD_N_ROLES])
{
    for (int role = 0; role < TD_N_ROLES; role++) {
        chosen[role] =
            td_registry_pick(d->conf.registry, (td_role)role, need_of(r), r->avoid[role]);
        if (chosen[role] == NULL)
            return false;
        r->claim[role] = td_worker_claim_of(chosen[role], need_of(r));
    }
    return true;
}

/* True: it runs now, or it has ended. */
static bool place(td_dispatch *d, td_record *r)
{
    td_worker *chosen[TD_N_ROLES];
    if (!find_pair(d, r, chosen))
        return false;
    queue_remove(d, r);
    r->state = TD_RECORD_RUNNING;
    r->n_attempts++;
    r->placed_ns = td_now_ns();
    d->running[d->n_running++] = r;
    td_metric_set(d->m_streams, d->n_running);
    for (int role = 0; role < TD_N_ROLES; role++) {
        r->worker[role] = chosen[role];
        r->served_by[role] = chosen[role];
        td_worker_claim(chosen[role], r->claim[role]);
        r->claimed[role] = true;
    }
    td_err err;
    switch (start(r, &err)) {
    case TD_OK: break;
    case TD_PEER_LOST: start_again_or_end(d, r, err.text); break;
    case TD_FULL: wait_for_room(d, r); break;
    default: end_record(d, r, td_grpc_from_status(err.status), NULL, err.text);
    }
    return true;
}

/* In order of arrival: a large request is not overtaken for ever by small ones. One that leaves a
 * worker out, or that no worker is ready for, does not hold up the others. */
static void place_queued(td_dispatch *d)
{
    end_misfits(d);
    for (td_record *r = d->head, *next; r != NULL; r = next) {
        next = r->next;
        bool special = r->avoid[TD_ROLE_PREFILL] != NULL || r->avoid[TD_ROLE_DECODE] != NULL;
        if (!place(d, r) && !special)
            break;
    }
}

static void pump(td_task *task, void *user)
{
    (void)task;
    place_queued(user);
}

void td_dispatch_pump(td_dispatch *d)
{
    if (d->head != NULL)
        td_task_defer(&d->pump);
}

td_status td_dispatch_submit(td_dispatch *d, td_record *r, td_err *err)
{
    td_status st = check_fits(d, r, err);
    if (st != TD_OK)
        goto refuse;
    if (d->n_running + d->n_queued >= d->conf.max_requests) {
        st = td_fail(err, TD_EXHAUSTED, "%u requests are active, the most there may be",
                     d->conf.max_requests);
        goto refuse;
    }
    td_timer_init(&r->timer, d->conf.loop, on_look, d);
    td_worker *chosen[TD_N_ROLES];
    if (d->n_queued > 0 && d->n_queued >= d->conf.queue_length)
        place_queued(d); /* those that only wait for the pump to come are no queue */
    if (d->n_queued >= d->conf.queue_length && (d->n_queued > 0 || !find_pair(d, r, chosen))) {
        st = td_fail(err, TD_EXHAUSTED, "no room now, and the queue of %u requests is full",
                     d->conf.queue_length);
        goto refuse;
    }
    td_role missing;
    queue_insert(d, r, false);
    note_pair(d, r, r->arrived_ns, &missing);
    arm_wait(d, r);
    td_task_defer(&d->pump);
    td_metric_set(d->m_active, d->n_queued + d->n_running);
    return TD_OK;
refuse:
    td_record_free(r);
    return st;
}

void td_dispatch_worker_lost(td_dispatch *d, td_worker *worker, const char *why)
{
    char text[600];
    snprintf(text, sizeof(text), "%s daemon %s: %.250s", td_role_name(worker->role),
             worker->address, why);
    if (worker->role ==
        TD_ROLE_DECODE) /* a lost prefill is decode's to notice: it may have its KV already */
        for (uint32_t i = d->n_running; i-- > 0;) {
            td_record *r = d->running[i];
            if (r->worker[TD_ROLE_DECODE] != worker)
                continue;
            td_rpc_request_cancel(r->stream);
            r->stream = NULL;
            start_again_or_end(d, r, text);
        }
    int64_t now = td_now_ns();
    for (td_record *r = d->head; r != NULL; r = r->next) {
        td_role missing;
        note_pair(d, r, now, &missing);
        arm_wait(d, r);
    }
    td_dispatch_pump(d); /* the one that is lost may have been the only one large enough */
}

td_status td_dispatch_create(const td_dispatch_conf *conf, td_dispatch **out, td_err *err)
{
    td_dispatch *d = calloc(1, sizeof(*d));
    if (d == NULL)
        goto fail;
    d->conf = *conf;
    d->running = calloc(conf->max_requests, sizeof(*d->running));
    if (d->running == NULL)
        goto fail;
    td_task_init(&d->pump, conf->loop, pump, d);
    d->m_active = td_metrics_get(conf->metrics, TD_GAUGE, "tandem_requests_active", "",
                                 "requests in the router, the waiting ones included");
    d->m_queued = td_metrics_get(conf->metrics, TD_GAUGE, "tandem_requests_queued", "",
                                 "requests that wait for a pair with room");
    d->m_streams = td_metrics_get(conf->metrics, TD_GAUGE, "tandem_streams_open", "",
                                  "streams to decode daemons");
    d->m_retries = td_metrics_get(conf->metrics, TD_COUNTER, "tandem_requests_retried_total", "",
                                  "requests started once more on another pair");
    *out = d;
    return TD_OK;
fail:
    td_dispatch_destroy(d);
    return td_fail(err, TD_NOMEM, "dispatch: no memory for %u requests", conf->max_requests);
}

void td_dispatch_destroy(td_dispatch *d)
{
    if (d == NULL)
        return;
    td_assert(d->n_running == 0 && d->n_queued == 0);
    if (d->conf.loop != NULL)
        td_task_cancel(&d->pump);
    free(d->running);
    free(d);
}

uint32_t td_dispatch_active(const td_dispatch *d)
{
    return d->n_queued + d->n_running;
}

uint32_t td_dispatch_queued(const td_dispatch *d)
{
    return d->n_queued;
}
