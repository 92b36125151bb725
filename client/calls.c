#include "client/client_internal.h"

#include "common/base/clock.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/tandem/v1/admin.pb-c.h"
#include "proto/tandem/v1/inference.pb-c.h"
#include "proto/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { /* fields whose bytes may hold NUL, which protobuf-c's strings cannot */
       GENERATE_TEXT = 2,
       GENERATE_STOP = 10,
       RESPONSE_TEXT = 1,
       TOKENIZE_TEXT = 2,
       DETOKENIZED_TEXT = 1,
};

typedef Tandem__V1__GenerateRequest generate_request;

/* ---- packing ---- */

typedef struct { /* a message that grows; bytes NULL: out of memory */
    unsigned char *bytes;
    size_t len;
} packed;

/* With room for n_more bytes. */
static packed pack(const ProtobufCMessage *message, size_t n_more)
{
    packed p = {NULL, protobuf_c_message_get_packed_size(message)};
    p.bytes = malloc(p.len + n_more + 1);
    if (p.bytes != NULL)
        protobuf_c_message_pack(message, p.bytes);
    return p;
}

static void append(packed *p, uint32_t field, td_client_bytes value)
{
    p->len += td_wire_put_bytes(p->bytes + p->len, field, value.bytes, value.n_bytes);
}

static char *text_or_empty(const char *text)
{
    return text != NULL ? (char *)text : (char *)"";
}

static td_client_code no_memory(td_client_error *err)
{
    td_call_fail(err, TD_CLIENT_RESOURCE_EXHAUSTED, "client: out of memory");
    return TD_CLIENT_RESOURCE_EXHAUSTED;
}

/* The value of a field that stands once in msg, as bytes; the last one counts. */
static td_client_bytes take_bytes(const void *msg, size_t len, uint32_t field)
{
    td_client_bytes value = {"", 0};
    size_t pos = 0, n;
    const char *bytes;
    while (td_wire_next_bytes(msg, len, field, &pos, &bytes, &n))
        value = (td_client_bytes){bytes, n};
    return value;
}

/* ---- calls with one answer ---- */

typedef struct {
    const ProtobufCMessageDescriptor *type; /* of the answer */
    uint32_t text_field;                    /* kept as bytes; 0: none */
    ProtobufCMessage *answer;               /* NULL: none came */
    char *text;                             /* [n_text + 1] */
    size_t n_text;
} unary;

static td_client_code on_unary(void *user, const void *msg, size_t len)
{
    unary *u = user;
    if (u->answer != NULL)
        return TD_CLIENT_INTERNAL;
    u->answer = protobuf_c_message_unpack(u->type, NULL, len, msg);
    if (u->answer == NULL)
        return TD_CLIENT_INTERNAL;
    if (u->text_field == 0)
        return TD_CLIENT_OK;
    td_client_bytes text = take_bytes(msg, len, u->text_field);
    u->text = malloc(text.n_bytes + 1);
    if (u->text == NULL)
        return TD_CLIENT_RESOURCE_EXHAUSTED;
    memcpy(u->text, text.bytes, text.n_bytes);
    u->text[text.n_bytes] = '\0';
    u->n_text = text.n_bytes;
    return TD_CLIENT_OK;
}

/* Takes over request's bytes. OK: u->answer (and u->text) are the caller's. */
static td_client_code ask(td_client *client, const char *path, packed request, unary *u,
                          td_client_error *err)
{
    if (request.bytes == NULL)
        return no_memory(err);
    td_client_call call = {
        .path = path, .msg = request.bytes, .len = request.len, .on_message = on_unary, .user = u};
    td_client_code code = td_call_run(client, &call, err);
    free(request.bytes);
    if (code == TD_CLIENT_OK && u->answer != NULL)
        return TD_CLIENT_OK;
    if (code == TD_CLIENT_OK) {
        code = TD_CLIENT_INTERNAL;
        td_call_fail(err, code, "%s: no answer came", path);
    }
    td_client_free_answer(u->answer);
    free(u->text);
    return code;
}

