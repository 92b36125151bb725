/* job.c - a reader's jobs and their gets: asking for pages, laying down what arrives, judging it. A
 * piece is laid down by this thread only, and only while its get is live: ending a job is enough to
 * make its pages nobody's. */
#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/transfer/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ACK_BYTES (TD_WIRE_WINDOW_BYTES / 4) /* consumed, not told: tell */
#define MEAN_OVER 64                         /* gets in the mean latency */

static const char *const stage_names[] = {
    [TD_XFER_JOB_WAITING] = "waiting",
    [TD_XFER_JOB_MOVING] = "moving",
    [TD_XFER_JOB_ENDED] = "ended",
};

const char *td_xfer_job_stage_name(td_xfer_job_stage stage)
{
    return stage < TD_XFER_JOB_N_STAGES ? stage_names[stage] : "unknown";
}

static uint32_t slot_of(const td_engine *engine, const td_job *job)
{
    return (uint32_t)(job - engine->jobs);
}

/* ---- the queue of a link: jobs that still have something to ask for, one page each in turn ----
 */

static int has_more(const td_job *job)
{
    return job->again != TD_NONE || job->cursor != TD_NONE;
}

static void enqueue(td_engine *engine, td_job *job)
{
    if (job->queued || !has_more(job))
        return;
    td_link *link = &engine->links[job->link];
    uint32_t slot = slot_of(engine, job);
    job->queue_next = TD_NONE;
    if (link->queue_head == TD_NONE)
        link->queue_head = slot;
    else
        engine->jobs[link->queue_tail].queue_next = slot;
    link->queue_tail = slot;
    job->queued = 1;
}

static td_job *dequeue(td_engine *engine, td_link *link)
{
    td_job *job = &engine->jobs[link->queue_head];
    link->queue_head = job->queue_next;
    if (link->queue_head == TD_NONE)
        link->queue_tail = TD_NONE;
    job->queued = 0;
    return job;
}

static void unqueue(td_engine *engine, td_job *job)
{
    if (!job->queued)
        return;
    td_link *link = &engine->links[job->link];
    uint32_t slot = slot_of(engine, job), before = TD_NONE;
    for (uint32_t s = link->queue_head; s != slot; s = engine->jobs[s].queue_next)
        before = s;
    if (before == TD_NONE)
        link->queue_head = job->queue_next;
    else
        engine->jobs[before].queue_next = job->queue_next;
    if (link->queue_tail == slot)
        link->queue_tail = before;
    job->queued = 0;
}

/* ---- gets ---- */

static uint64_t get_id(const td_engine *engine, const td_get *get)
{
    return (uint64_t)get->generation << 32 | (uint64_t)(get - engine->gets);
}

td_get *td_get_find(td_engine *engine, uint64_t id, uint32_t link)
{
    uint32_t slot = (uint32_t)id;
    if (slot >= engine->n_gets)
        return NULL;
    td_get *get = &engine->gets[slot];
    return get->live && get->generation == (uint32_t)(id >> 32) && get->link == link ? get : NULL;
}

/* Of the slot that a link's pieces are laid down in: into the page, or nowhere. */
static void empty_fill(td_engine *engine, td_link *link, void *to)
{
    uint32_t slot = link->fill;
    link->fill = TD_STAGE_NONE;
    if (to != NULL && engine->stage.slots[slot].n_bytes > 0)
        td_stage_write(&engine->stage, slot, to);
    else
        td_stage_let_go(&engine->stage, slot);
}

static void free_slot(td_engine *engine, td_get *get)
{
    get->next_free = engine->free_get;
    engine->free_get = (uint32_t)(get - engine->gets);
}

/* After this, whatever arrives for the get is dropped. */
static void free_get(td_engine *engine, td_get *get)
{
    td_link *link = &engine->links[get->link];
    if (link->fill != TD_STAGE_NONE &&
        engine->stage.slots[link->fill].get_id == get_id(engine, get))
        empty_fill(engine, link, NULL);
    get->live = 0;
    engine->jobs[get->job].n_out--;
    link->n_out--;
    TD_SET(engine->link_shared[get->link].n_in_flight, link->n_out);
    if (!get->is_laying)
        free_slot(engine, get);
}

/* Tells the source that it need not go on; if that cannot be sent it goes on for nothing. */
static void send_drop(td_engine *engine, const td_get *get)
{
    td_link *link = &engine->links[get->link];
    if (link->state != TD_XFER_LINK_READY || link->ep == NULL || link->broken != NULL)
        return;
    td_wire_drop drop = {.reader = link->reader, .get_id = get_id(engine, get)};
    td_ucx_message msg = {.id = TD_WIRE_DROP, .header = &drop, .n_header_bytes = sizeof(drop)};
    td_ucx_send_message(&engine->ucx, link->ep, &msg);
}

