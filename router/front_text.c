#include "router/front_text.h"

#include "common/serve/message.h"
#include "proto/tandem/v1/inference.pb-c.h"
#include "proto/wire.h"
#include "router/call_id.h"
#include "router/check.h"

#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define INLINE_BYTES 8192 /* shorter texts take less time than a trip to the pool */
#define MAX_POOLED_BYTES ((size_t)64 << 20)

struct td_tokenising {
    uv_work_t work;
    td_text_job job; /* its text is copied behind this struct */
    bool cancelled;
    td_status st;
    td_err err;
    int32_t *ids;
    size_t n_ids;
    char text[]; /* [job.n_bytes] */
};

static void encode_on_pool(uv_work_t *work)
{
    td_tokenising *t = work->data;
    t->st = td_tokenizer_encode(t->job.model->tokenizer, t->job.text, t->job.n_bytes, t->job.flags,
                                &t->ids, &t->n_ids, &t->err);
}

static void after_encode(uv_work_t *work, int status)
{
    td_tokenising *t = work->data;
    *t->job.pooled_bytes -= t->job.n_bytes;
    if (status != 0)
        t->st = td_fail(&t->err, TD_CANCELLED, "tokenising was cancelled");
    if (t->cancelled)
        free(t->st == TD_OK ? t->ids : NULL);
    else
        t->job.done(t->job.user, t->st, t->ids, t->n_ids, &t->err);
    free(t);
}

static td_status check_text(const td_text_job *job, td_err *err)
{
    const td_model_info *m = job->model;
    if (m->tokenizer == NULL)
        return td_fail(err, TD_INVALID, "model \"%s\" has no tokenizer: send token_ids", m->name);
    if (job->n_bytes == 0)
        return td_fail(err, TD_INVALID, "the prompt is empty");
    size_t most = (size_t)td_tokenizer_describe(m->tokenizer)->max_text_bytes * m->context_length;
    if (job->n_bytes > most)
        return td_fail(err, TD_INVALID,
                       "the text has %zu bytes: more than a context of %u tokens can hold",
                       job->n_bytes, m->context_length);
    return td_check_utf8("the text", job->text, job->n_bytes, err);
}

