#include "router/front.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/message.h"
#include "proto/wire.h"
#include "router/call_id.h"
#include "router/check.h"
#include "router/front_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

typedef Tandem__V1__GenerateRequest generate_request;
typedef Tandem__V1__GenerateResponse generate_response;

/* A request ends this long before its client's deadline when it still waits for room, so that the
 * client hears why. */
#define ANSWER_MARGIN_NS (100 * TD_NS_PER_MS)

struct td_front {
    td_front_conf conf;
    td_text_service text;
    bool draining;
    uint32_t n_active;
    td_metric *m_active, *m_ok, *m_failed, *m_tokens, *m_prompt_tokens, *m_ttft;
};

/* One Generate call. Ends by finish() or on_cancelled(). */
typedef struct {
    td_front *front;
    td_rpc_call *call;
    td_record *record; /* NULL while the text is tokenised */
    td_tokenising *tokenising;
    char *stops;           /* the stop strings' bytes, owned */
    generate_request *req; /* until the record is made */
    td_emitter emitter;
    td_record_sampling sampling;
    char id[TD_REQUEST_ID_MAX + 1];
    int64_t arrived_ns, deadline_ns;
    uint32_t n_prompt;
    bool timed; /* its time to the first token has been observed */
} generation;

static void generation_free(generation *g)
{
    g->front->n_active--;
    td_metric_set(g->front->m_active, g->front->n_active);
    td_emitter_fini(&g->emitter);
    if (g->req != NULL)
        tandem__v1__generate_request__free_unpacked(g->req, NULL);
    free(g->stops);
    free(g);
}

static const char *served_by(const td_record *r, td_role role)
{
    return r != NULL && r->served_by[role] != NULL ? r->served_by[role]->address : "-";
}

static void log_end(const generation *g, const char *status, const char *why)
{
    const td_record *r = g->record;
    int64_t to_first = r != NULL && r->first_token_ns != 0 ? r->first_token_ns - g->arrived_ns : 0;
    td_info("request.done",
            "req=%s status=%s prompt_tokens=%u generated_tokens=%u drafted=%u accepted=%u "
            "ttft_ms=%.1f total_ms=%.1f prefill=%s decode=%s why=\"%.300s\"",
            g->id, status, g->n_prompt, g->emitter.n_seen, r != NULL ? r->n_drafted : 0,
            r != NULL ? r->n_accepted : 0, (double)to_first / 1e6,
            (double)(td_now_ns() - g->arrived_ns) / 1e6, served_by(r, TD_ROLE_PREFILL),
            served_by(r, TD_ROLE_DECODE), why);
}

static void fail_generation(generation *g, td_grpc_status status, const char *message)
{
    td_metric_add(g->front->m_failed, 1);
    log_end(g, td_grpc_status_name(status), message);
    td_rpc_call_finish(g->call, status, message);
    generation_free(g);
}

/* What can never be done is no reason to try again, as RESOURCE_EXHAUSTED would be. */
static void refuse_generation(generation *g, td_status st, const char *message)
{
    fail_generation(g, st == TD_TOO_LARGE ? TD_GRPC_OUT_OF_RANGE : td_grpc_from_status(st),
                    message);
}

/* ---- answers ---- */

static td_status send_response(generation *g, const generate_response *res, const char *text,
                               size_t n_text)
{
    size_t n_rest = tandem__v1__generate_response__get_packed_size(res);
    unsigned char stack[1024];
    size_t capacity = n_rest + n_text + TD_WIRE_HEAD_BYTES;
    unsigned char *bytes = capacity <= sizeof(stack) ? stack : malloc(capacity);
    if (bytes == NULL)
        return TD_NOMEM;
    size_t n = tandem__v1__generate_response__pack(res, bytes);
    if (n_text > 0)
        n += td_wire_put_bytes(bytes + n, 1, text, n_text); /* text: may hold U+0000 */
    td_status st = td_rpc_call_send(g->call, bytes, n);
    if (bytes != stack)
        free(bytes);
    return st;
}

/* Sends what may be shown. TD_EXHAUSTED and TD_CANCELLED are followed by on_cancelled. */
static td_status send_ready(generation *g)
{
    generate_response res = TANDEM__V1__GENERATE_RESPONSE__INIT;
    const char *text;
    const uint32_t *ids;
    size_t n_text;
    uint32_t n_ids;
    td_emitter_ready(&g->emitter, &text, &n_text, &ids, &n_ids);
    if (n_text == 0 && n_ids == 0)
        return TD_OK;
    res.token_ids = (uint32_t *)ids;
    res.n_token_ids = n_ids;
    td_status st = send_response(g, &res, text, n_text);
    td_emitter_shown(&g->emitter);
    g->record->streamed = true;
    return st;
}