static void give_up_get(td_engine *engine, td_get *get)
{
    send_drop(engine, get);
    TD_ADD(engine->link_shared[get->link].n_failed_gets, 1);
    free_get(engine, get);
}

static void fetch_again(td_engine *engine, td_job *job, uint32_t page)
{
    engine->pages[page].next_again = job->again;
    job->again = page;
    enqueue(engine, job);
}

/* A page into which something may still be laid waits for its end. */
void td_get_again(td_engine *engine, td_get *get)
{
    td_job *job = &engine->jobs[get->job];
    get->is_wanted_again = get->is_laying;
    give_up_get(engine, get);
    if (!get->is_laying)
        fetch_again(engine, job, get->page);
}

void td_get_laid(td_engine *engine, td_get *get)
{
    td_job *job = &engine->jobs[get->job];
    get->is_laying = 0;
    job->n_laying--;
    engine->n_laying--;
    if (get->live)
        return;
    if (get->is_wanted_again && !job->ending)
        fetch_again(engine, job, get->page);
    free_slot(engine, get);
}

static td_status ask(td_engine *engine, td_link *link, td_job *job, uint32_t page)
{
    td_get *get = &engine->gets[engine->free_get];
    uint32_t next_free = get->next_free;
    get->generation++;
    td_wire_pull pull = {
        .reader = link->reader,
        .get_id = get_id(engine, get),
        .region = job->region,
        .slot = engine->pages[page].remote,
        .offset = job->offset,
        .n_bytes = job->n_bytes,
        .piece_bytes = link->piece_bytes,
        .generation = engine->pages[page].generation,
        .is_direct = link->is_direct && td_is_staged(engine, job->region),
    };
    td_ucx_message msg = {.id = TD_WIRE_PULL, .header = &pull, .n_header_bytes = sizeof(pull)};
    td_status st = td_ucx_send_message(&engine->ucx, link->ep, &msg);
    if (st != TD_OK)
        return st;
    engine->free_get = next_free;
    get->live = 1;
    get->stalled = get->is_laying = get->is_wanted_again = 0;
    get->flip = 0;
    get->attempt = link->attempt;
    get->link = link->handle.slot;
    get->job = slot_of(engine, job);
    get->page = page;
    get->n_got = 0;
    get->crc32c = 0;
    get->asked_ns = get->moved_ns = engine->now_ns;
    if (link->n_out++ == 0)
        link->moved_ns = engine->now_ns;
    job->n_out++;
    TD_SET(engine->link_shared[get->link].n_in_flight, link->n_out);
    td_engine_timer(engine, engine->now_ns + engine->config.stall_ms * TD_NS_PER_MS);
    return TD_OK;
}

unsigned td_job_pump(td_engine *engine, td_link *link)
{
    unsigned n = 0;
    while (link->queue_head != TD_NONE && link->n_out < engine->config.gets_per_link &&
           engine->free_get != TD_NONE) {
        td_job *job = &engine->jobs[link->queue_head];
        uint32_t page = job->again != TD_NONE ? job->again : job->cursor;
        td_status st = ask(engine, link, job, page);
        if (st != TD_OK) {
            if (st != TD_FULL)
                link->broken = "a request could not be sent";
            break;
        }
        if (job->again != TD_NONE)
            job->again = engine->pages[page].next_again;
        else
            job->cursor = engine->pages[page].next;
        TD_SET(engine->job_shared[slot_of(engine, job)].stage, (uint32_t)TD_XFER_JOB_MOVING);
        dequeue(engine, link);
        enqueue(engine, job);
        n++;
    }
    return n;
}

void td_job_requeue_all(td_engine *engine, td_link *link)
{
    for (uint32_t i = 0; i < engine->n_gets && link->n_out > 0; i++) {
        td_get *get = &engine->gets[i];
        if (!get->live || get->link != link->handle.slot)
            continue;
        td_get_again(engine, get);
    }
}

/* ---- jobs ---- */

