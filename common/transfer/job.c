/* job.c - a reader's jobs and their gets: asking for pages, again where that is needed, and ending.
 * Ending a job makes its gets void; its event comes when its pages are nobody's. */
#include "common/base/clock.h"
#include "common/transfer/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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

uint64_t td_get_id(const td_engine *engine, const td_get *get)
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

void td_link_empty_fill(td_engine *engine, td_link *link, void *to)
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

void td_get_free(td_engine *engine, td_get *get)
{
    td_link *link = &engine->links[get->link];
    if (link->fill != TD_STAGE_NONE &&
        engine->stage.slots[link->fill].get_id == td_get_id(engine, get))
        td_link_empty_fill(engine, link, NULL);
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
    td_wire_drop drop = {.reader = link->reader, .get_id = td_get_id(engine, get)};
    td_ucx_message msg = {.id = TD_WIRE_DROP, .header = &drop, .n_header_bytes = sizeof(drop)};
    td_ucx_send_message(&engine->ucx, link->ep, &msg);
}

static void give_up_get(td_engine *engine, td_get *get)
{
    send_drop(engine, get);
    TD_ADD(engine->link_shared[get->link].n_failed_gets, 1);
    td_get_free(engine, get);
}

void td_job_fetch_again(td_engine *engine, td_job *job, uint32_t page)
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
        td_job_fetch_again(engine, job, get->page);
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
        td_job_fetch_again(engine, job, get->page);
    free_slot(engine, get);
}

static td_status ask(td_engine *engine, td_link *link, td_job *job, uint32_t page)
{
    td_get *get = &engine->gets[engine->free_get];
    uint32_t next_free = get->next_free;
    get->generation++;
    td_wire_pull pull = {
        .reader = link->reader,
        .get_id = td_get_id(engine, get),
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
    return td_arrive_init(engine, err);
}
