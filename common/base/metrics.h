/* metrics.h - counters, gauges and histograms in a registry, exported as Prometheus text.
 * Registering happens at boot or by the loop thread (text too); adding and setting are atomics,
 * from any thread. */
#ifndef TD_BASE_METRICS_H
#define TD_BASE_METRICS_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct td_metrics td_metrics;
typedef struct td_metric td_metric; /* lives as long as its registry */
typedef enum { TD_COUNTER, TD_GAUGE, TD_HISTOGRAM } td_metric_kind;

td_status td_metrics_create(uint32_t max_metrics, td_metrics **out, td_err *err);
void td_metrics_destroy(td_metrics *registry);
/* labels: "" or `state="free"`; the same (name, labels) gives the same metric. NULL when the
 * registry is full or memory is short. Histograms are in seconds with fixed buckets 1ms..100s
 * (1-2-5). */
td_metric *td_metrics_get(td_metrics *registry, td_metric_kind kind, const char *name,
                          const char *labels, const char *help);
void td_metric_add(td_metric *metric, int64_t delta); /* NULL is fine, also below */
void td_metric_set(td_metric *metric, int64_t value);
void td_metric_set_double(td_metric *metric, double value); /* gauges only */
void td_metric_observe(td_metric *metric, double seconds);
int64_t td_metric_value(const td_metric *metric);
/* Prometheus text exposition 0.0.4; malloc'ed, NUL-terminated, the caller frees it. NULL: out of
 * memory. */
char *td_metrics_text(const td_metrics *registry, size_t *n_bytes);
#endif
