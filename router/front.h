/* front.h - tandem.v1.Inference over gRPC: Generate, Tokenize, Detokenize, GetModel. Long texts are
 * tokenised on libuv's thread pool, so that a large prompt delays nobody's heartbeat. Loop thread.
 */
#ifndef TD_ROUTER_FRONT_H
#define TD_ROUTER_FRONT_H
#include "router/dispatch.h"
#include "router/model_info.h"

#include "common/rpc/server.h"

#define TD_FRONT_N_METHODS 4

typedef struct td_front td_front;

typedef struct {
    td_loop *loop;
    td_dispatch *dispatch;
    const td_model_info *model;
    td_metrics *metrics;
    uint32_t default_max_tokens, max_requests;
    int64_t request_timeout_ms;
} td_front_conf;

td_status td_front_create(const td_front_conf *conf, td_front **out, td_err *err);
/* No call is left, and the loop is destroyed: until then a text whose call was cancelled may still
 * be with libuv's thread pool, and is counted here. NULL is fine. */
void td_front_destroy(td_front *front);
void td_front_methods(td_front *front, td_rpc_method *rows);
/* Refuse new Generate calls with UNAVAILABLE. */
void td_front_drain(td_front *front);
uint32_t td_front_active(const td_front *front); /* Generate calls that have not ended */
#endif
