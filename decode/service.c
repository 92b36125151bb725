#include "decode/service.h"

#include "common/serve/message.h"
#include "proto/tandem/v1/decode.pb-c.h"

#include <string.h>

static td_status check_ready(const td_decode_service *s, td_err *err)
{
    switch (td_serve_get_state(s->serve)) {
    case TD_SERVE_READY: return TD_OK;
    case TD_SERVE_DRAINING: return td_fail(err, TD_PEER_LOST, "decode: draining");
    default: return td_fail(err, TD_PEER_LOST, "decode: still starting");
    }
}

static td_status check_prompt(const td_decode_service *s, const Tandem__V1__DecodeRequest *req,
                              td_err *err)
{
    const td_model_config *config = td_decode_engine_config(s->engine);
    size_t context = (size_t)config->max_positions;
    if (!td_request_id_valid(req->request_id, strlen(req->request_id)))
        return td_fail(err, TD_INVALID, "decode: bad request id");
    if (req->n_token_ids == 0 || req->max_tokens == 0)
        return td_fail(err, TD_INVALID,
                       "decode: %zu prompt tokens and max_tokens %u, each must be at least 1",
                       req->n_token_ids, req->max_tokens);
    if (req->n_token_ids > context || req->max_tokens > context - req->n_token_ids)
        return td_fail(err, TD_INVALID,
                       "decode: %zu prompt tokens and max_tokens %u exceed the context of %zu",
                       req->n_token_ids, req->max_tokens, context);
    for (size_t i = 0; i < req->n_token_ids; i++)
        if (req->token_ids[i] >= (uint32_t)config->vocab_size)
            return td_fail(err, TD_INVALID,
                           "decode: token_ids[%zu] is %u, the vocabulary has %d tokens", i,
                           req->token_ids[i], config->vocab_size);
    return TD_OK;
}

static td_status read_sampling(const td_decode_service *s, const Tandem__V1__Sampling *m,
                               td_sampling *out, td_err *err)
{
    td_sampling_init(out);
    if (m == NULL)
        return td_fail(err, TD_INVALID, "decode: no sampling parameters");
    if (m->n_stop_token_ids > TD_SAMPLING_MAX_FORBID)
        return td_fail(err, TD_INVALID, "decode: %zu stop ids, at most %d", m->n_stop_token_ids,
                       TD_SAMPLING_MAX_FORBID);
    if (m->top_k > INT32_MAX || m->min_tokens > INT32_MAX)
        return td_fail(err, TD_INVALID, "decode: top_k or min_tokens is out of bounds");
    out->temperature = m->temperature;
    out->top_p = m->top_p;
    out->top_k = (int32_t)m->top_k;
    out->seed = m->seed;
    out->min_tokens = (int32_t)m->min_tokens;
    out->n_forbid = (int32_t)m->n_stop_token_ids;
    for (size_t i = 0; i < m->n_stop_token_ids; i++)
        out->forbid[i] = (int32_t)m->stop_token_ids[i];
    return td_sampling_check(out, td_decode_engine_config(s->engine)->vocab_size, err);
}

static td_status take_request(td_decode_service *s, td_rpc_call *call,
                              const Tandem__V1__DecodeRequest *req, td_err *err)
{
    td_sampling sampling;
    if (td_rpc_call_deadline_ns(call) == 0)
        return td_fail(err, TD_INVALID, "decode: a request needs a deadline (grpc-timeout)");
    td_status st = check_prompt(s, req, err);
    if (st == TD_OK)
        st = read_sampling(s, req->sampling, &sampling, err);
    if (st != TD_OK)
        return st;
    td_request_args args = {.id = req->request_id,
                            .call = call,
                            .prompt = req->token_ids,
                            .n_prompt = req->n_token_ids,
                            .max_tokens = req->max_tokens,
                            .sampling = &sampling,
                            .prefill_address = req->prefill_address,
                            .prefill_incarnation = req->prefill_incarnation};
    return td_requests_admit(s->requests, &args, err);
}

static void on_generate(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_decode_service *s = user;
    ProtobufCMessage *message;
    td_err err;
    td_status st = check_ready(s, &err);
    if (st == TD_OK)
        st = td_message_unpack(&tandem__v1__decode_request__descriptor, msg, len, &message, &err);
    if (st == TD_OK) {
        st = take_request(s, call, (const Tandem__V1__DecodeRequest *)message, &err);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    if (st == TD_TOO_LARGE)
        td_rpc_call_finish(call, TD_GRPC_OUT_OF_RANGE,
                           err.text); /* never fits: no reason to wait for room */
    else if (st != TD_OK)
        td_rpc_call_fail(call, &err);
}

static void on_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    td_decode_service *s = user;
    if (s->requests != NULL)
        td_requests_call_gone(s->requests, call, why);
}

void td_decode_methods(td_decode_service *s, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/tandem.v1.Decode/Generate",
                              .kind = TD_RPC_SERVER_STREAMING,
                              .on_message = on_generate,
                              .on_cancelled = on_cancelled,
                              .user = s};
}
