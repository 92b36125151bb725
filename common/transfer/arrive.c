/* arrive.c - what comes for a reader's gets: pieces are laid down, ranges that are whole are
 * judged. A piece is laid down by this thread only, and only while its get is live. */
#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/transfer/internal.h"

#include <stdio.h>
#include <string.h>

#define ACK_BYTES (TD_WIRE_WINDOW_BYTES / 4) /* consumed, not told: tell */
#define MEAN_OVER 64                         /* gets in the mean latency */

int td_get_fault(td_engine *engine, td_link *link, td_get *get, unsigned char *bytes)
{
    td_xfer_fault *fault = &engine->fault;
    if (bytes == NULL)
        bytes = &get->flip;
    switch (fault->kind) {
    case TD_XFER_FAULT_NONE: return 0;
    case TD_XFER_FAULT_DAMAGE:
        if (engine->fault_page == get->page) {
            bytes[0] ^= 0x40;
            engine->fault_page = TD_NONE;
            fault->kind = TD_XFER_FAULT_NONE;
        } else if (engine->fault_page == TD_NONE && engine->pages[get->page].n_damaged == 0 &&
                   ++engine->fault_seen == fault->nth) {
            bytes[0] ^= 0x01;
            if (fault->times > 1)
                engine->fault_page = get->page;
            else
                fault->kind = TD_XFER_FAULT_NONE;
        }
        return 0;
    case TD_XFER_FAULT_STALL:
        if (++engine->fault_seen < fault->nth)
            return 0;
        if (--fault->times == 0)
            fault->kind = TD_XFER_FAULT_NONE;
        get->stalled = 1;
        return 1;
    case TD_XFER_FAULT_BREAK:
        if (++engine->fault_seen < fault->nth)
            return 0;
        fault->kind = TD_XFER_FAULT_NONE;
        link->broken = "fault asked for";
        return 1;
    }
    return 0;
}

static void count_get(td_engine *engine, const td_get *get)
{
    td_link_shared *shared = &engine->link_shared[get->link];
    int64_t took_ns = td_now_ns() - get->asked_ns, mean_ns = TD_GET(shared->get_mean_ns);
    TD_ADD(shared->n_gets, 1);
    TD_SET(shared->get_mean_ns, mean_ns == 0 ? took_ns : mean_ns + (took_ns - mean_ns) / MEAN_OVER);
    if (took_ns > TD_GET(shared->get_max_ns))
        TD_SET(shared->get_max_ns, took_ns);
}

static void count_bytes(td_engine *engine, td_link *link, size_t n_bytes)
{
    td_link_shared *shared = &engine->link_shared[link->handle.slot];
    TD_ADD(shared->n_bytes, n_bytes);
    TD_ADD(engine->drawn.n_bytes, n_bytes);
    TD_SET(shared->moved_ns, engine->now_ns);
    link->rate_bytes += n_bytes;
    int64_t span_ns = engine->now_ns - link->rate_since_ns;
    if (span_ns < TD_NS_PER_S)
        return;
    TD_SET(shared->bytes_per_s,
           (uint64_t)((double)link->rate_bytes * (double)TD_NS_PER_S / (double)span_ns));
    link->rate_bytes = 0;
    link->rate_since_ns = engine->now_ns;
}

/* In the request's words: "page 7, layers 2 to 3". */
static const char *name_range(const td_job *job, const td_page *page, char out[80])
{
    if (job->region == TD_XFER_BLOBS)
        snprintf(out, 80, "hidden state");
    else
        snprintf(out, 80, "page %u, layers %u to %u", page->number, job->first_layer,
                 job->last_layer - 1);
    return out;
}

