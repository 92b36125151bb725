#include "prefill/service.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/version.h"
#include "common/serve/fingerprint.h"
#include "common/serve/message.h"
#include "proto/tandem/v1/prefill.pb-c.h"

#include <stdlib.h>
#include <string.h>

#define MAX_RENEWED 4096 /* the most that max-requests may be */

static td_status check_ready(const td_prefill_service *s, td_err *err)
{
    switch (td_serve_get_state(s->serve)) {
    case TD_SERVE_READY: return TD_OK;
    case TD_SERVE_DRAINING: return td_fail(err, TD_PEER_LOST, "prefill: draining");
    default: return td_fail(err, TD_PEER_LOST, "prefill: still starting");
    }
}

static td_status check_incarnation(const td_prefill_service *s, const char *meant, td_err *err)
{
    const char *ours = td_serve_incarnation(s->serve);
    if (strcmp(meant, ours) == 0)
        return TD_OK;
    return td_fail(err, TD_PEER_LOST,
                   "prefill: meant for incarnation \"%.16s\", this is %s: it restarted", meant,
                   ours);
}

/* ---- Connect ---- */

static void reply_connect(td_prefill_service *s, td_rpc_call *call)
{
    td_fingerprint_message fp;
    td_fingerprint_to_message(td_prefill_engine_fingerprint(s->engine), &fp);
    ProtobufCBinaryData descriptors[TD_PREFILL_MAX_RANKS];
    Tandem__V1__ConnectResponse res = TANDEM__V1__CONNECT_RESPONSE__INIT;
    res.incarnation = (char *)td_serve_incarnation(s->serve);
    res.build = (char *)td_version();
    res.n_fingerprint = fp.n;
    res.fingerprint = fp.pointers;
    res.ranks = s->conf->ranks;
    res.n_rank_descriptor = s->conf->ranks;
    res.rank_descriptor = descriptors;
    for (uint32_t r = 0; r < s->conf->ranks; r++) {
        size_t n;
        descriptors[r].data =
            (uint8_t *)td_xfer_descriptor(td_prefill_engine_xfer(s->engine, r), &n);
        descriptors[r].len = n;
    }
    res.lease_ms = (uint32_t)s->conf->lease_ms;
    res.blob_bytes = td_prefill_engine_blob_bytes(s->engine);
    td_message_reply(call, &res.base);
}

static void on_connect(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_prefill_service *s = user;
    ProtobufCMessage *message = NULL;
    td_err err;
    td_status st = check_ready(s, &err);
    if (st == TD_OK)
        st = td_message_unpack(&tandem__v1__connect_request__descriptor, msg, len, &message, &err);
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    const Tandem__V1__ConnectRequest *req = (const Tandem__V1__ConnectRequest *)message;
    td_fingerprint theirs;
    char diff[400];
    st = td_fingerprint_from_message(req->fingerprint, req->n_fingerprint, &theirs, &err);
    if (st == TD_OK && td_fingerprint_diff(td_prefill_engine_fingerprint(s->engine), &theirs, diff,
                                           sizeof(diff)) > 0)
        st = td_fail(&err, TD_PRECONDITION, "prefill and decode do not match (ours: prefill): %s",
                     diff);
    if (st == TD_OK && req->prefill_incarnation[0] != '\0')
        st = check_incarnation(s, req->prefill_incarnation, &err);
    if (st == TD_OK)
        st = td_prefill_readers_note(&s->readers, req->incarnation, req->address,
                                     td_rpc_call_peer(call), &err);
    if (st == TD_OK) {
        td_info("peer.connect", "peer=%.200s remote=%s incarnation=%s build=%.40s", req->address,
                td_rpc_call_peer(call), req->incarnation, req->build);
        reply_connect(s, call);
    } else {
        td_warn("peer.refuse", "peer=%.200s why=\"%s\"", req->address, err.text);
        td_rpc_call_fail(call, &err);
    }
    protobuf_c_message_free_unpacked(message, NULL);
}

