#include "common/transfer/xfer_metrics.h"

#include "common/transfer/stats.h"

enum {
    READ_BYTES,
    JOBS,
    FAILED_JOBS,
    CRC_MISMATCHES,
    REFETCHES,
    RECONNECTS,
    SHM_LINKS,
    TCP_LINKS,
    RDMA_LINKS,
    READERS,
    SERVED_BYTES,
    PULLS,
    BAD_PULLS,
    REFUSED_HELLOS,
    RESTARTS,
    N_ROWS,
};
_Static_assert(N_ROWS == TD_XFER_N_METRICS, "a row for each metric");

static const struct {
    td_metric_kind kind;
    const char *name, *labels, *help;
} rows[] = {
    [READ_BYTES] = {TD_COUNTER, "tandem_kv_read_bytes_total", "", "bytes that arrived from peers"},
    [JOBS] = {TD_COUNTER, "tandem_kv_jobs_total", "", "transfers that ended"},
    [FAILED_JOBS] = {TD_COUNTER, "tandem_kv_jobs_failed_total", "",
                     "transfers that failed, cancelled ones not counted"},
    [CRC_MISMATCHES] = {TD_COUNTER, "tandem_kv_crc_mismatches_total", "",
                        "page ranges that came damaged"},
    [REFETCHES] = {TD_COUNTER, "tandem_kv_refetches_total", "",
                   "page ranges fetched again because they came damaged"},
    [RECONNECTS] = {TD_COUNTER, "tandem_kv_reconnects_total", "",
                    "connections of links made again"},
    [SHM_LINKS] = {TD_GAUGE, "tandem_kv_links", "transport=\"shm\"", "links that are ready"},
    [TCP_LINKS] = {TD_GAUGE, "tandem_kv_links", "transport=\"tcp\"", "links that are ready"},
    [RDMA_LINKS] = {TD_GAUGE, "tandem_kv_links", "transport=\"rdma\"", "links that are ready"},
    [READERS] = {TD_GAUGE, "tandem_kv_readers", "", "connections of peers that read from here"},
    [SERVED_BYTES] = {TD_COUNTER, "tandem_kv_served_bytes_total", "", "bytes sent to readers"},
    [PULLS] = {TD_COUNTER, "tandem_kv_pulls_total", "", "page ranges that readers asked for"},
    [BAD_PULLS] = {TD_COUNTER, "tandem_kv_pulls_refused_total", "",
                   "page ranges refused: outside of what is served, or given up"},
    [REFUSED_HELLOS] = {TD_COUNTER, "tandem_kv_hellos_refused_total", "",
                        "readers that meant another process or speak another protocol"},
    [RESTARTS] = {TD_COUNTER, "tandem_kv_worker_restarts_total", "",
                  "UCX workers replaced because a peer blocked them"},
};

td_status td_xfer_metrics_init(td_xfer_metrics *m, td_metrics *registry, td_err *err)
{
    for (int i = 0; i < N_ROWS; i++) {
        m->rows[i] =
            td_metrics_get(registry, rows[i].kind, rows[i].name, rows[i].labels, rows[i].help);
        if (m->rows[i] == NULL)
            return td_fail(err, TD_NOMEM, "no room for the transfer layer's metrics");
    }
    return TD_OK;
}

static void add(const td_xfer *xfer, uint64_t sums[N_ROWS])
{
    td_xfer_drawn_info drawn = td_xfer_drawn(xfer);
    td_xfer_served_info served = td_xfer_served(xfer);
    sums[READ_BYTES] += drawn.n_bytes;
    sums[JOBS] += drawn.n_jobs;
    sums[FAILED_JOBS] += drawn.n_failed_jobs;
    sums[CRC_MISMATCHES] += drawn.n_crc_mismatches;
    sums[REFETCHES] += drawn.n_refetches;
    sums[RECONNECTS] += drawn.n_reconnects;
    sums[SHM_LINKS] += drawn.n_shm_links;
    sums[TCP_LINKS] += drawn.n_tcp_links;
    sums[RDMA_LINKS] += drawn.n_rdma_links;
    sums[READERS] += served.n_readers;
    sums[SERVED_BYTES] += served.n_bytes;
    sums[PULLS] += served.n_pulls;
    sums[BAD_PULLS] += served.n_bad_pulls;
    sums[REFUSED_HELLOS] += served.n_refused;
    sums[RESTARTS] += served.n_restarts;
}

void td_xfer_metrics_update(const td_xfer_metrics *m, td_xfer *const *xfers, uint32_t n)
{
    uint64_t sums[N_ROWS] = {0};
    for (uint32_t i = 0; i < n; i++)
        if (xfers[i] != NULL)
            add(xfers[i], sums);
    for (int i = 0; i < N_ROWS; i++)
        td_metric_set(m->rows[i], (int64_t)sums[i]);
}
