/* conf.h - the prefill daemon's knobs. */
#ifndef TD_PREFILL_CONF_H
#define TD_PREFILL_CONF_H
#include "common/serve/worker_conf.h"

typedef struct {
    td_worker_conf w;
    uint32_t ranks, ranks_per_gpu, chunk, max_batch, queue_length, layer_group;
    int split, moe, comm;
    int64_t lease_ms;
} td_prefill_conf;

extern const td_conf_spec td_prefill_conf_spec;
#endif
