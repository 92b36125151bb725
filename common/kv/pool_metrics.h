/* pool_metrics.h - tandem_kv_pages{state}: how many pages of a pool are in which state. */
#ifndef TD_KV_POOL_METRICS_H
#define TD_KV_POOL_METRICS_H
#include "common/base/metrics.h"
#include "common/kv/pool.h"

typedef struct {
    td_metric *pages[TD_PAGE_N_STATES];
} td_kv_pool_metrics;

/* TD_NOMEM: the registry is full. */
td_status td_kv_pool_metrics_init(td_kv_pool_metrics *m, td_metrics *registry, td_err *err);
void td_kv_pool_metrics_update(const td_kv_pool_metrics *m, const td_kv_pool *pool);
#endif