/* ---- Prefill ---- */

static td_status read_sampling(const td_prefill_service *s, const Tandem__V1__Sampling *m,
                               td_sampling *out, td_err *err)
{
    td_sampling_init(out);
    if (m == NULL)
        return td_fail(err, TD_INVALID, "prefill: no sampling parameters");
    if (m->n_stop_token_ids > TD_SAMPLING_MAX_FORBID)
        return td_fail(err, TD_INVALID, "prefill: %zu stop ids, at most %d", m->n_stop_token_ids,
                       TD_SAMPLING_MAX_FORBID);
    if (m->top_k > INT32_MAX || m->min_tokens > INT32_MAX)
        return td_fail(err, TD_INVALID, "prefill: top_k or min_tokens is out of bounds");
    out->temperature = m->temperature;
    out->top_p = m->top_p;
    out->top_k = (int32_t)m->top_k;
    out->seed = m->seed;
    out->min_tokens = (int32_t)m->min_tokens;
    out->n_forbid = (int32_t)m->n_stop_token_ids;
    for (size_t i = 0; i < m->n_stop_token_ids; i++)
        out->forbid[i] = (int32_t)m->stop_token_ids[i];
    return td_sampling_check(out, td_prefill_engine_config(s->engine)->vocab_size, err);
}

static td_status check_prompt(const td_prefill_service *s, const Tandem__V1__PrefillRequest *req,
                              td_err *err)
{
    const td_model_config *config = td_prefill_engine_config(s->engine);
    if (!td_request_id_valid(req->request_id, strlen(req->request_id)))
        return td_fail(err, TD_INVALID, "prefill: bad request id");
    if (req->n_token_ids == 0 || req->n_token_ids > (size_t)config->max_positions)
        return td_fail(err, TD_INVALID, "prefill: %zu prompt tokens, must be 1 to %d",
                       req->n_token_ids, config->max_positions);
    for (size_t i = 0; i < req->n_token_ids; i++)
        if (req->token_ids[i] >= (uint32_t)config->vocab_size)
            return td_fail(err, TD_INVALID,
                           "prefill: token_ids[%zu] is %u, the vocabulary has %d tokens", i,
                           req->token_ids[i], config->vocab_size);
    if (req->want_draft && td_prefill_engine_layout(s->engine)->draft_layer < 0)
        return td_fail(err, TD_INVALID, "prefill: the model has no draft layer");
    return TD_OK;
}

static td_status take_prompt(td_prefill_service *s, td_rpc_call *call,
                             const Tandem__V1__PrefillRequest *req, td_err *err)
{
    td_sampling sampling;
    td_prefill_reader *reader = td_prefill_readers_find(&s->readers, req->decode_incarnation);
    td_status st = check_incarnation(s, req->incarnation, err);
    if (st == TD_OK && reader == NULL) /* the decode daemon shakes hands anew when it hears this */
        st = td_fail(err, TD_PRECONDITION, "prefill: decode daemon %.16s has not connected",
                     req->decode_incarnation);
    if (st == TD_OK && td_rpc_call_deadline_ns(call) == 0)
        st = td_fail(err, TD_INVALID, "prefill: a prompt needs a deadline (grpc-timeout)");
    if (st == TD_OK)
        st = check_prompt(s, req, err);
    if (st == TD_OK)
        st = read_sampling(s, req->sampling, &sampling, err);
    if (st != TD_OK)
        return st;
    td_prompt_args args = {.id = req->request_id,
                           .reader = reader,
                           .number = req->number,
                           .call = call,
                           .tokens = req->token_ids,
                           .n_tokens = req->n_token_ids,
                           .sampling = &sampling,
                           .want_draft = req->want_draft};
    reader->seen_ns = td_now_ns();
    return td_prompts_add(s->prompts, &args, err);
}

