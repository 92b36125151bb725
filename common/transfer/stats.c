#include "common/transfer/stats.h"

#include "common/base/clock.h"
#include "common/transfer/front.h"

#include <string.h>

#define RATE_FRESH_NS (2 * TD_NS_PER_S)

uint32_t td_xfer_links(const td_xfer *xfer, td_xfer_link_info *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < xfer->engine.config.max_links && n < max; i++) {
        const td_front_link *link = &xfer->links[i];
        const td_link_shared *shared = &xfer->engine.link_shared[i];
        if (!link->live)
            continue;
        td_xfer_link_info *info = &out[n++];
        *info = (td_xfer_link_info){
            .link = {i, link->generation},
            .peer_rank = link->desc.rank,
            .tag = link->tag,
            .state = (td_xfer_link_state)TD_GET(shared->state),
            .same_host = link->same_host,
            .opened_ns = link->opened_ns,
            .n_jobs = link->n_jobs,
            .n_in_flight = TD_GET(shared->n_in_flight),
            .n_bytes = TD_GET(shared->n_bytes),
            .n_gets = TD_GET(shared->n_gets),
            .n_failed_gets = TD_GET(shared->n_failed_gets),
            .n_crc_mismatches = TD_GET(shared->n_crc_mismatches),
            .n_refetches = TD_GET(shared->n_refetches),
            .n_reconnects = TD_GET(shared->n_reconnects),
            .answer_ns = TD_GET(shared->answer_ns),
            .get_mean_ns = TD_GET(shared->get_mean_ns),
            .get_max_ns = TD_GET(shared->get_max_ns),
        };
        if (td_now_ns() - TD_GET(shared->moved_ns) < RATE_FRESH_NS)
            info->bytes_per_s = TD_GET(shared->bytes_per_s);
        memcpy(info->peer, link->peer, sizeof(info->peer));
        memcpy(info->peer_incarnation, link->desc.incarnation, sizeof(info->peer_incarnation));
        memcpy(info->transport, link->transport, sizeof(info->transport));
    }
    return n;
}

/* Oldest first; the table is small and this is an operator's question. */
static void insert_by_age(td_xfer_job_info *out, uint32_t n, const td_xfer_job_info *info)
{
    uint32_t at = n;
    for (; at > 0 && out[at - 1].began_ns > info->began_ns; at--)
        out[at] = out[at - 1];
    out[at] = *info;
}

uint32_t td_xfer_jobs(const td_xfer *xfer, td_xfer_job_info *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < xfer->engine.config.max_jobs && n < max; i++) {
        if (!xfer->jobs[i].live)
            continue;
        const td_job_shared *shared = &xfer->engine.job_shared[i];
        td_xfer_job_info info = xfer->jobs[i].info;
        info.stage = (td_xfer_job_stage)TD_GET(shared->stage);
        info.n_pages_done = TD_GET(shared->n_pages_done);
        insert_by_age(out, n++, &info);
    }
    for (uint32_t i = 0; i < xfer->n_recent && n < max; i++)
        out[n++] = xfer->recent[(xfer->next_recent + TD_XFER_N_RECENT - 1 - i) % TD_XFER_N_RECENT];
    return n;
}

uint32_t td_xfer_n_live_jobs(const td_xfer *xfer)
{
    return xfer->engine.config.max_jobs - xfer->n_free_jobs;
}

td_xfer_served_info td_xfer_served(const td_xfer *xfer)
{
    const td_served_shared *served = &xfer->engine.served;
    return (td_xfer_served_info){
        .n_readers = TD_GET(served->n_readers),
        .n_welcomed = TD_GET(served->n_welcomed),
        .n_refused = TD_GET(served->n_refused),
        .n_pulls = TD_GET(served->n_pulls),
        .n_bad_pulls = TD_GET(served->n_bad_pulls),
        .n_bytes = TD_GET(served->n_bytes),
        .n_restarts = TD_GET(served->n_restarts),
    };
}

static void count_links(const td_xfer *xfer, td_xfer_drawn_info *info)
{
    for (uint32_t i = 0; i < xfer->engine.config.max_links; i++) {
        const char *transport = xfer->links[i].transport;
        if (!xfer->links[i].live || transport[0] == '\0' ||
            TD_GET(xfer->engine.link_shared[i].state) != TD_XFER_LINK_READY)
            continue;
        if (td_ucx_is_shm(transport))
            info->n_shm_links++;
        else if (strstr(transport, "tcp") != NULL)
            info->n_tcp_links++;
        else
            info->n_rdma_links++;
    }
}

td_xfer_drawn_info td_xfer_drawn(const td_xfer *xfer)
{
    const td_drawn_shared *drawn = &xfer->engine.drawn;
    td_xfer_drawn_info info = {
        .n_bytes = TD_GET(drawn->n_bytes),
        .n_jobs = xfer->n_ended,
        .n_failed_jobs = xfer->n_failed,
        .n_crc_mismatches = TD_GET(drawn->n_crc_mismatches),
        .n_refetches = TD_GET(drawn->n_refetches),
        .n_reconnects = TD_GET(drawn->n_reconnects),
    };
    count_links(xfer, &info);
    return info;
}

/* 0: nobody is there, or somebody else since we began to read. */
static int read_reader(const td_reader_shared *shared, td_xfer_reader_info *out)
{
    uint32_t use = atomic_load_explicit(&shared->slot_use, memory_order_acquire);
    if (use % 2 == 0)
        return 0;
    for (uint32_t i = 0; i < TD_XFER_INCARNATION_BYTES / 8; i++) {
        uint64_t word = atomic_load_explicit(&shared->name[i], memory_order_acquire);
        memcpy(out->incarnation + (size_t)8 * i, &word, 8);
    }
    out->incarnation[TD_XFER_INCARNATION_BYTES - 1] = '\0';
    out->n_pulls = TD_GET(shared->n_pulls);
    out->n_bytes = TD_GET(shared->n_bytes);
    out->since_ns = TD_GET(shared->since_ns);
    return TD_GET(shared->slot_use) == use;
}

uint32_t td_xfer_readers(const td_xfer *xfer, td_xfer_reader_info *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < xfer->engine.config.max_readers && n < max; i++)
        n += (uint32_t)read_reader(&xfer->engine.reader_shared[i], &out[n]);
    return n;
}

const char *td_xfer_transport_name(td_xfer_transport transport)
{
    switch (transport) {
    case TD_XFER_AUTO: return "auto";
    case TD_XFER_SHM: return "shm";
    case TD_XFER_TCP: return "tcp";
    }
    return "unknown";
}