void td_client_free_answer(void *answer)
{
    if (answer != NULL)
        protobuf_c_message_free_unpacked(answer, NULL);
}

/* ---- Generate ---- */

typedef struct {
    const td_client_request *request;
    td_client_result *out;
    int64_t started_ns;
    bool finished; /* the last message has come */
} generation;

static packed pack_generate(const td_client_request *r)
{
    generate_request msg = TANDEM__V1__GENERATE_REQUEST__INIT;
    Tandem__V1__TokenIds ids = TANDEM__V1__TOKEN_IDS__INIT;
    size_t n_more = TD_WIRE_HEAD_BYTES + r->text.n_bytes;
    msg.model = text_or_empty(r->model);
    if (r->ids != NULL) {
        ids.n_ids = r->n_ids;
        ids.ids = (uint32_t *)r->ids;
        msg.input_case = TANDEM__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
        msg.token_ids = &ids;
    }
#define OPTIONAL(member, CASE)                                                                     \
    if (r->has_##member) {                                                                         \
        msg.member##_opt_case = TANDEM__V1__GENERATE_REQUEST__##CASE;                              \
        msg.member = r->member;                                                                    \
    }
    OPTIONAL(temperature, TEMPERATURE_OPT_TEMPERATURE)
    OPTIONAL(top_p, TOP_P_OPT_TOP_P)
    OPTIONAL(top_k, TOP_K_OPT_TOP_K)
    OPTIONAL(seed, SEED_OPT_SEED)
    OPTIONAL(max_tokens, MAX_TOKENS_OPT_MAX_TOKENS)
#undef OPTIONAL
    msg.min_tokens = r->min_tokens;
    msg.n_stop_token_ids = r->n_stop_ids;
    msg.stop_token_ids = (uint32_t *)r->stop_ids;
    msg.ignore_eos = r->ignore_eos;
    for (size_t i = 0; i < r->n_stops; i++)
        n_more += TD_WIRE_HEAD_BYTES + r->stops[i].n_bytes;
    packed p = pack(&msg.base, n_more);
    if (p.bytes == NULL)
        return p;
    if (r->ids == NULL)
        append(&p, GENERATE_TEXT, r->text);
    for (size_t i = 0; i < r->n_stops; i++)
        append(&p, GENERATE_STOP, r->stops[i]);
    return p;
}

static void on_generate_headers(void *user, td_rpc_request *req)
{
    td_client_result *out = ((generation *)user)->out;
    const char *id = td_rpc_request_header(req, "x-request-id");
    if (id != NULL)
        snprintf(out->request_id, sizeof(out->request_id), "%s", id);
}

static void take_last(generation *g, const Tandem__V1__GenerateResponse *res)
{
    td_client_result *out = g->out;
    g->finished = true;
    snprintf(out->finish_reason, sizeof(out->finish_reason), "%s", res->finish_reason);
    if (res->usage != NULL) {
        out->prompt_tokens = res->usage->prompt_tokens;
        out->generated_tokens = res->usage->generated_tokens;
        out->drafted_tokens = res->usage->drafted_tokens;
        out->accepted_tokens = res->usage->accepted_tokens;
    }
    if (res->timing != NULL) {
        out->queue_s = res->timing->queue_s;
        out->prefill_s = res->timing->prefill_s;
        out->transfer_s = res->timing->transfer_s;
        out->first_token_s = res->timing->first_token_s;
        out->total_s = res->timing->total_s;
    }
}