static void on_prefill(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_prefill_service *s = user;
    ProtobufCMessage *message = NULL;
    td_err err;
    td_status st = check_ready(s, &err);
    if (st == TD_OK)
        st = td_message_unpack(&tandem__v1__prefill_request__descriptor, msg, len, &message, &err);
    if (st == TD_OK) {
        st = take_prompt(s, call, (const Tandem__V1__PrefillRequest *)message, &err);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    if (st == TD_TOO_LARGE)
        td_rpc_call_finish(call, TD_GRPC_OUT_OF_RANGE,
                           err.text); /* never fits: no reason to wait for room */
    else if (st != TD_OK)
        td_rpc_call_fail(call, &err);
}

static void on_prefill_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    td_prefill_service *s = user;
    if (s->prompts != NULL)
        td_prompts_call_gone(s->prompts, call, why);
}

/* ---- Release and Renew ---- */

static void on_release(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_prefill_service *s = user;
    ProtobufCMessage *message;
    td_err err;
    if (td_message_unpack(&tandem__v1__release_request__descriptor, msg, len, &message, &err) !=
        TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    const Tandem__V1__ReleaseRequest *req = (const Tandem__V1__ReleaseRequest *)message;
    td_status st = check_incarnation(s, req->incarnation, &err);
    if (st == TD_OK && s->prompts != NULL)
        td_prompts_release(s->prompts, req->decode_incarnation, req->number);
    protobuf_c_message_free_unpacked(message, NULL);
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    Tandem__V1__ReleaseResponse res = TANDEM__V1__RELEASE_RESPONSE__INIT;
    res.incarnation = (char *)td_serve_incarnation(s->serve);
    td_message_reply(call, &res.base);
}

static void reply_renewed(td_prefill_service *s, td_rpc_call *call,
                          const Tandem__V1__RenewRequest *req)
{
    Tandem__V1__RenewResponse res = TANDEM__V1__RENEW_RESPONSE__INIT;
    res.incarnation = (char *)td_serve_incarnation(s->serve);
    res.unknown = calloc(req->n_numbers + 1, sizeof(*res.unknown));
    if (res.unknown == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "prefill: no memory for the answer");
        return;
    }
    for (size_t i = 0; i < req->n_numbers; i++)
        if (s->prompts == NULL ||
            !td_prompts_renew(s->prompts, req->decode_incarnation, req->numbers[i]))
            res.unknown[res.n_unknown++] = req->numbers[i];
    td_message_reply(call, &res.base);
    free(res.unknown);
}

static void on_renew(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_prefill_service *s = user;
    ProtobufCMessage *message;
    td_err err;
    if (td_message_unpack(&tandem__v1__renew_request__descriptor, msg, len, &message, &err) !=
        TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    const Tandem__V1__RenewRequest *req = (const Tandem__V1__RenewRequest *)message;
    td_status st = check_incarnation(s, req->incarnation, &err);
    if (st == TD_OK && req->n_numbers > MAX_RENEWED)
        st = td_fail(&err, TD_INVALID, "prefill: more numbers than max-requests");
    if (st == TD_OK)
        reply_renewed(s, call, req);
    else
        td_rpc_call_fail(call, &err);
    protobuf_c_message_free_unpacked(message, NULL);
}

void td_prefill_methods(td_prefill_service *s, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/tandem.v1.Prefill/Connect",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_connect,
                              .user = s};
    rows[1] = (td_rpc_method){.path = "/tandem.v1.Prefill/Prefill",
                              .kind = TD_RPC_SERVER_STREAMING,
                              .on_message = on_prefill,
                              .on_cancelled = on_prefill_cancelled,
                              .user = s};
    rows[2] = (td_rpc_method){.path = "/tandem.v1.Prefill/Release",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_release,
                              .user = s};
    rows[3] = (td_rpc_method){.path = "/tandem.v1.Prefill/Renew",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_renew,
                              .user = s};
}
