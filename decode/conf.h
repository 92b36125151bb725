/* conf.h - the decode daemon's knobs. */
#ifndef TD_DECODE_CONF_H
#define TD_DECODE_CONF_H
#include "common/serve/worker_conf.h"

typedef struct {
    td_worker_conf w;
    uint32_t ranks, ranks_per_gpu, drafts;
    int comm;
    bool graphs;
    int64_t peer_timeout_ms, transfer_timeout_ms;
} td_decode_conf;

extern const td_conf_spec td_decode_conf_spec;
#endif