static void take_pages(td_engine *engine, td_job *job, const td_xfer_page *pages)
{
    uint32_t *at = &job->first_page;
    for (uint32_t i = 0; i < job->n_pages; i++) {
        uint32_t slot = engine->free_page;
        td_assert(slot != TD_NONE); /* the front counts them */
        td_page *page = &engine->pages[slot];
        engine->free_page = page->next;
        *page = (td_page){
            .remote = pages[i].remote,
            .local = pages[i].local,
            .generation = pages[i].generation,
            .crc32c = pages[i].crc32c,
            .number = pages[i].number,
            .next = TD_NONE,
            .next_again = TD_NONE,
            .index = (uint16_t)i,
            .verdict = TD_XFER_PAGE_MISSING,
        };
        *at = slot;
        at = &page->next;
    }
    job->cursor = job->first_page;
}

/* Their verdicts, in order; then they are free. */
static void give_pages(td_engine *engine, td_job *job, uint8_t *verdicts)
{
    uint32_t slot = job->first_page;
    while (slot != TD_NONE) {
        td_page *page = &engine->pages[slot];
        uint32_t next = page->next;
        verdicts[page->index] = page->verdict;
        if (engine->fault_page == slot) {
            engine->fault_page = TD_NONE;
            engine->fault.kind = TD_XFER_FAULT_NONE;
        }
        page->next = engine->free_page;
        engine->free_page = slot;
        slot = next;
    }
}

void td_job_start(td_engine *engine, const td_cmd_get *cmd)
{
    td_job *job = &engine->jobs[cmd->job.slot];
    td_link *link = &engine->links[cmd->link.slot];
    td_assert(!job->live);
    *job = (td_job){
        .live = 1,
        .handle = cmd->job,
        .link = cmd->link.slot,
        .region = cmd->region,
        .first_layer = cmd->first_layer,
        .last_layer = cmd->last_layer,
        .offset = cmd->offset,
        .n_bytes = cmd->n_bytes,
        .deadline_ns = cmd->deadline_ns,
        .began_ns = cmd->began_ns,
        .n_pages = cmd->n_pages,
        .first_page = TD_NONE,
        .again = TD_NONE,
        .queue_next = TD_NONE,
        .live_next = engine->live_jobs,
        .live_prev = TD_NONE,
    };
    if (engine->live_jobs != TD_NONE)
        engine->jobs[engine->live_jobs].live_prev = cmd->job.slot;
    engine->live_jobs = cmd->job.slot;
    take_pages(engine, job, cmd->pages);
    if (link->handle.generation != cmd->link.generation || link->state == TD_XFER_LINK_CLOSED) {
        td_job_end(engine, job, TD_PEER_LOST, "link is down");
        return;
    }
    td_engine_timer(engine, job->deadline_ns);
    enqueue(engine, job);
}

static void drop_gets(td_engine *engine, td_job *job)
{
    for (uint32_t i = 0; i < engine->n_gets && job->n_out > 0; i++) {
        td_get *get = &engine->gets[i];
        if (get->live && get->job == slot_of(engine, job))
            give_up_get(engine, get);
    }
}

static void tell_end(td_engine *engine, td_job *job)
{
    uint32_t slot = slot_of(engine, job);
    td_link *link = &engine->links[job->link];
    td_event_msg *event = engine->event;
    memset(event, 0, sizeof(*event));
    event->kind = TD_XFER_JOB_DONE;
    event->status = job->end_status;
    event->link = link->handle;
    event->job = job->handle;
    event->n_pages = job->n_pages;
    event->n_refetched = job->n_refetched;
    event->n_bytes = job->n_bytes_done;
    event->elapsed_ns = job->ended_ns - job->began_ns;
    memcpy(event->text, job->end_text, sizeof(event->text));
    give_pages(engine, job, event->verdicts);
    if (job->live_prev == TD_NONE)
        engine->live_jobs = job->live_next;
    else
        engine->jobs[job->live_prev].live_next = job->live_next;
    if (job->live_next != TD_NONE)
        engine->jobs[job->live_next].live_prev = job->live_prev;
    job->live = 0;
    TD_SET(engine->job_shared[slot].stage, (uint32_t)TD_XFER_JOB_ENDED);
    td_engine_push(engine, event, sizeof(*event) + job->n_pages);
}

/* Its pages are nobody's only when no copy into them is under way. 1: it is over. */
static int settle(td_engine *engine, td_job *job)
{
    if (td_is_staged(engine, job->region)) {
        if (job->n_laying > 0 || engine->stage.n_in_over < job->n_settled)
            return 0;
        if (engine->stage.failed && job->end_status == TD_OK) {
            job->end_status = TD_CUDA;
            snprintf(job->end_text, sizeof(job->end_text), "copying pages to the device failed");
        }
    }
    job->ended_ns = engine->now_ns;
    tell_end(engine, job);
    return 1;
}

