/* report.h - what the decode daemon tells of itself: heartbeat, links, transfers
 * (tandem.v1.Worker). Loop thread. */
#ifndef TD_DECODE_REPORT_H
#define TD_DECODE_REPORT_H
#include "common/serve/worker.h"
#include "common/transfer/stats.h"
#include "decode/request.h"

typedef struct {
    td_decode_engine *engine;
    td_requests *requests; /* these two NULL until the engine is ready */
    td_xfer *xfer;
    const td_decode_conf *conf;
    td_xfer_link_info links[TD_WORKER_MAX_ROWS]; /* of the last answer: rows point here */
} td_decode_report;

/* Rows of a td_worker_service; user is a td_decode_report. */
void td_decode_report_status(void *user, Tandem__V1__WorkerStatus *status);
uint32_t td_decode_report_links(void *user, Tandem__V1__Link *rows);
uint32_t td_decode_report_transfers(void *user, bool live_only, Tandem__V1__Transfer *rows);
#endif
