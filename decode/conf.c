#include "decode/conf.h"

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(td_decode_conf, name, member, type, def, min, max, help)

static const td_conf_field fields[] = {
    TD_WORKER_FIELDS(td_decode_conf, w, "127.0.0.1:7420", "127.0.0.1:7421"),
    F("ranks", ranks, U32, "1", "1", "64",
      "tensor-parallel ranks: each has a share of the heads and of every MLP, and all pages"),
    F("ranks-per-gpu", ranks_per_gpu, U32, "1", "1", "64",
      "with backend cuda: ranks that share a GPU; rank r is on GPU gpu + r / ranks-per-gpu"),
    F("comm", comm, ENUM, "peer", "peer|nccl", NULL,
      "with backend cuda: how ranks reach each other; peer: GPUs read each other's memory"),
    F("drafts", drafts, U32, "3", "0", "8",
      "tokens that the MTP layer drafts per step (0: no speculation); 0 if the model has no such "
      "layer"),
    F("graphs", graphs, BOOL, "true", NULL, NULL,
      "with backend cuda: steps are recorded at start-up and launched as one piece; with several "
      "ranks, if each has a GPU and comm is peer"),
    F("peer-timeout", peer_timeout_ms, MS, "1s", "100ms", "1m",
      "a prefill daemon that says nothing for so long is lost"),
    F("transfer-timeout", transfer_timeout_ms, MS, "30s", "100ms", "1h",
      "longest time from the announcement of pages until they are here"),
};

const td_conf_spec td_decode_conf_spec = {
    .program = "tandem-decode",
    .about = "draws prompts' KV pages from prefill daemons and generates tokens",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};
