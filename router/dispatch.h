/* dispatch.h - gives every record a pair of workers: a bounded queue in order of arrival, the start
 * at the decode daemon, once more on another pair when one is lost before the first token. A second
 * attempt whose other pairs are merely full waits at the head of the queue; one that fits on no
 * other ready pair, or finds none, is UNAVAILABLE at once. Loop thread. */
#ifndef TD_ROUTER_DISPATCH_H
#define TD_ROUTER_DISPATCH_H
#include "common/base/metrics.h"
#include "router/record.h"

typedef struct td_dispatch td_dispatch;

typedef struct {
    td_loop *loop;
    td_registry *registry;
    td_metrics *metrics;
    uint32_t queue_length, max_requests;
    int64_t worker_wait_ms;
} td_dispatch_conf;

td_status td_dispatch_create(const td_dispatch_conf *conf, td_dispatch **out, td_err *err);
void td_dispatch_destroy(td_dispatch *dispatch); /* no record is left; NULL is fine */

/* Takes a filled record (calloc'ed; the dispatcher's from here on, also when it refuses: then it is
 * freed and no callback comes). TD_EXHAUSTED: queue or table full; TD_TOO_LARGE: it fits on no
 * ready worker of a role. Its own on_end does not come from inside; others' may. A record that fits
 * no more while it waits, for what workers have become known or were lost, ends with
 * OUT_OF_RANGE. */
td_status td_dispatch_submit(td_dispatch *dispatch, td_record *record, td_err *err);
/* The client is gone or has enough: frees the record, no callback. */
void td_dispatch_cancel(td_dispatch *dispatch, td_record *record);
void td_record_free(td_record *record); /* one that was never submitted; NULL is fine */

/* From the registry: */
void td_dispatch_worker_lost(td_dispatch *dispatch, td_worker *worker, const char *why);
void td_dispatch_pump(td_dispatch *dispatch); /* there may be room */

uint32_t td_dispatch_active(const td_dispatch *dispatch); /* queued and running */
uint32_t td_dispatch_queued(const td_dispatch *dispatch);
#endif
