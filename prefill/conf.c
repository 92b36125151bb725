#include "prefill/conf.h"

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(td_prefill_conf, name, member, type, def, min, max, help)

static const td_conf_field fields[] = {
    TD_WORKER_FIELDS(td_prefill_conf, w, "127.0.0.1:7410", "127.0.0.1:7411"),
    F("ranks", ranks, U32, "1", "1", "64", "context-parallel ranks"),
    F("ranks-per-gpu", ranks_per_gpu, U32, "1", "1", "64",
      "with backend cuda: ranks that share a GPU; rank r is on GPU gpu + r / ranks-per-gpu"),
    F("comm", comm, ENUM, "peer", "peer|nccl", NULL,
      "with backend cuda: how ranks reach each other; peer: GPUs read each other's memory"),
    F("split", split, ENUM, "round-robin", "round-robin|in-seq", NULL,
      "how a batch's tokens are split over the ranks"),
    F("moe", moe, ENUM, "fused", "fused|ep", NULL,
      "fused: every rank has a slice of every expert; ep: whole experts, rows travel"),
    F("chunk", chunk, U32, "512", "64", "1048576",
      "most prompt tokens in a step, a multiple of 64; longer prompts go in chunks"),
    F("max-batch", max_batch, U32, "16", "1", "256", "most prompts in a step"),
    F("queue-length", queue_length, U32, "64", "0", "65536", "prompts that may wait for pages"),
    F("layer-group", layer_group, U32, "0", "0", "256",
      "layers whose pages are announced together while later layers compute; 0: a quarter of them"),
    F("warm-up", warm_up, ENUM, "auto", "auto|on|off", NULL,
      "compute a made-up prompt before the daemon is ready: memory is allocated and kernels are "
      "loaded before the first real one; auto: with backend cuda"),
    F("lease", lease_ms, MS, "10s", "1s", "10m",
      "finished pages are given up when the decode daemon has not renewed for so long"),
};

const td_conf_spec td_prefill_conf_spec = {
    .program = "tandem-prefill",
    .about = "computes prompts on context-parallel ranks and serves their KV pages",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};