static void fill_timing(const generation *g, Tandem__V1__Timing *t)
{
    const td_record *r = g->record;
    double to_first =
        r->first_token_ns == 0 ? 0.0 : (double)(r->first_token_ns - g->arrived_ns) / 1e9;
    t->queue_s = (double)(r->placed_ns - g->arrived_ns) / 1e9 + r->admission_s;
    t->prefill_s = r->prefill_s;
    t->transfer_s = r->transfer_s;
    t->first_token_s = to_first - t->queue_s - t->prefill_s - t->transfer_s;
    if (t->first_token_s < 0.0)
        t->first_token_s = 0.0; /* clocks of two processes */
    t->total_s = (double)(td_now_ns() - g->arrived_ns) / 1e9;
}

static void finish_generation(generation *g, const char *reason)
{
    const td_record *r = g->record;
    Tandem__V1__Usage usage = TANDEM__V1__USAGE__INIT;
    Tandem__V1__Timing timing = TANDEM__V1__TIMING__INIT;
    generate_response res = TANDEM__V1__GENERATE_RESPONSE__INIT;
    usage.prompt_tokens = g->n_prompt;
    usage.generated_tokens = g->emitter.n_seen;
    usage.drafted_tokens = r->n_drafted;
    usage.accepted_tokens = r->n_accepted;
    fill_timing(g, &timing);
    res.finish_reason = (char *)reason;
    res.usage = &usage;
    res.timing = &timing;
    const char *text;
    const uint32_t *ids;
    size_t n_text;
    uint32_t n_ids;
    td_emitter_ready(&g->emitter, &text, &n_text, &ids, &n_ids);
    res.token_ids = (uint32_t *)ids;
    res.n_token_ids = n_ids;
    td_status st = send_response(g, &res, text, n_text);
    if (st != TD_OK) { /* without its last message no answer is a success */
        fail_generation(g, td_grpc_from_status(st), td_status_text(st));
        return;
    }
    td_metric_add(g->front->m_ok, 1);
    td_metric_add(g->front->m_tokens, g->emitter.n_seen);
    td_metric_add(g->front->m_prompt_tokens, g->n_prompt);
    log_end(g, "OK", "");
    td_rpc_call_finish(g->call, TD_GRPC_OK, NULL);
    generation_free(g);
}

/* Tokens of the present attempt; of an earlier one the client has seen nothing. */
static td_status take_tokens(generation *g, const uint32_t *ids, uint32_t n)
{
    td_status st = TD_OK;
    if (!g->timed)
        td_metric_observe(g->front->m_ttft,
                          (double)(g->record->first_token_ns - g->arrived_ns) / 1e9);
    g->timed = true;
    if (g->record->n_generated == n && g->emitter.n_seen > 0)
        td_emitter_restart(&g->emitter);
    for (uint32_t i = 0; i < n && st == TD_OK && !g->emitter.stopped; i++)
        st = td_emitter_push(&g->emitter, ids[i]);
    return st;
}