td_status td_text_tokenise(const td_text_job *job, td_tokenising **out, td_err *err)
{
    *out = NULL;
    td_status st = check_text(job, err);
    if (st != TD_OK)
        return st;
    if (job->n_bytes <= INLINE_BYTES) {
        int32_t *ids;
        size_t n;
        st = td_tokenizer_encode(job->model->tokenizer, job->text, job->n_bytes, job->flags, &ids,
                                 &n, err);
        if (st == TD_OK)
            job->done(job->user, TD_OK, ids, n, NULL);
        return st;
    }
    if (*job->pooled_bytes > MAX_POOLED_BYTES)
        return td_fail(err, TD_EXHAUSTED, "%zu bytes of text are being tokenised already",
                       *job->pooled_bytes);
    td_tokenising *t = calloc(1, sizeof(*t) + job->n_bytes);
    if (t == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a text of %zu bytes", job->n_bytes);
    t->job = *job;
    t->job.text = memcpy(t->text, job->text, job->n_bytes);
    t->work.data = t;
    if (uv_queue_work(td_loop_uv(job->loop), &t->work, encode_on_pool, after_encode) != 0) {
        free(t);
        return td_fail(err, TD_INTERNAL, "the thread pool takes no work");
    }
    *job->pooled_bytes += job->n_bytes;
    *out = t;
    return TD_OK;
}

void td_text_cancel(td_tokenising *t)
{
    if (t != NULL)
        t->cancelled = true; /* after_encode() frees it */
}

/* ---- Tokenize and Detokenize ---- */

static void on_tokenized(void *user, td_status st, int32_t *ids, size_t n, const td_err *why)
{
    td_rpc_call *call = user;
    td_rpc_call_set_data(call, NULL);
    if (st != TD_OK) {
        td_rpc_call_fail(call, why);
        return;
    }
    Tandem__V1__TokenizeResponse res = TANDEM__V1__TOKENIZE_RESPONSE__INIT;
    res.token_ids = (uint32_t *)ids;
    res.n_token_ids = n;
    td_message_reply(call, &res.base);
    free(ids);
}

static void on_tokenize(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_text_service *s = user;
    ProtobufCMessage *message;
    td_err err;
    if (!td_call_id_echo(call))
        return;
    td_status st =
        td_message_unpack(&tandem__v1__tokenize_request__descriptor, msg, len, &message, &err);
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    Tandem__V1__TokenizeRequest *req = (Tandem__V1__TokenizeRequest *)message;
    size_t pos = 0, n;
    const char *bytes;
    td_text_job job = {.model = s->model,
                       .loop = s->loop,
                       .pooled_bytes = &s->pooled_bytes,
                       .text = "",
                       .flags = req->no_special ? 0 : TD_ENCODE_SPECIAL,
                       .done = on_tokenized,
                       .user = call};
    while (td_wire_next_bytes(msg, len, 2, &pos, &bytes, &n)) {
        job.text = bytes;
        job.n_bytes = n;
    }
    td_tokenising *t = NULL;
    st = td_check_model(s->model, req->model, &err);
    if (st == TD_OK)
        st = td_text_tokenise(&job, &t, &err);
    if (st != TD_OK)
        td_rpc_call_fail(call, &err);
    else if (t != NULL)
        td_rpc_call_set_data(call, t);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_tokenize_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    (void)user;
    (void)why;
    td_text_cancel(td_rpc_call_data(call));
}

static void reply_text(td_rpc_call *call, const char *text, size_t n_text)
{
    unsigned char *bytes = malloc(n_text + TD_WIRE_HEAD_BYTES);
    if (bytes == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the text");
        return;
    }
    size_t n = n_text > 0 ? td_wire_put_bytes(bytes, 1, text, n_text) : 0;
    td_rpc_call_reply(call, bytes, n);
    free(bytes);
}

static void on_detokenize(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    const td_text_service *s = user;
    ProtobufCMessage *message;
    td_err err;
    if (!td_call_id_echo(call))
        return;
    td_status st =
        td_message_unpack(&tandem__v1__detokenize_request__descriptor, msg, len, &message, &err);
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    Tandem__V1__DetokenizeRequest *req = (Tandem__V1__DetokenizeRequest *)message;
    char *text = NULL;
    size_t n_text = 0;
    st = td_check_model(s->model, req->model, &err);
    if (st == TD_OK && s->model->tokenizer == NULL)
        st = td_fail(&err, TD_INVALID, "model \"%s\" has no tokenizer", s->model->name);
    if (st == TD_OK && req->n_token_ids > s->model->context_length)
        st = td_fail(&err, TD_INVALID, "%zu token ids: more than a context of %u", req->n_token_ids,
                     s->model->context_length);
    if (st == TD_OK)
        st = td_check_ids(s->model, req->token_ids, req->n_token_ids, &err);
    if (st == TD_OK)
        st = td_tokenizer_decode(s->model->tokenizer, (const int32_t *)req->token_ids,
                                 req->n_token_ids, req->keep_special ? 0 : TD_DECODE_SKIP_SPECIAL,
                                 &text, &n_text, &err);
    protobuf_c_message_free_unpacked(message, NULL);
    if (st != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    reply_text(call, text, n_text);
    free(text);
}

void td_text_methods(td_text_service *service, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/tandem.v1.Inference/Tokenize",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_tokenize,
                              .on_cancelled = on_tokenize_cancelled,
                              .user = service};
    rows[1] = (td_rpc_method){.path = "/tandem.v1.Inference/Detokenize",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_detokenize,
                              .user = service};
}
