/* xfer_metrics.h - what the transfer layer counts, for /metrics: sums over a daemon's td_xfers. For
 * the thread that owns them. */
#ifndef TD_TRANSFER_XFER_METRICS_H
#define TD_TRANSFER_XFER_METRICS_H
#include "common/base/metrics.h"
#include "common/transfer/xfer.h"

#define TD_XFER_N_METRICS 15

typedef struct {
    td_metric *rows[TD_XFER_N_METRICS];
} td_xfer_metrics;

/* TD_NOMEM: the registry is full. */
td_status td_xfer_metrics_init(td_xfer_metrics *m, td_metrics *registry, td_err *err);
/* xfers: [n], NULL ones are left out. */
void td_xfer_metrics_update(const td_xfer_metrics *m, td_xfer *const *xfers, uint32_t n);
#endif
