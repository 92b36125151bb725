/* check.h - a GenerateRequest is judged here, before it costs anything: every refusal names the
 * field, what came and what would do. */
#ifndef TD_ROUTER_CHECK_H
#define TD_ROUTER_CHECK_H
#include "proto/tandem/v1/inference.pb-c.h"
#include "router/emitter.h"
#include "router/model_info.h"
#include "router/record.h"

/* model may be empty. TD_NOT_FOUND names what is served. */
td_status td_check_model(const td_model_info *info, const char *model, td_err *err);
/* Sampling parameters, stop ids and their bounds; fills record->sampling but the seed where absent
 * (*need_seed). */
td_status td_check_sampling(const td_model_info *info, const Tandem__V1__GenerateRequest *req,
                            td_record_sampling *out, bool *need_seed, td_err *err);
/* The stop strings of the serialised request; out's bytes point into msg. */
td_status td_check_stops(const void *msg, size_t len, td_stop_string *out, uint32_t *n_out,
                         td_err *err);
/* what: the field's name. TD_INVALID names the first byte that is not UTF-8. */
td_status td_check_utf8(const char *what, const char *text, size_t n_bytes, td_err *err);
td_status td_check_ids(const td_model_info *info, const uint32_t *ids, size_t n, td_err *err);
/* Prompt length against the context; fills *max_tokens (request's own, or the default cut at the
 * context's end). */
td_status td_check_length(const td_model_info *info, const Tandem__V1__GenerateRequest *req,
                          size_t n_prompt, uint32_t default_max_tokens, uint32_t *max_tokens,
                          td_err *err);
/* The client's x-request-id (NULL or empty: one is made), which must be td_request_id_valid(). */
td_status td_check_request_id(const char *header, char out[static TD_REQUEST_ID_MAX + 1],
                              td_err *err);
#endif
