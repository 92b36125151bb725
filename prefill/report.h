/* report.h - what the prefill daemon tells of itself: heartbeat, links, transfers
 * (tandem.v1.Worker). Loop thread. */
#ifndef TD_PREFILL_REPORT_H
#define TD_PREFILL_REPORT_H
#include "common/serve/worker.h"
#include "common/transfer/stats.h"
#include "prefill/service.h"

typedef struct {
    td_prefill_engine *engine;
    td_prompts *prompts; /* NULL until the engine is ready */
    const td_prefill_conf *conf;
    const td_prefill_service *service;
    td_xfer_reader_info connected[TD_PREFILL_MAX_READERS]; /* scratch of links() */
} td_prefill_report;

/* Rows of a td_worker_service; user is a td_prefill_report. */
void td_prefill_report_status(void *user, Tandem__V1__WorkerStatus *status);
uint32_t td_prefill_report_links(void *user, Tandem__V1__Link *rows);
uint32_t td_prefill_report_transfers(void *user, bool live_only, Tandem__V1__Transfer *rows);
#endif