static void judge_damaged(td_engine *engine, const td_get *done, td_job *job, td_page *page)
{
    td_link *link = &engine->links[done->link];
    td_link_shared *shared = &engine->link_shared[done->link];
    TD_ADD(shared->n_crc_mismatches, 1);
    TD_ADD(engine->drawn.n_crc_mismatches, 1);
    if (++page->n_damaged == 1) {
        TD_ADD(shared->n_refetches, 1);
        TD_ADD(engine->drawn.n_refetches, 1);
        job->n_refetched++;
        td_job_fetch_again(engine, job, done->page);
        return;
    }
    char name[TD_XFER_PEER_BYTES + 24], what[80];
    page->verdict = TD_XFER_PAGE_DAMAGED;
    td_job_end(engine, job, TD_DATA_LOSS,
               "%s (slot %u there, %u here, %llu bytes at %llu) from %s came damaged twice: crc32c "
               "%08x, want %08x",
               name_range(job, page, what), page->remote, page->local,
               (unsigned long long)job->n_bytes, (unsigned long long)job->offset,
               td_link_name(link, name), done->crc32c, page->crc32c);
}

/* All bytes of a page's range are there. */
void td_get_finish(td_engine *engine, td_get *get)
{
    const td_get done = *get;
    td_job *job = &engine->jobs[get->job];
    td_page *page = &engine->pages[get->page];
    td_get_free(engine, get);
    count_get(engine, &done);
    if (engine->config.verify && done.crc32c != page->crc32c) {
        judge_damaged(engine, &done, job, page);
        return;
    }
    page->verdict = page->n_damaged > 0 ? TD_XFER_PAGE_REFETCHED : TD_XFER_PAGE_OK;
    engine->links[done.link].n_breaks = 0;
    job->n_done++;
    job->n_bytes_done += done.n_got;
    TD_SET(engine->job_shared[done.job].n_pages_done, job->n_done);
    if (job->n_done == job->n_pages)
        td_job_end(engine, job, TD_OK, "ok");
}

void td_link_acknowledge(td_engine *engine, td_link *link, size_t n_bytes)
{
    link->n_unacked_bytes += n_bytes;
    if (link->n_unacked_bytes < ACK_BYTES || link->broken != NULL)
        return;
    td_wire_ack ack = {.reader = link->reader, .n_bytes = link->n_unacked_bytes};
    td_ucx_message msg = {.id = TD_WIRE_ACK, .header = &ack, .n_header_bytes = sizeof(ack)};
    if (td_ucx_send_message(&engine->ucx, link->ep, &msg) == TD_OK)
        link->n_unacked_bytes = 0;
}

unsigned char *td_get_page(const td_engine *engine, const td_get *get)
{
    const td_job *job = &engine->jobs[get->job];
    const td_xfer_region *region = &engine->regions[job->region];
    return (unsigned char *)region->base + engine->pages[get->page].local * region->stride +
           job->offset;
}

/* Room for a get's next piece in a slot of the ring; what does not belong with it, or leaves too
 * little room, goes its way first. */
static unsigned char *fill_bytes(td_engine *engine, td_link *link, const td_get *get,
                                 size_t n_bytes)
{
    uint64_t id = td_get_id(engine, get);
    if (link->fill != TD_STAGE_NONE) {
        const td_stage_slot *slot = &engine->stage.slots[link->fill];
        td_get *other = td_get_find(engine, slot->get_id, link->handle.slot);
        if (slot->get_id != id || slot->n_bytes + n_bytes > TD_STAGE_BYTES)
            td_link_empty_fill(engine, link,
                               other != NULL ? td_get_page(engine, other) + link->fill_at : NULL);
    }
    if (link->fill == TD_STAGE_NONE) {
        link->fill = td_stage_take_reader(&engine->stage);
        link->fill_at = get->n_got;
        engine->stage.slots[link->fill].get_id = id;
    }
    td_stage_slot *slot = &engine->stage.slots[link->fill];
    return slot->bytes + slot->n_bytes;
}

