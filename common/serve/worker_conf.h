/* worker_conf.h - the knobs that prefill and decode share, as rows for their tables: one row, one
 * meaning. A daemon's configuration struct has a td_worker_conf member and lists
 * TD_WORKER_FIELDS(its type, that member). */
#ifndef TD_SERVE_WORKER_CONF_H
#define TD_SERVE_WORKER_CONF_H
#include "common/base/conf.h"

#include <stdbool.h>

typedef struct {
    char *listen, *admin, *model;
    bool allow_plaintext, precise, draft_prenorm, allow_tcp, debug_poison;
    int kv, backend, transport, kv_path, log_level;
    uint32_t kv_pages, kv_ring_mib, gpu, threads, max_requests, spin_us;
    char *kv_listen, *net_devices, *port_range, *debug_faults;
    int64_t drain_timeout_ms;
} td_worker_conf;

/* Calls at a time on one connection: every request may be one, and those that let go of requests
 * (Release, Renew) and heartbeats must never wait behind them. */
static inline uint32_t td_worker_max_streams(const td_worker_conf *conf)
{
    return conf->max_requests + 64;
}

#define TD_WORKER_FIELDS(strct, m, listen_default, admin_default)                                  \
    TD_CONF_FIELD(strct, "listen", m.listen, STR, listen_default, NULL, NULL,                      \
                  "address of the control port (gRPC)"),                                           \
        TD_CONF_FIELD(strct, "admin", m.admin, STR, admin_default, NULL, NULL,                     \
                      "address of /metrics and /healthz"),                                         \
        TD_CONF_FIELD(strct, "allow-plaintext", m.allow_plaintext, BOOL, "false", NULL, NULL,      \
                      "allow listening on addresses other than loopback without TLS"),             \
        TD_CONF_FIELD(strct, "model", m.model, STR, NULL, NULL, NULL,                              \
                      "checkpoint folder (config.json, *.safetensors)"),                           \
        TD_CONF_FIELD(strct, "backend", m.backend, ENUM, "cpu", "cpu|cuda", NULL,                  \
                      "what computes; cuda: GPUs of compute capability 9.0"),                      \
        TD_CONF_FIELD(strct, "gpu", m.gpu, U32, "0", "0", "63",                                    \
                      "with backend cuda: which of the visible GPUs"),                             \
        TD_CONF_FIELD(strct, "precise", m.precise, BOOL, "false", NULL, NULL,                      \
                      "compute in f32 without quantising (slow; for comparisons)"),                \
        TD_CONF_FIELD(strct, "kv", m.kv, ENUM, "auto", "auto|fp8|bf16|f32", NULL,                  \
                      "KV cache format; auto: fp8, or f32 with precise"),                          \
        TD_CONF_FIELD(strct, "draft-prenorm", m.draft_prenorm, BOOL, "false", NULL, NULL,          \
                      "feed the draft layer the states before the final norm, not after it"),      \
        TD_CONF_FIELD(strct, "kv-pages", m.kv_pages, U32, "1024", "4", "16777216",                 \
                      "pages of 64 tokens in the KV pool of each rank"),                           \
        TD_CONF_FIELD(                                                                             \
            strct, "threads", m.threads, U32, "0", "0", "1024",                                    \
            "CPU threads over all ranks, with backend cuda those that read the weights; "          \
            "0: by the CPUs there are"),                                                           \
        TD_CONF_FIELD(strct, "spin", m.spin_us, U32, "50", "0", "100000",                          \
                      "microseconds that a CPU rank spins for work before it sleeps"),             \
        TD_CONF_FIELD(strct, "max-requests", m.max_requests, U32, "64", "1", "4096",               \
                      "requests at a time"),                                                       \
        TD_CONF_FIELD(                                                                             \
            strct, "transport", m.transport, ENUM, "auto", "auto|shm|tcp", NULL,                   \
            "how KV pages travel; auto: shared memory within a host, RDMA between hosts"),         \
        TD_CONF_FIELD(strct, "allow-tcp", m.allow_tcp, BOOL, "false", NULL, NULL,                  \
                      "transport auto may end on tcp"),                                            \
        TD_CONF_FIELD(strct, "kv-path", m.kv_path, ENUM, "auto", "auto|ring|direct", NULL,         \
                      "how KV pages leave and enter device memory; ring: through page-locked "     \
                      "host memory; direct: by UCX, or it is an error; auto: direct where UCX "    \
                      "reaches GPU memory, in place on the CPU"),                                  \
        TD_CONF_FIELD(strct, "kv-ring", m.kv_ring_mib, U32, "256", "1", "65536",                   \
                      "MiB of page-locked host memory for the ring of each rank"),                 \
        TD_CONF_FIELD(strct, "kv-listen", m.kv_listen, STR, "", NULL, NULL,                        \
                      "address for KV pages, no wildcard, to be reachable from peers only; rank "  \
                      "r takes port + r; empty: the host of listen, any port"),                    \
        TD_CONF_FIELD(strct, "net-devices", m.net_devices, STR, "", NULL, NULL,                    \
                      "network devices for KV pages, UCX names (lo, eth0, mlx5_0:1); empty: any"), \
        TD_CONF_FIELD(strct, "port-range", m.port_range, STR, "", NULL, NULL,                      \
                      "TCP ports for KV pages (7500-7600), to be reachable from peers only"),      \
        TD_CONF_FIELD(strct, "drain-timeout", m.drain_timeout_ms, MS, "30s", "0", "1h",            \
                      "wait for live requests on SIGTERM"),                                        \
        TD_CONF_FIELD(strct, "log-level", m.log_level, ENUM, "info", "debug|info|warn|error",      \
                      NULL, "least severe lines that are written"),                                \
        TD_CONF_FIELD(strct, "debug-poison", m.debug_poison, BOOL, "false", NULL, NULL,            \
                      "fill freed KV pages with a pattern; check it when they are reused, and at " \
                      "the end"),                                                                  \
        TD_CONF_FIELD(                                                                             \
            strct, "debug-faults", m.debug_faults, STR, "", NULL, NULL,                            \
            "faults of the KV transfer to provoke: damage:N[:2], stall:N[:TIMES], break:N")
#endif
