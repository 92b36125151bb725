/* conf.h - the router's knobs. */
#ifndef TD_ROUTER_CONF_H
#define TD_ROUTER_CONF_H
#include "common/base/conf.h"

#include <stdbool.h>

typedef struct {
    char *listen, *admin;
    bool allow_plaintext;
    char *model, *model_name;
    td_conf_list prefill_workers, decode_workers;
    uint32_t queue_length;
    uint32_t max_requests;
    uint32_t default_max_tokens;
    int64_t request_timeout_ms;
    int64_t worker_wait_ms;
    int64_t heartbeat_ms;
    int64_t heartbeat_timeout_ms;
    int64_t drain_timeout_ms;
    uint64_t backlog_bytes;
    uint64_t max_message_bytes;
    int log_level;
} td_router_conf;

extern const td_conf_spec td_router_conf_spec;
#endif