static void lay_down(td_engine *engine, td_link *link, td_get *get, const void *data,
                     size_t n_bytes)
{
    td_job *job = &engine->jobs[get->job];
    int staged = td_is_staged(engine, job->region);
    unsigned char *at =
        staged ? fill_bytes(engine, link, get, n_bytes) : td_get_page(engine, get) + get->n_got;
    memcpy(at, data, n_bytes);
    if (get->n_got == 0 && td_get_fault(engine, link, get, at))
        return;
    if (engine->config.verify) /* of what stands in the page, or is copied there */
        get->crc32c = td_crc32c(get->crc32c, at, n_bytes);
    if (staged)
        engine->stage.slots[link->fill].n_bytes += (uint32_t)n_bytes;
    get->n_got += n_bytes;
    get->moved_ns = engine->now_ns;
    if (staged && get->n_got == job->n_bytes)
        td_link_empty_fill(engine, link, td_get_page(engine, get) + link->fill_at);
    if (get->n_got == job->n_bytes)
        td_get_finish(engine, get);
}

static td_link *find_link(td_engine *engine, td_wire_link id)
{
    if (id.link >= engine->config.max_links)
        return NULL;
    td_link *link = &engine->links[id.link];
    return link->state == TD_XFER_LINK_READY && link->ep != NULL && link->attempt == id.attempt
               ? link
               : NULL;
}

static ucs_status_t on_data(void *arg, const void *header, size_t n_header_bytes, void *data,
                            size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    td_engine *engine = arg;
    td_wire_data msg;
    engine->n_messages++;
    if (n_header_bytes != sizeof(msg))
        return UCS_OK;
    memcpy(&msg, header, sizeof(msg));
    td_link *link = find_link(engine, msg.link);
    if (link == NULL)
        return UCS_OK; /* of an older connection */
    link->moved_ns = engine->now_ns;
    count_bytes(engine, link, n_data_bytes);
    int is_fetched = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
    td_get *get = td_get_find(engine, msg.get_id, msg.link.link);
    if (get != NULL && !get->stalled && is_fetched && msg.at == 0)
        return td_direct_fetch(engine, link, get, data, n_data_bytes);
    td_link_acknowledge(engine, link, n_data_bytes);
    if (get == NULL || get->stalled)
        return UCS_OK; /* of a job that ended */
    if (n_data_bytes == 0 || is_fetched || get->is_laying || msg.at != get->n_got ||
        n_data_bytes > engine->jobs[get->job].n_bytes - get->n_got)
        link->broken = "the peer sent a piece out of order or too long";
    else
        lay_down(engine, link, get, data, n_data_bytes);
    return UCS_OK;
}

static ucs_status_t on_refuse(void *arg, const void *header, size_t n_header_bytes, void *data,
                              size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    (void)data, (void)n_data_bytes, (void)param;
    td_engine *engine = arg;
    td_wire_refuse msg;
    engine->n_messages++;
    if (n_header_bytes != sizeof(msg))
        return UCS_OK;
    memcpy(&msg, header, sizeof(msg));
    td_link *link = find_link(engine, msg.link);
    td_get *get = link != NULL ? td_get_find(engine, msg.get_id, msg.link.link) : NULL;
    if (get == NULL)
        return UCS_OK;
    char name[TD_XFER_PEER_BYTES + 24], what[80];
    td_job *job = &engine->jobs[get->job];
    const td_page *page = &engine->pages[get->page];
    if (msg.status == TD_MISMATCH)
        td_job_end(engine, job, TD_MISMATCH, "%s: %s holds it no more in slot %u, generation %u",
                   name_range(job, page, what), td_link_name(link, name), page->remote,
                   page->generation);
    else
        td_job_end(engine, job, TD_PROTOCOL, "%s does not serve its slot %u: %s",
                   td_link_name(link, name), page->remote, td_status_text((td_status)msg.status));
    return UCS_OK;
}

td_status td_arrive_init(td_engine *engine, td_err *err)
{
    td_status st = td_ucx_handle(&engine->ucx, TD_WIRE_DATA, on_data, engine, err);
    if (st == TD_OK)
        st = td_ucx_handle(&engine->ucx, TD_WIRE_REFUSE, on_refuse, engine, err);
    return st;
}
