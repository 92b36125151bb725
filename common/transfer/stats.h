/* stats.h - what /metrics, `tandemctl kv links` and `tandemctl kv transfers` show of one td_xfer.
 * For the thread that owns it. Counters are snapshots; the recent transfers are the last
 * TD_XFER_N_RECENT that ended. */
#ifndef TD_TRANSFER_STATS_H
#define TD_TRANSFER_STATS_H
#include "common/transfer/xfer.h"

#define TD_XFER_N_RECENT 128U

typedef enum {
    TD_XFER_LINK_CONNECTING, /* first endpoint made, peer has not answered yet */
    TD_XFER_LINK_READY,
    TD_XFER_LINK_RECONNECTING, /* the endpoint broke; a fresh one, peer has not answered yet */
    TD_XFER_LINK_CLOSED,       /* the slot is free, or its DOWN event stands in the ring */
    TD_XFER_LINK_N_STATES,
} td_xfer_link_state;

typedef struct {
    td_xfer_link link;
    char peer[TD_XFER_PEER_BYTES];
    uint32_t peer_rank;
    char peer_incarnation[TD_XFER_INCARNATION_BYTES];
    uint64_t tag;
    td_xfer_link_state state;
    char transport[TD_XFER_TRANSPORT_BYTES]; /* "" until it is known */
    int same_host;
    int64_t opened_ns;
    uint32_t n_jobs, n_in_flight; /* live jobs; gets out now */
    uint64_t n_bytes;             /* that arrived, wanted or not */
    uint64_t n_gets;              /* came back whole, damaged ones too */
    uint64_t n_failed_gets;       /* given up: link broke, refused, cancelled or late */
    uint64_t n_crc_mismatches, n_refetches, n_reconnects;
    uint64_t bytes_per_s; /* over the last second in which something moved; 0 when idle for two */
    int64_t answer_ns;    /* the peer's last answer to our hello, round trip */
    int64_t get_mean_ns, get_max_ns; /* post to completion; mean over about the last 64 */
} td_xfer_link_info;

typedef enum {
    TD_XFER_JOB_WAITING, /* link not ready yet, or no get posted yet */
    TD_XFER_JOB_MOVING,
    TD_XFER_JOB_ENDED,
    TD_XFER_JOB_N_STAGES,
} td_xfer_job_stage;

typedef struct {
    td_xfer_job job;
    td_xfer_link link;
    char peer[TD_XFER_PEER_BYTES];
    uint32_t peer_rank;
    uint64_t tag;
    td_xfer_job_stage stage;
    td_status status; /* when ENDED */
    uint32_t region, first_layer, last_layer;
    uint32_t n_pages, n_pages_done;
    uint64_t n_bytes;           /* asked for: n_pages * range bytes */
    int64_t began_ns, ended_ns; /* td_now_ns(); ended 0 while live */
} td_xfer_job_info;

/* Writes at most max; returns how many. */
uint32_t td_xfer_links(const td_xfer *xfer, td_xfer_link_info *out, uint32_t max);
/* Live ones by age, then the recent ones, newest first. */
uint32_t td_xfer_jobs(const td_xfer *xfer, td_xfer_job_info *out, uint32_t max);
uint32_t td_xfer_n_live_jobs(const td_xfer *xfer); /* tandem_transfers_active */
typedef struct {
    uint32_t n_readers;             /* connected now */
    uint64_t n_welcomed, n_refused; /* hellos; refused: another incarnation or version was meant */
    uint64_t n_pulls, n_bad_pulls;  /* ranges asked for; bad: outside what is served, or given up */
    uint64_t n_bytes;
    uint64_t n_restarts; /* of the UCX worker, because a peer blocked it */
} td_xfer_served_info;
td_xfer_served_info td_xfer_served(const td_xfer *xfer);

typedef struct {
    uint64_t n_bytes;               /* that arrived */
    uint64_t n_jobs, n_failed_jobs; /* ended; failed: cancelled ones do not count */
    uint64_t n_crc_mismatches, n_refetches, n_reconnects;
    uint32_t n_shm_links, n_tcp_links, n_rdma_links; /* ready now */
} td_xfer_drawn_info;                                /* since the start, over all links */
td_xfer_drawn_info td_xfer_drawn(const td_xfer *xfer);

typedef struct {
    char incarnation[TD_XFER_INCARNATION_BYTES]; /* of the process that reads, as it says */
    uint64_t n_pulls, n_bytes;                   /* over this connection */
    int64_t since_ns;
} td_xfer_reader_info;
/* Readers that are connected now. Writes at most max; returns how many. */
uint32_t td_xfer_readers(const td_xfer *xfer, td_xfer_reader_info *out, uint32_t max);
const char *td_xfer_link_state_name(td_xfer_link_state state);   /* "ready" */
const char *td_xfer_job_stage_name(td_xfer_job_stage stage);     /* "moving" */
const char *td_xfer_transport_name(td_xfer_transport transport); /* "auto" */
#endif