static td_client_code on_response(void *user, const void *msg, size_t len)
{
    generation *g = user;
    Tandem__V1__GenerateResponse *res =
        tandem__v1__generate_response__unpack(NULL, len, (const uint8_t *)msg);
    if (res == NULL || g->finished) {
        td_client_free_answer(res);
        return TD_CLIENT_INTERNAL;
    }
    bool go_on = true;
    td_client_piece piece = {take_bytes(msg, len, RESPONSE_TEXT), res->token_ids, res->n_token_ids};
    if (piece.text.n_bytes > 0 || piece.n_ids > 0) {
        if (g->out->n_pieces++ == 0)
            g->out->ttft_s = (double)(td_now_ns() - g->started_ns) / 1e9;
        g->out->n_ids += piece.n_ids;
        if (g->request->on_piece != NULL)
            go_on = g->request->on_piece(g->request->user, &piece);
    }
    if (res->finish_reason[0] != '\0')
        take_last(g, res);
    td_client_free_answer(res);
    return go_on ? TD_CLIENT_OK : TD_CLIENT_CANCELLED;
}

td_client_code td_client_generate(td_client *client, const td_client_request *request,
                                  td_client_result *out, td_client_error *err)
{
    generation g = {.request = request, .out = out, .started_ns = td_now_ns()};
    memset(out, 0, sizeof(*out));
    packed p = pack_generate(request);
    if (p.bytes == NULL)
        return no_memory(err);
    td_client_call call = {
        .path = "/tandem.v1.Inference/Generate",
        .msg = p.bytes,
        .len = p.len,
        .request_id = request->request_id,
        .on_headers = on_generate_headers,
        .on_message = on_response,
        .user = &g,
    };
    td_client_code code = td_call_run(client, &call, err);
    free(p.bytes);
    out->wall_s = (double)(td_now_ns() - g.started_ns) / 1e9;
    if (code == TD_CLIENT_OK && !g.finished)
        code = td_call_fail(err, TD_CLIENT_INTERNAL, "the stream ended without a last message");
    return code;
}

/* ---- the rest of Inference ---- */

td_client_code td_client_tokenize(td_client *client, const td_client_text *text, uint32_t **ids,
                                  size_t *n_ids, td_client_error *err)
{
    Tandem__V1__TokenizeRequest msg = TANDEM__V1__TOKENIZE_REQUEST__INIT;
    unary u = {.type = &tandem__v1__tokenize_response__descriptor};
    msg.model = text_or_empty(text->model);
    msg.no_special = text->no_special;
    packed p = pack(&msg.base, TD_WIRE_HEAD_BYTES + text->text.n_bytes);
    if (p.bytes != NULL)
        append(&p, TOKENIZE_TEXT, text->text);
    td_client_code code = ask(client, "/tandem.v1.Inference/Tokenize", p, &u, err);
    if (code != TD_CLIENT_OK)
        return code;
    Tandem__V1__TokenizeResponse *res = (Tandem__V1__TokenizeResponse *)u.answer;
    *ids = res->token_ids; /* protobuf-c's malloc: handed on */
    *n_ids = res->n_token_ids;
    res->token_ids = NULL;
    res->n_token_ids = 0;
    td_client_free_answer(res);
    return TD_CLIENT_OK;
}

td_client_code td_client_detokenize(td_client *client, const td_client_ids *ids, char **text,
                                    size_t *n_bytes, td_client_error *err)
{
    Tandem__V1__DetokenizeRequest msg = TANDEM__V1__DETOKENIZE_REQUEST__INIT;
    unary u = {.type = &tandem__v1__detokenize_response__descriptor,
               .text_field = DETOKENIZED_TEXT};
    msg.model = text_or_empty(ids->model);
    msg.token_ids = (uint32_t *)ids->ids;
    msg.n_token_ids = ids->n_ids;
    msg.keep_special = ids->keep_special;
    td_client_code code =
        ask(client, "/tandem.v1.Inference/Detokenize", pack(&msg.base, 0), &u, err);
    if (code != TD_CLIENT_OK)
        return code;
    *text = u.text;
    *n_bytes = u.n_text;
    td_client_free_answer(u.answer);
    return TD_CLIENT_OK;
}

