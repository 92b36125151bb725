#include "router/conf.h"

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(td_router_conf, name, member, type, def, min, max, help)

static const td_conf_field fields[] = {
    F("listen", listen, STR, "127.0.0.1:7400", NULL, NULL, "address of the gRPC front"),
    F("admin", admin, STR, "127.0.0.1:7401", NULL, NULL, "address of /metrics and /healthz"),
    F("allow-plaintext", allow_plaintext, BOOL, "false", NULL, NULL,
      "allow listening on addresses other than loopback without TLS"),
    F("model", model, STR, NULL, NULL, NULL, "checkpoint folder (config.json, tokenizer.json)"),
    F("model-name", model_name, STR, "", NULL, NULL,
      "name that requests give; empty: the folder's name"),
    F("prefill-workers", prefill_workers, LIST, NULL, "1", "64",
      "control addresses of the prefill daemons"),
    F("decode-workers", decode_workers, LIST, NULL, "1", "64",
      "control addresses of the decode daemons"),
    F("queue-length", queue_length, U32, "1024", "0", "65536",
      "requests that may wait for a pair with room"),
    F("max-requests", max_requests, U32, "4096", "1", "65536",
      "requests at a time, the waiting ones included"),
    F("default-max-tokens", default_max_tokens, U32, "1024", "1", "1048576",
      "max_tokens of a request that names none (cut at the context's end)"),
    F("request-timeout", request_timeout_ms, MS, "10m", "1s", "24h",
      "deadline of a request that names none, and the longest that one may name"),
    F("worker-wait", worker_wait_ms, MS, "1s", "0", "10m",
      "how long a request waits while no ready prefill or decode worker is in reach"),
    F("heartbeat", heartbeat_ms, MS, "250ms", "20ms", "1m", "interval of asking each worker"),
    F("heartbeat-timeout", heartbeat_timeout_ms, MS, "1s", "50ms", "5m",
      "a worker that has not answered for so long is out of reach"),
    F("drain-timeout", drain_timeout_ms, MS, "30s", "0", "1h", "wait for live requests on SIGTERM"),
    F("backlog", backlog_bytes, BYTES, "1MiB", "16KiB", "1GiB",
      "bytes queued for a client that does not read before it is cut off"),
    F("max-message", max_message_bytes, BYTES, "4MiB", "64KiB", "64MiB",
      "largest gRPC message taken"),
    F("log-level", log_level, ENUM, "info", "debug|info|warn|error", NULL,
      "least severe lines that are written"),
};

const td_conf_spec td_router_conf_spec = {
    .program = "tandem-router",
    .about = "routes requests to pairs of prefill and decode daemons and streams the answers",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};