static void on_tokens(td_record *record, const uint32_t *ids, uint32_t n)
{
    generation *g = record->user;
    td_dispatch *dispatch = g->front->conf.dispatch;
    td_status st = take_tokens(g, ids, n);
    if (st == TD_OK && g->emitter.stopped) {
        finish_generation(g, "stop");
        td_dispatch_cancel(dispatch, record);
        return;
    }
    if (st == TD_OK)
        st = send_ready(g);
    if (st == TD_NOMEM || st == TD_TOO_LARGE) { /* a piece would be missing */
        fail_generation(g, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for text");
        td_dispatch_cancel(dispatch, record);
    }
}

static void on_end(td_record *record, const td_outcome *outcome)
{
    generation *g = record->user;
    if (outcome->status != TD_GRPC_OK) {
        fail_generation(g, outcome->status, outcome->message);
        return;
    }
    if (td_emitter_finish(&g->emitter) != TD_OK)
        fail_generation(g, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for text");
    else
        finish_generation(g, outcome->finish_reason);
}

/* ---- a request's way in ---- */

static td_status draw_seed(uint64_t *seed, td_err *err)
{
    if (getrandom(seed, sizeof(*seed), 0) != (ssize_t)sizeof(*seed))
        return td_fail(err, TD_INTERNAL, "no random bytes for a seed");
    return TD_OK;
}

/* prompt: malloc'ed, taken over in any case. */
static td_status submit(generation *g, uint32_t *prompt, size_t n_prompt, td_err *err)
{
    td_front *f = g->front;
    uint32_t max_tokens;
    td_status st = td_check_length(f->conf.model, g->req, n_prompt, f->conf.default_max_tokens,
                                   &max_tokens, err);
    td_record *r = st == TD_OK ? calloc(1, sizeof(*r)) : NULL;
    if (r == NULL) {
        free(prompt);
        return st != TD_OK ? st : td_fail(err, TD_NOMEM, "no memory for the request");
    }
    memcpy(r->id, g->id, sizeof(r->id));
    r->prompt = prompt;
    r->n_prompt = (uint32_t)n_prompt;
    r->max_tokens = max_tokens;
    r->sampling = g->sampling;
    r->arrived_ns = g->arrived_ns;
    int64_t left = g->deadline_ns - g->arrived_ns;
    int64_t margin = left / 20 < ANSWER_MARGIN_NS ? left / 20 : ANSWER_MARGIN_NS;
    r->deadline_ns = g->deadline_ns - margin;
    r->on_tokens = on_tokens;
    r->on_end = on_end;
    r->user = g;
    tandem__v1__generate_request__free_unpacked(g->req, NULL);
    g->req = NULL;
    g->n_prompt = (uint32_t)n_prompt;
    g->record = r;
    st = td_dispatch_submit(f->conf.dispatch, r, err);
    if (st != TD_OK)
        g->record = NULL;
    return st;
}

static void on_tokenised(void *user, td_status st, int32_t *ids, size_t n, const td_err *why)
{
    generation *g = user;
    td_err err;
    g->tokenising = NULL;
    if (st == TD_OK)
        st = submit(g, (uint32_t *)ids, n, &err);
    else
        err = *why;
    if (st != TD_OK)
        refuse_generation(g, st, err.text);
}

/* msg: the request's bytes; text may hold U+0000. The generation may have ended when it returns
 * TD_OK. */
static td_status take_input(generation *g, const void *msg, size_t len, td_err *err)
{
    td_front *f = g->front;
    switch (g->req->input_case) {
    case TANDEM__V1__GENERATE_REQUEST__INPUT_TEXT: {
        size_t pos = 0, n_text = 0, n;
        const char *text = "", *bytes;
        while (td_wire_next_bytes(msg, len, 2, &pos, &bytes, &n)) {
            text = bytes;
            n_text = n;
        }
        td_text_job job = {.model = f->conf.model,
                           .loop = f->conf.loop,
                           .pooled_bytes = &f->text.pooled_bytes,
                           .text = text,
                           .n_bytes = n_text,
                           .flags = TD_ENCODE_SPECIAL,
                           .done = on_tokenised,
                           .user = g};
        return td_text_tokenise(&job, &g->tokenising, err);
    }
    case TANDEM__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS: {
        size_t n = g->req->token_ids->n_ids;
        td_status st = td_check_ids(f->conf.model, g->req->token_ids->ids, n, err);
        if (st != TD_OK)
            return st;
        uint32_t *prompt = g->req->token_ids->ids; /* protobuf-c's malloc: taken over */
        g->req->token_ids->ids = NULL;
        g->req->token_ids->n_ids = 0;
        return submit(g, prompt, n, err);
    }
    default: return td_fail(err, TD_INVALID, "input: one of text and token_ids is required");
    }
}

/* The emitter's own copy: the request's bytes go when the call that brought them returns. */
static td_status keep_stops(generation *g, const td_stop_string *stops, uint32_t n, td_err *err)
{
    size_t n_bytes = 0, at = 0;
    for (uint32_t i = 0; i < n; i++)
        n_bytes += stops[i].n_bytes;
    if (n == 0)
        return TD_OK;
    g->stops = malloc(n_bytes);
    if (g->stops == NULL)
        return td_fail(err, TD_NOMEM, "no memory for the request");
    for (uint32_t i = 0; i < n; at += stops[i++].n_bytes) {
        memcpy(g->stops + at, stops[i].bytes, stops[i].n_bytes);
        g->emitter.stops[i] = (td_stop_string){g->stops + at, stops[i].n_bytes};
    }
    g->emitter.n_stops = n;
    return TD_OK;
}

static td_status check_request(generation *g, const void *msg, size_t len, td_err *err)
{
    td_front *f = g->front;
    bool need_seed;
    td_stop_string stops[TD_EMITTER_MAX_STOPS];
    uint32_t n_stops;
    if (f->draining)
        return td_fail(err, TD_PEER_LOST, "the router is draining");
    if (f->n_active > f->conf.max_requests)
        return td_fail(err, TD_EXHAUSTED, "%u requests are active, the most there may be",
                       f->conf.max_requests);
    ProtobufCMessage *message;
    td_status st =
        td_message_unpack(&tandem__v1__generate_request__descriptor, msg, len, &message, err);
    if (st != TD_OK)
        return st;
    g->req = (generate_request *)message;
    st = td_check_model(f->conf.model, g->req->model, err);
    if (st == TD_OK)
        st = td_check_sampling(f->conf.model, g->req, &g->sampling, &need_seed, err);
    if (st == TD_OK)
        st = td_check_stops(msg, len, stops, &n_stops, err);
    if (st == TD_OK && n_stops > 0 && f->conf.model->tokenizer == NULL)
        st = td_fail(err, TD_INVALID, "stop: the model has no tokenizer, only stop_token_ids work");
    if (st == TD_OK && need_seed)
        st = draw_seed(&g->sampling.seed, err);
    if (st != TD_OK)
        return st;
    td_emitter_init(&g->emitter, f->conf.model->tokenizer, g->req->min_tokens);
    return keep_stops(g, stops, n_stops, err);
}

static void on_generate(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_front *f = user;
    generation *g = calloc(1, sizeof(*g));
    if (g == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the request");
        return;
    }
    g->front = f;
    g->call = call;
    g->arrived_ns = td_now_ns();
    g->deadline_ns = g->arrived_ns + f->conf.request_timeout_ms * TD_NS_PER_MS;
    int64_t asked = td_rpc_call_deadline_ns(call);
    if (asked != 0 && asked < g->deadline_ns)
        g->deadline_ns = asked;
    f->n_active++;
    td_metric_set(f->m_active, f->n_active);
    td_rpc_call_set_data(call, g);
    td_err err;
    td_status st = td_call_id_take(call, g->id, &err);
    if (st == TD_OK)
        st = check_request(g, msg, len, &err);
    if (st == TD_OK)
        st = take_input(g, msg, len, &err);
    if (st != TD_OK)
        refuse_generation(g, st, err.text);
}

static void on_generate_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    generation *g = td_rpc_call_data(call);
    (void)user;
    if (g == NULL)
        return;
    td_metric_add(g->front->m_failed, 1);
    log_end(g, td_grpc_status_name(why), "the client's side ended it");
    td_text_cancel(g->tokenising);
    if (g->record != NULL)
        td_dispatch_cancel(g->front->conf.dispatch, g->record);
    generation_free(g);
}

static void on_get_model(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_front *f = user;
    const td_model_info *m = f->conf.model;
    ProtobufCMessage *message;
    td_err err;
    if (!td_call_id_echo(call))
        return;
    td_status st =
        td_message_unpack(&tandem__v1__get_model_request__descriptor, msg, len, &message, &err);
    if (st == TD_OK) {
        st = td_check_model(m, ((Tandem__V1__GetModelRequest *)message)->model, &err);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    Tandem__V1__GetModelResponse res = TANDEM__V1__GET_MODEL_RESPONSE__INIT;
    res.model = m->name;
    res.vocab_size = m->vocab_size;
    res.context_length = m->context_length;
    res.n_eos_token_ids = m->n_eos;
    res.eos_token_ids = (uint32_t *)m->eos_ids;
    res.bos_token_id = m->bos_id;
    res.has_tokenizer = m->tokenizer != NULL;
    res.default_max_tokens = f->conf.default_max_tokens;
    td_message_reply(call, &res.base);
}

td_status td_front_create(const td_front_conf *conf, td_front **out, td_err *err)
{
    td_front *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return td_fail(err, TD_NOMEM, "front: no memory");
    f->conf = *conf;
    f->text = (td_text_service){.loop = conf->loop, .model = conf->model};
    f->m_active = td_metrics_get(conf->metrics, TD_GAUGE, "tandem_calls_active", "",
                                 "Generate calls that have not ended");
    f->m_ok = td_metrics_get(conf->metrics, TD_COUNTER, "tandem_requests_total", "status=\"ok\"",
                             "requests that ended, by outcome");
    f->m_failed = td_metrics_get(conf->metrics, TD_COUNTER, "tandem_requests_total",
                                 "status=\"failed\"", "requests that ended, by outcome");
    f->m_tokens = td_metrics_get(conf->metrics, TD_COUNTER, "tandem_generated_tokens_total", "",
                                 "tokens of requests that ended well");
    f->m_prompt_tokens = td_metrics_get(conf->metrics, TD_COUNTER, "tandem_prompt_tokens_total", "",
                                        "prompt tokens of requests that ended well");
    f->m_ttft = td_metrics_get(conf->metrics, TD_HISTOGRAM, "tandem_ttft_seconds", "",
                               "time from a request's arrival to its first token");
    *out = f;
    return TD_OK;
}

void td_front_destroy(td_front *f)
{
    if (f == NULL)
        return;
    td_assert(f->n_active == 0);
    free(f);
}

void td_front_drain(td_front *f)
{
    f->draining = true;
}

uint32_t td_front_active(const td_front *f)
{
    return f->n_active;
}

void td_front_methods(td_front *f, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/tandem.v1.Inference/Generate",
                              .kind = TD_RPC_SERVER_STREAMING,
                              .on_message = on_generate,
                              .on_cancelled = on_generate_cancelled,
                              .user = f};
    rows[1] = (td_rpc_method){.path = "/tandem.v1.Inference/GetModel",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_get_model,
                              .user = f};
    td_text_methods(&f->text, rows + 2);
}