td_client_code td_client_get_model(td_client *client, const char *model, td_client_model *out,
                                   td_client_error *err)
{
    Tandem__V1__GetModelRequest msg = TANDEM__V1__GET_MODEL_REQUEST__INIT;
    unary u = {.type = &tandem__v1__get_model_response__descriptor};
    msg.model = text_or_empty(model);
    td_client_code code = ask(client, "/tandem.v1.Inference/GetModel", pack(&msg.base, 0), &u, err);
    if (code != TD_CLIENT_OK)
        return code;
    const Tandem__V1__GetModelResponse *res = (Tandem__V1__GetModelResponse *)u.answer;
    memset(out, 0, sizeof(*out));
    snprintf(out->name, sizeof(out->name), "%s", res->model);
    out->vocab_size = res->vocab_size;
    out->context_length = res->context_length;
    out->default_max_tokens = res->default_max_tokens;
    out->bos_id = res->bos_token_id;
    out->has_tokenizer = res->has_tokenizer;
    for (size_t i = 0; i < res->n_eos_token_ids && i < 16; i++)
        out->eos_ids[out->n_eos++] = res->eos_token_ids[i];
    td_client_free_answer(u.answer);
    return TD_CLIENT_OK;
}

/* ---- Admin ---- */

td_client_code td_client_status(td_client *client, Tandem__V1__GetStatusResponse **out,
                                td_client_error *err)
{
    Tandem__V1__GetStatusRequest msg = TANDEM__V1__GET_STATUS_REQUEST__INIT;
    unary u = {.type = &tandem__v1__get_status_response__descriptor};
    td_client_code code = ask(client, "/tandem.v1.Admin/GetStatus", pack(&msg.base, 0), &u, err);
    if (code == TD_CLIENT_OK)
        *out = (Tandem__V1__GetStatusResponse *)u.answer;
    return code;
}

td_client_code td_client_list_links(td_client *client, Tandem__V1__ListLinksResponse **out,
                                    td_client_error *err)
{
    Tandem__V1__ListLinksRequest msg = TANDEM__V1__LIST_LINKS_REQUEST__INIT;
    unary u = {.type = &tandem__v1__list_links_response__descriptor};
    td_client_code code = ask(client, "/tandem.v1.Admin/ListLinks", pack(&msg.base, 0), &u, err);
    if (code == TD_CLIENT_OK)
        *out = (Tandem__V1__ListLinksResponse *)u.answer;
    return code;
}

td_client_code td_client_list_transfers(td_client *client, bool live_only,
                                        Tandem__V1__ListTransfersResponse **out,
                                        td_client_error *err)
{
    Tandem__V1__ListTransfersRequest msg = TANDEM__V1__LIST_TRANSFERS_REQUEST__INIT;
    unary u = {.type = &tandem__v1__list_transfers_response__descriptor};
    msg.live_only = live_only;
    td_client_code code =
        ask(client, "/tandem.v1.Admin/ListTransfers", pack(&msg.base, 0), &u, err);
    if (code == TD_CLIENT_OK)
        *out = (Tandem__V1__ListTransfersResponse *)u.answer;
    return code;
}

/* ---- health ---- */

td_client_code td_client_health(td_client *client, const char *service, td_client_serving *out,
                                td_client_error *err)
{
    Grpc__Health__V1__HealthCheckRequest msg = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    unary u = {.type = &grpc__health__v1__health_check_response__descriptor};
    msg.service = text_or_empty(service);
    td_client_code code = ask(client, "/grpc.health.v1.Health/Check", pack(&msg.base, 0), &u, err);
    if (code != TD_CLIENT_OK)
        return code;
    switch (((Grpc__Health__V1__HealthCheckResponse *)u.answer)->status) {
    case GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING:
        *out = TD_CLIENT_SERVING;
        break;
    case GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING:
        *out = TD_CLIENT_NOT_SERVING;
        break;
    default: *out = TD_CLIENT_HEALTH_UNKNOWN; break;
    }
    td_client_free_answer(u.answer);
    return TD_CLIENT_OK;
}
