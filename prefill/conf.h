/* conf.h - the prefill daemon's knobs. */
#ifndef TD_PREFILL_CONF_H
#define TD_PREFILL_CONF_H
#include "common/serve/worker_conf.h"

/* What the knob `warm-up` says, in its order. */
typedef enum { TD_WARM_UP_AUTO, TD_WARM_UP_ON, TD_WARM_UP_OFF } td_warm_up_knob;

typedef struct {
    td_worker_conf w;
    uint32_t ranks, ranks_per_gpu, chunk, max_batch, queue_length, layer_group;
    int split, moe, comm, warm_up;
    int64_t lease_ms;
} td_prefill_conf;

extern const td_conf_spec td_prefill_conf_spec;
#endif