void td_job_end(td_engine *engine, td_job *job, td_status status, const char *fmt, ...)
{
    drop_gets(engine, job);
    unqueue(engine, job);
    /* The closed formula: whole pages, all of them. */
    if (status == TD_OK)
        td_assert(job->n_bytes_done == (uint64_t)job->n_pages * job->n_bytes);
    job->end_status = status;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(job->end_text, sizeof(job->end_text), fmt, ap);
    va_end(ap);
    job->n_settled = engine->stage.n_in_begun;
    if (settle(engine, job))
        return;
    job->ending = 1;
    engine->n_ending++;
    engine->links[job->link].n_ending++;
}

unsigned td_job_settle(td_engine *engine)
{
    unsigned n = 0;
    uint32_t next;
    for (uint32_t slot = engine->n_ending > 0 ? engine->live_jobs : TD_NONE; slot != TD_NONE;
         slot = next) {
        td_job *job = &engine->jobs[slot];
        td_link *link = &engine->links[job->link];
        next = job->live_next;
        if (!job->ending || !settle(engine, job))
            continue;
        n++;
        engine->n_ending--;
        if (--link->n_ending == 0 && link->is_going)
            td_link_say_down(engine, link);
    }
    return n;
}

void td_job_end_all(td_engine *engine, const td_link *link, td_status status, const char *why)
{
    uint32_t next;
    for (uint32_t slot = engine->live_jobs; slot != TD_NONE; slot = next) {
        td_job *job = &engine->jobs[slot];
        next = job->live_next;
        if (job->link == link->handle.slot && !job->ending)
            td_job_end(engine, job, status, "%s", why);
    }
}

void td_job_timers(td_engine *engine)
{
    uint32_t next;
    for (uint32_t slot = engine->live_jobs; slot != TD_NONE; slot = next) {
        td_job *job = &engine->jobs[slot];
        char name[TD_XFER_PEER_BYTES + 24];
        next = job->live_next;
        if (job->ending)
            continue;
        if (engine->now_ns >= job->deadline_ns)
            td_job_end(engine, job, TD_DEADLINE, "%u of %u pages had come from %s by the deadline",
                       job->n_done, job->n_pages, td_link_name(&engine->links[job->link], name));
        else
            td_engine_timer(engine, job->deadline_ns);
    }
    /* A get that nothing came for, while its link moves: ask once more. */
    int64_t stall_ns = engine->config.stall_ms * TD_NS_PER_MS;
    for (uint32_t i = 0; i < engine->n_gets; i++) {
        td_get *get = &engine->gets[i];
        if (!get->live)
            continue;
        if (engine->now_ns - get->moved_ns < stall_ns) {
            td_engine_timer(engine, get->moved_ns + stall_ns);
            continue;
        }
        td_link *link = &engine->links[get->link];
        if (!get->is_laying)
            td_get_again(engine, get);
        else if (link->ep != NULL && link->broken == NULL)
            link->broken = "a range is fetched for too long"; /* closing the endpoint ends it */
    }
}

/* ---- what arrives ---- */

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
        fetch_again(engine, job, done->page);
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
    free_get(engine, get);
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
    uint64_t id = get_id(engine, get);
    if (link->fill != TD_STAGE_NONE) {
        const td_stage_slot *slot = &engine->stage.slots[link->fill];
        td_get *other = td_get_find(engine, slot->get_id, link->handle.slot);
        if (slot->get_id != id || slot->n_bytes + n_bytes > TD_STAGE_BYTES)
            empty_fill(engine, link,
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
        empty_fill(engine, link, td_get_page(engine, get) + link->fill_at);
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

td_status td_job_init_all(td_engine *engine, td_err *err)
{
    engine->free_page = engine->free_get = engine->live_jobs = TD_NONE;
    engine->fault_page = TD_NONE;
    for (uint32_t i = engine->config.max_pages; i-- > 0;) {
        engine->pages[i].next = engine->free_page;
        engine->free_page = i;
    }
    for (uint32_t i = engine->n_gets; i-- > 0;) {
        engine->gets[i].next_free = engine->free_get;
        engine->free_get = i;
    }
    td_status st = td_ucx_handle(&engine->ucx, TD_WIRE_DATA, on_data, engine, err);
    if (st == TD_OK)
        st = td_ucx_handle(&engine->ucx, TD_WIRE_REFUSE, on_refuse, engine, err);
    return st;
}
