#include "router/check.h"

#include "model/tokenizer/utf8.h"
#include "proto/wire.h"

#include <math.h>
#include <string.h>

enum { FIELD_STOP = 10 }; /* GenerateRequest.stop */

td_status td_check_model(const td_model_info *info, const char *model, td_err *err)
{
    if (model[0] == '\0' || strcmp(model, info->name) == 0)
        return TD_OK;
    return td_fail(err, TD_NOT_FOUND, "model \"%.64s\" is not served here, \"%s\" is", model,
                   info->name);
}

static td_status check_floats(const Tandem__V1__GenerateRequest *req, td_record_sampling *out,
                              td_err *err)
{
    if (req->temperature_opt_case == TANDEM__V1__GENERATE_REQUEST__TEMPERATURE_OPT_TEMPERATURE)
        out->temperature = req->temperature;
    if (!isfinite(out->temperature) || out->temperature < 0.0f || out->temperature > 100.0f)
        return td_fail(err, TD_INVALID, "temperature is %g, must be in [0, 100]",
                       (double)out->temperature);
    if (req->top_p_opt_case == TANDEM__V1__GENERATE_REQUEST__TOP_P_OPT_TOP_P)
        out->top_p = req->top_p;
    if (!(out->top_p > 0.0f && out->top_p <= 1.0f))
        return td_fail(err, TD_INVALID, "top_p is %g, must be in (0, 1]", (double)out->top_p);
    return TD_OK;
}

td_status td_check_sampling(const td_model_info *info, const Tandem__V1__GenerateRequest *req,
                            td_record_sampling *out, bool *need_seed, td_err *err)
{
    td_record_sampling s = {.temperature = 1.0f, .top_p = 1.0f, .min_tokens = req->min_tokens};
    td_status st = check_floats(req, &s, err);
    if (st != TD_OK)
        return st;
    if (req->top_k_opt_case == TANDEM__V1__GENERATE_REQUEST__TOP_K_OPT_TOP_K)
        s.top_k = req->top_k < info->vocab_size ? req->top_k : 0; /* all of them is none */
    *need_seed = req->seed_opt_case != TANDEM__V1__GENERATE_REQUEST__SEED_OPT_SEED;
    if (!*need_seed)
        s.seed = req->seed;
    uint32_t n_eos = req->ignore_eos ? 0 : info->n_eos;
    if (req->n_stop_token_ids > TD_MAX_STOP_IDS - TD_MODEL_MAX_EOS)
        return td_fail(err, TD_INVALID, "stop_token_ids: %zu ids, at most %d",
                       req->n_stop_token_ids, TD_MAX_STOP_IDS - TD_MODEL_MAX_EOS);
    for (uint32_t i = 0; i < n_eos; i++)
        s.stop_ids[s.n_stop_ids++] = info->eos_ids[i];
    for (size_t i = 0; i < req->n_stop_token_ids; i++) {
        if (req->stop_token_ids[i] >= info->vocab_size)
            return td_fail(err, TD_INVALID,
                           "stop_token_ids[%zu] is %u, the vocabulary has %u tokens", i,
                           req->stop_token_ids[i], info->vocab_size);
        s.stop_ids[s.n_stop_ids++] = req->stop_token_ids[i];
    }
    *out = s;
    return TD_OK;
}

td_status td_check_stops(const void *msg, size_t len, td_stop_string *out, uint32_t *n_out,
                         td_err *err)
{
    uint32_t n = 0;
    size_t pos = 0, n_bytes;
    const char *bytes;
    while (td_wire_next_bytes(msg, len, FIELD_STOP, &pos, &bytes, &n_bytes)) {
        if (n == TD_EMITTER_MAX_STOPS)
            return td_fail(err, TD_INVALID, "stop: more than %d strings", TD_EMITTER_MAX_STOPS);
        if (n_bytes == 0 || n_bytes > TD_EMITTER_MAX_STOP_BYTES)
            return td_fail(err, TD_INVALID, "stop[%u] has %zu bytes, must have 1 to %d", n, n_bytes,
                           TD_EMITTER_MAX_STOP_BYTES);
        if (td_check_utf8("stop", bytes, n_bytes, err) != TD_OK)
            return TD_INVALID;
        out[n++] = (td_stop_string){bytes, n_bytes};
    }
    *n_out = n;
    return TD_OK;
}

td_status td_check_utf8(const char *what, const char *text, size_t n_bytes, td_err *err)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t len;
    for (size_t i = 0; i < n_bytes; i += len)
        if (td_utf8_step(p + i, n_bytes - i, &len) != TD_UTF8_OK)
            return td_fail(err, TD_INVALID, "%s is not UTF-8 at byte %zu", what, i);
    return TD_OK;
}

td_status td_check_ids(const td_model_info *info, const uint32_t *ids, size_t n, td_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= info->vocab_size)
            return td_fail(err, TD_INVALID, "token_ids[%zu] is %u, the vocabulary has %u tokens", i,
                           ids[i], info->vocab_size);
    return TD_OK;
}

td_status td_check_length(const td_model_info *info, const Tandem__V1__GenerateRequest *req,
                          size_t n_prompt, uint32_t default_max_tokens, uint32_t *max_tokens,
                          td_err *err)
{
    if (n_prompt == 0)
        return td_fail(err, TD_INVALID, "the prompt is empty");
    if (n_prompt >= info->context_length)
        return td_fail(
            err, TD_INVALID,
            "the prompt has %zu tokens: with one more it is longer than the context of %u",
            n_prompt, info->context_length);
    uint32_t room = info->context_length - (uint32_t)n_prompt;
    uint32_t wanted = room < default_max_tokens ? room : default_max_tokens;
    if (req->max_tokens_opt_case == TANDEM__V1__GENERATE_REQUEST__MAX_TOKENS_OPT_MAX_TOKENS)
        wanted = req->max_tokens;
    if (wanted == 0)
        return td_fail(err, TD_INVALID, "max_tokens is 0, must be at least 1");
    if (wanted > room)
        return td_fail(err, TD_INVALID,
                       "prompt (%zu tokens) and max_tokens (%u) exceed the context of %u", n_prompt,
                       wanted, info->context_length);
    if (req->min_tokens > wanted)
        return td_fail(err, TD_INVALID, "min_tokens (%u) exceeds max_tokens (%u)", req->min_tokens,
                       wanted);
    *max_tokens = wanted;
    return TD_OK;
}

td_status td_check_request_id(const char *header, char out[static TD_REQUEST_ID_MAX + 1],
                              td_err *err)
{
    if (header == NULL || header[0] == '\0') {
        td_request_id_make(out);
        return TD_OK;
    }
    size_t n = strlen(header);
    if (!td_request_id_valid(header, n))
        return td_fail(
            err, TD_INVALID,
            "x-request-id: must be 1 to %d letters, digits and -_.:~/+@=", TD_REQUEST_ID_MAX);
    memcpy(out, header, n + 1);
    return TD_OK;
}
