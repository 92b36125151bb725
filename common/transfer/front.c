/* front.c - the owner's side of a td_xfer: checks arguments, keeps handles and credits (so that no
 * ring and no table of the transfer thread can overflow), hands commands over and events back. */
#include "common/transfer/front.h"

#include "common/base/clock.h"
#include "common/base/crc32c.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RING_SLACK_BYTES 4096U
#define MESSAGE_EXTRA 16U /* what a ring adds to a message, rounding included */

void td_xfer_config_init(td_xfer_config *config)
{
    *config = (td_xfer_config){
        .transport = TD_XFER_AUTO,
        .ring_bytes = 256ULL << 20,
        .max_links = 64,
        .max_readers = 64,
        .max_jobs = 1024,
        .max_pages = 65536,
        .gets_per_link = 32,
        .verify = 1,
        .connect_ms = 2000,
        .stall_ms = 5000,
    };
}

static int is_port_range(const char *text)
{
    unsigned low, high;
    int n = 0;
    return sscanf(text, "%5u-%5u%n", &low, &high, &n) == 2 && text[n] == '\0' && low > 0 &&
           low <= high && high <= UINT16_MAX;
}

static td_status check_config(const td_xfer_config *c, td_err *err)
{
    if (c->incarnation == NULL || c->incarnation[0] == '\0' ||
        strlen(c->incarnation) >= TD_XFER_INCARNATION_BYTES)
        return td_fail(err, TD_CONFIG, "transfer: incarnation must have 1 to %u bytes",
                       TD_XFER_INCARNATION_BYTES - 1);
    if (c->n_regions == 0 || c->n_regions > TD_XFER_MAX_REGIONS)
        return td_fail(err, TD_CONFIG, "transfer: %u regions, want 1 to %u", c->n_regions,
                       TD_XFER_MAX_REGIONS);
    for (uint32_t i = 0; i < c->n_regions; i++)
        if (c->regions[i].base == NULL || c->regions[i].stride == 0 || c->regions[i].n_slots == 0)
            return td_fail(err, TD_CONFIG, "transfer: region %u is empty", i);
        else if (c->regions[i].served && c->regions[i].stride > UINT32_MAX)
            return td_fail(err, TD_CONFIG, "transfer: region %u has slots of 4 GiB and more", i);
    if (c->device_regions >> c->n_regions != 0 || (c->device_regions != 0 && c->device == NULL))
        return td_fail(err, TD_CONFIG, "transfer: regions of no device");
    if (c->path == TD_XFER_DIRECT && (c->device_regions != 1 || (c->verify && c->crc == NULL)))
        return td_fail(err, TD_CONFIG,
                       "transfer: direct is for region 0 of a device, checked there");
    if (c->max_links == 0 || c->max_links > 4096 || c->max_readers == 0 || c->max_readers > 4096 ||
        c->max_jobs == 0 || c->max_jobs > 65536 || c->max_pages == 0 || c->max_pages > (1U << 24) ||
        c->gets_per_link == 0 || c->gets_per_link > TD_WIRE_MAX_PULLS)
        return td_fail(err, TD_CONFIG, "transfer: a table's size is out of bounds");
    if (c->port_range != NULL && !is_port_range(c->port_range))
        return td_fail(err, TD_CONFIG, "transfer: \"%s\" is not a range of ports, like 7000-7100",
                       c->port_range);
    if (c->connect_ms <= 0 || c->stall_ms <= 0)
        return td_fail(err, TD_CONFIG, "transfer: times must be positive");
    return TD_OK;
}

static int is_same_host(const td_xfer *xfer, const td_xfer_desc *desc)
{
    static const unsigned char unknown[TD_XFER_HOST_ID_BYTES];
    return memcmp(xfer->host_id, desc->host_id, sizeof(unknown)) == 0 &&
           memcmp(xfer->host_id, unknown, sizeof(unknown)) != 0;
}

static td_status allocate(td_xfer *xfer, td_err *err)
{
    td_engine *engine = &xfer->engine;
    const td_xfer_config *c = &engine->config;
    size_t max_job = c->max_pages < TD_XFER_MAX_JOB_PAGES ? c->max_pages : TD_XFER_MAX_JOB_PAGES;
    engine->n_gets = c->max_links * c->gets_per_link;
    engine->links = calloc(c->max_links, sizeof(*engine->links));
    engine->jobs = calloc(c->max_jobs, sizeof(*engine->jobs));
    engine->pages = calloc(c->max_pages, sizeof(*engine->pages));
    engine->gets = calloc(engine->n_gets, sizeof(*engine->gets));
    engine->readers = calloc(c->max_readers, sizeof(*engine->readers));
    engine->reader_shared = calloc(c->max_readers, sizeof(*engine->reader_shared));
    engine->event = calloc(1, sizeof(*engine->event) + max_job);
    engine->link_shared = calloc(c->max_links, sizeof(*engine->link_shared));
    engine->job_shared = calloc(c->max_jobs, sizeof(*engine->job_shared));
    xfer->links = calloc(c->max_links, sizeof(*xfer->links));
    xfer->jobs = calloc(c->max_jobs, sizeof(*xfer->jobs));
    xfer->free_jobs = calloc(c->max_jobs, sizeof(*xfer->free_jobs));
    xfer->get = calloc(1, sizeof(*xfer->get) + max_job * sizeof(td_xfer_page));
    if (engine->links == NULL || engine->jobs == NULL || engine->pages == NULL ||
        engine->gets == NULL || engine->readers == NULL || engine->reader_shared == NULL ||
        engine->event == NULL || engine->link_shared == NULL || engine->job_shared == NULL ||
        xfer->links == NULL || xfer->jobs == NULL || xfer->free_jobs == NULL || xfer->get == NULL)
        return td_fail(err, TD_NOMEM, "transfer: no memory for its tables");
    for (uint32_t i = 0; i < c->n_regions; i++) {
        if (!engine->regions[i].served)
            continue;
        engine->published[i] = calloc(engine->regions[i].n_slots, sizeof(*engine->published[i]));
        if (engine->published[i] == NULL)
            return td_fail(err, TD_NOMEM, "transfer: no memory for its tables");
    }
    xfer->n_free_jobs = c->max_jobs;
    for (uint32_t i = 0; i < c->max_jobs; i++)
        xfer->free_jobs[i] = c->max_jobs - 1 - i;
    for (uint32_t i = 0; i < c->max_links; i++)
        engine->links[i].state = TD_XFER_LINK_CLOSED;
    return TD_OK;
}

/* Room for everything that the tables allow at once. */
static td_status open_rings(td_xfer *xfer, td_err *err)
{
    td_engine *engine = &xfer->engine;
    const td_xfer_config *c = &engine->config;
    size_t commands =
        RING_SLACK_BYTES +
        (size_t)c->max_jobs * (sizeof(td_cmd_get) + sizeof(td_cmd_cancel) + 2 * MESSAGE_EXTRA) +
        (size_t)c->max_pages * sizeof(td_xfer_page) +
        (size_t)c->max_links * (sizeof(td_cmd_open) + sizeof(td_cmd_close) + 2 * MESSAGE_EXTRA);
    size_t events =
        RING_SLACK_BYTES + c->max_pages +
        (size_t)(c->max_jobs + 2 * c->max_links) * (sizeof(td_event_msg) + MESSAGE_EXTRA);
    td_status st = td_ring_create(commands, td_engine_wake, engine, &engine->commands, err);
    if (st == TD_OK)
        st = td_ring_create(events, c->wake, c->wake_arg, &engine->events, err);
    if (st != TD_OK)
        return st;
    engine->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (engine->wake_fd < 0)
        return td_fail(err, TD_IO, "transfer: eventfd: %s", strerror(errno));
    return TD_OK;
}

/* Signals are for the daemon's main thread. */
static td_status start_thread(td_xfer *xfer, td_err *err)
{
    td_engine_start boot = {.engine = &xfer->engine};
    sigset_t all, old;
    sem_init(&boot.started, 0, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&xfer->thread, NULL, td_engine_main, &boot);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0)
        return td_fail(err, TD_IO, "transfer: thread: %s", strerror(rc));
    while (sem_wait(&boot.started) != 0)
        ;
    sem_destroy(&boot.started);
    if (boot.status != TD_OK) {
        pthread_join(xfer->thread, NULL);
        if (err != NULL)
            *err = boot.err;
        return boot.status;
    }
    xfer->has_thread = 1;
    return TD_OK;
}

static td_status describe(td_xfer *xfer, td_xfer_desc *desc, td_err *err)
{
    const td_engine *engine = &xfer->engine;
    memcpy(desc->incarnation, engine->incarnation, sizeof(desc->incarnation));
    memcpy(desc->host_id, xfer->host_id, sizeof(desc->host_id));
    desc->rank = engine->config.rank;
    desc->port = td_ucx_listen_port(&engine->ucx);
    desc->n_regions = engine->config.n_regions;
    for (uint32_t i = 0; i < desc->n_regions; i++) {
        desc->regions[i].stride = engine->regions[i].stride;
        desc->regions[i].n_slots = engine->regions[i].served ? engine->regions[i].n_slots : 0;
    }
    return td_xfer_desc_encode(desc, xfer->desc, sizeof(xfer->desc), &xfer->n_desc_bytes, err);
}

td_status td_xfer_create(const td_xfer_config *config, td_xfer **out, td_err *err)
{
    td_status st = check_config(config, err);
    if (st != TD_OK)
        return st;
    td_xfer_desc desc = {0};
    td_xfer *xfer = calloc(1, sizeof(*xfer));
    if (xfer == NULL)
        return td_fail(err, TD_NOMEM, "transfer: no memory");
    xfer->engine.wake_fd = -1;
    xfer->engine.config = *config;
    if (config->path == TD_XFER_PATH_AUTO && config->device != NULL &&
        !td_device_is_gpu(config->device))
        xfer->engine.config.device_regions = 0; /* its memory is as good as any */
    for (uint32_t i = 0; i < config->n_regions; i++)
        xfer->engine.regions[i] = config->regions[i];
    snprintf(xfer->engine.incarnation, sizeof(xfer->engine.incarnation), "%s", config->incarnation);
    td_read_host_id(xfer->host_id);
    st = td_choose_addresses(&xfer->engine, &desc, err);
    if (st == TD_OK)
        st = allocate(xfer, err);
    if (st == TD_OK)
        st = open_rings(xfer, err);
    if (st == TD_OK)
        st = start_thread(xfer, err);
    if (st == TD_OK)
        st = describe(xfer, &desc, err);
    if (st != TD_OK) {
        td_xfer_destroy(xfer);
        return st;
    }
    *out = xfer;
    return TD_OK;
}

void td_xfer_destroy(td_xfer *xfer)
{
    if (xfer == NULL)
        return;
    td_engine *engine = &xfer->engine;
    if (xfer->has_thread) {
        td_cmd_close stop = {.kind = TD_CMD_STOP};
        td_status st = td_ring_push(engine->commands, &stop, sizeof(stop));
        td_assert(st == TD_OK);
        pthread_join(xfer->thread, NULL);
    }
    if (engine->wake_fd >= 0)
        close(engine->wake_fd);
    td_ring_destroy(engine->commands);
    td_ring_destroy(engine->events);
    for (uint32_t i = 0; i < TD_XFER_MAX_REGIONS; i++)
        free(engine->published[i]);
    free(engine->links);
    free(engine->jobs);
    free(engine->pages);
    free(engine->gets);
    free(engine->readers);
    free(engine->reader_shared);
    free(engine->event);
    free(engine->link_shared);
    free(engine->job_shared);
    free(xfer->links);
    free(xfer->jobs);
    free(xfer->free_jobs);
    free(xfer->get);
    free(xfer);
}

const unsigned char *td_xfer_descriptor(const td_xfer *xfer, size_t *n_bytes)
{
    *n_bytes = xfer->n_desc_bytes;
    return xfer->desc;
}

const char *td_xfer_kv_path(const td_xfer *xfer)
{
    if (!td_is_staged(&xfer->engine, TD_XFER_PAGES))
        return "in-place";
    return xfer->engine.is_direct ? "direct" : "ring";
}

void td_xfer_publish(td_xfer *xfer, uint32_t region, uint32_t slot, uint32_t generation,
                     uint64_t n_bytes)
{
    const td_engine *engine = &xfer->engine;
    td_assert(region < engine->config.n_regions && slot < engine->regions[region].n_slots &&
              generation != 0 && n_bytes <= engine->regions[region].stride);
    if (engine->published[region] != NULL)
        atomic_store_explicit(&engine->published[region][slot],
                              (uint64_t)generation << 32 | n_bytes, memory_order_release);
}

void td_xfer_reclaim(td_xfer *xfer, uint32_t region, const uint32_t *slots, uint32_t n)
{
    const td_engine *engine = &xfer->engine;
    td_assert(region < engine->config.n_regions);
    for (uint32_t i = 0; i < n && engine->published[region] != NULL; i++) {
        td_assert(slots[i] < engine->regions[region].n_slots);
        atomic_store_explicit(&engine->published[region][slots[i]], 0, memory_order_relaxed);
    }
    (void)atomic_load_explicit(&engine->n_rounds, memory_order_acquire);
}

/* ---- commands ---- */

static void push_command(td_xfer *xfer, const void *cmd, size_t n_bytes)
{
    td_status st = td_ring_push(xfer->engine.commands, cmd, n_bytes);
    td_assert(st == TD_OK); /* the credits make sure of it */
}

static td_front_link *live_link(td_xfer *xfer, td_xfer_link handle)
{
    if (handle.slot >= xfer->engine.config.max_links)
        return NULL;
    td_front_link *link = &xfer->links[handle.slot];
    return link->live && link->generation == handle.generation ? link : NULL;
}

static td_front_job *live_job(td_xfer *xfer, td_xfer_job handle)
{
    if (handle.slot >= xfer->engine.config.max_jobs)
        return NULL;
    td_front_job *job = &xfer->jobs[handle.slot];
    return job->live && job->generation == handle.generation ? job : NULL;
}

static uint32_t next_generation(uint32_t generation)
{
    return generation + 1 == 0 ? 1 : generation + 1;
}

static td_status check_peer(const td_xfer *xfer, const td_xfer_link_args *args,
                            const td_xfer_desc *desc, td_err *err)
{
    const td_engine *engine = &xfer->engine;
    if (strcmp(args->incarnation, desc->incarnation) != 0)
        return td_fail(err, TD_MISMATCH, "%s: descriptor is of incarnation %s, connection of %.63s",
                       args->peer, desc->incarnation, args->incarnation);
    if (desc->n_regions != engine->config.n_regions)
        return td_fail(err, TD_MISMATCH, "%s: serves %u regions, here are %u", args->peer,
                       desc->n_regions, engine->config.n_regions);
    for (uint32_t i = 0; i < desc->n_regions; i++)
        if (desc->regions[i].n_slots != 0 && desc->regions[i].stride != engine->regions[i].stride)
            return td_fail(err, TD_MISMATCH, "%s: region %u has %llu bytes a slot, here %llu",
                           args->peer, i, (unsigned long long)desc->regions[i].stride,
                           (unsigned long long)engine->regions[i].stride);
    if (engine->config.transport == TD_XFER_SHM && !is_same_host(xfer, desc))
        return td_fail(err, TD_UNSUPPORTED,
                       "%s: is on another host, and only shared memory may be "
                       "used",
                       args->peer);
    return TD_OK;
}

td_status td_xfer_link_open(td_xfer *xfer, const td_xfer_link_args *args, td_xfer_link *out,
                            td_err *err)
{
    td_cmd_open cmd = {.kind = TD_CMD_OPEN, .began_ns = td_now_ns()};
    td_status st = td_xfer_desc_decode(args->desc, args->n_desc_bytes, &cmd.desc, err);
    if (st != TD_OK)
        return err != NULL ? td_fail_prefix(err, "%s", args->peer) : st;
    st = check_peer(xfer, args, &cmd.desc, err);
    if (st != TD_OK)
        return st;
    uint32_t slot = 0;
    while (slot < xfer->engine.config.max_links && xfer->links[slot].live)
        slot++;
    if (slot == xfer->engine.config.max_links)
        return td_fail(err, TD_FULL, "%s: all %u links are in use", args->peer, slot);
    td_front_link *link = &xfer->links[slot];
    uint32_t generation = next_generation(link->generation);
    *link = (td_front_link){
        .generation = generation,
        .live = 1,
        .tag = args->tag,
        .opened_ns = cmd.began_ns,
        .same_host = is_same_host(xfer, &cmd.desc),
        .desc = cmd.desc,
    };
    snprintf(link->peer, sizeof(link->peer), "%s", args->peer);
    memset(&xfer->engine.link_shared[slot], 0, sizeof(xfer->engine.link_shared[slot]));
    cmd.link = (td_xfer_link){slot, generation};
    cmd.same_host = link->same_host;
    memcpy(cmd.peer, link->peer, sizeof(cmd.peer));
    push_command(xfer, &cmd, sizeof(cmd));
    *out = cmd.link;
    return TD_OK;
}

void td_xfer_link_close(td_xfer *xfer, td_xfer_link handle)
{
    td_front_link *link = live_link(xfer, handle);
    if (link == NULL || link->closing)
        return;
    link->closing = 1;
    td_cmd_close cmd = {.kind = TD_CMD_CLOSE, .link = handle};
    push_command(xfer, &cmd, sizeof(cmd));
}

static td_status check_get(const td_xfer *xfer, const td_front_link *link,
                           const td_xfer_get_args *args, td_err *err)
{
    const td_engine *engine = &xfer->engine;
    if (args->region >= engine->config.n_regions || args->n_pages == 0 ||
        args->n_pages > TD_XFER_MAX_JOB_PAGES || args->n_pages > engine->config.max_pages ||
        args->deadline_ns <= 0)
        return td_fail(err, TD_INVALID, "transfer: %u pages of region %u, deadline %lld",
                       args->n_pages, args->region, (long long)args->deadline_ns);
    const td_xfer_region *region = &engine->regions[args->region];
    if (td_is_staged(engine, args->region) && region->served)
        return td_fail(err, TD_UNSUPPORTED,
                       "transfer: region %u is served from device memory; nothing is drawn into it",
                       args->region);
    if (args->n_bytes == 0 || args->offset > region->stride ||
        args->n_bytes > region->stride - args->offset)
        return td_fail(err, TD_INVALID, "transfer: %llu bytes at %llu of slots of %llu",
                       (unsigned long long)args->n_bytes, (unsigned long long)args->offset,
                       (unsigned long long)region->stride);
    uint32_t n_remote = link->desc.regions[args->region].n_slots;
    for (uint32_t i = 0; i < args->n_pages; i++) {
        if (args->pages[i].local >= region->n_slots)
            return td_fail(err, TD_INVALID, "transfer: local slot %u of %u", args->pages[i].local,
                           region->n_slots);
        if (args->pages[i].remote >= n_remote)
            return td_fail(err, TD_PROTOCOL, "%s rank %u: names slot %u, serves %u", link->peer,
                           link->desc.rank, args->pages[i].remote, n_remote);
    }
    return TD_OK;
}

static void note_job(td_front_job *job, td_xfer_job handle, td_xfer_link link_handle,
                     const td_front_link *link, const td_xfer_get_args *args)
{
    job->generation = handle.generation;
    job->live = 1;
    job->cancelled = 0;
    job->info = (td_xfer_job_info){
        .job = handle,
        .link = link_handle,
        .peer_rank = link->desc.rank,
        .tag = args->tag,
        .region = args->region,
        .first_layer = args->first_layer,
        .last_layer = args->last_layer,
        .n_pages = args->n_pages,
        .n_bytes = args->n_pages * args->n_bytes,
        .began_ns = td_now_ns(),
    };
    memcpy(job->info.peer, link->peer, sizeof(job->info.peer));
}

td_status td_xfer_get(td_xfer *xfer, td_xfer_link handle, const td_xfer_get_args *args,
                      td_xfer_job *out, td_err *err)
{
    td_front_link *link = live_link(xfer, handle);
    if (link == NULL || link->closing)
        return td_fail(err, TD_PEER_LOST, "transfer: link is down");
    td_status st = check_get(xfer, link, args, err);
    if (st != TD_OK)
        return st;
    if (xfer->n_free_jobs == 0 || args->n_pages > xfer->engine.config.max_pages - xfer->n_pages)
        return td_fail(err, TD_FULL, "transfer: %u jobs, %u pages under way",
                       xfer->engine.config.max_jobs - xfer->n_free_jobs, xfer->n_pages);
    uint32_t slot = xfer->free_jobs[--xfer->n_free_jobs];
    td_front_job *job = &xfer->jobs[slot];
    td_xfer_job job_handle = {slot, next_generation(job->generation)};
    note_job(job, job_handle, handle, link, args);
    xfer->n_pages += args->n_pages;
    link->n_jobs++;
    TD_SET(xfer->engine.job_shared[slot].stage, (uint32_t)TD_XFER_JOB_WAITING);
    TD_SET(xfer->engine.job_shared[slot].n_pages_done, 0);
    *xfer->get = (td_cmd_get){
        .kind = TD_CMD_GET,
        .job = job_handle,
        .link = handle,
        .region = args->region,
        .n_pages = args->n_pages,
        .first_layer = args->first_layer,
        .last_layer = args->last_layer,
        .offset = args->offset,
        .n_bytes = args->n_bytes,
        .deadline_ns = args->deadline_ns,
        .began_ns = job->info.began_ns,
    };
    memcpy(xfer->get->pages, args->pages, args->n_pages * sizeof(args->pages[0]));
    push_command(xfer, xfer->get, sizeof(*xfer->get) + args->n_pages * sizeof(args->pages[0]));
    *out = job_handle;
    return TD_OK;
}

void td_xfer_cancel(td_xfer *xfer, td_xfer_job handle)
{
    td_front_job *job = live_job(xfer, handle);
    if (job == NULL || job->cancelled)
        return;
    job->cancelled = 1;
    td_cmd_cancel cmd = {.kind = TD_CMD_CANCEL, .job = handle};
    push_command(xfer, &cmd, sizeof(cmd));
}

void td_xfer_set_fault(td_xfer *xfer, const td_xfer_fault *fault)
{
    td_cmd_fault cmd = {.kind = TD_CMD_FAULT, .fault = *fault};
    push_command(xfer, &cmd, sizeof(cmd));
}

/* ---- events ---- */

static void end_job(td_xfer *xfer, const td_event_msg *msg, td_xfer_event *out)
{
    td_front_job *job = &xfer->jobs[msg->job.slot];
    td_assert(job->live && job->generation == msg->job.generation);
    out->tag = job->info.tag;
    out->verdicts = msg->verdicts;
    xfer->n_pages -= job->info.n_pages;
    xfer->free_jobs[xfer->n_free_jobs++] = msg->job.slot;
    xfer->links[msg->link.slot].n_jobs--;
    job->live = 0;
    xfer->n_ended++;
    xfer->n_failed += msg->status != TD_OK && msg->status != TD_CANCELLED;
    job->info.stage = TD_XFER_JOB_ENDED;
    job->info.status = msg->status;
    job->info.n_pages_done = TD_GET(xfer->engine.job_shared[msg->job.slot].n_pages_done);
    job->info.ended_ns = job->info.began_ns + msg->elapsed_ns;
    xfer->recent[xfer->next_recent] = job->info;
    xfer->next_recent = (xfer->next_recent + 1) % TD_XFER_N_RECENT;
    if (xfer->n_recent < TD_XFER_N_RECENT)
        xfer->n_recent++;
}

td_status td_xfer_next(td_xfer *xfer, td_xfer_event *out)
{
    const void *bytes;
    size_t n_bytes;
    if (xfer->shown)
        td_ring_pop(xfer->engine.events);
    xfer->shown = 0;
    if (td_ring_peek(xfer->engine.events, &bytes, &n_bytes) != TD_OK)
        return TD_EMPTY;
    xfer->shown = 1;
    const td_event_msg *msg = bytes;
    td_front_link *link = &xfer->links[msg->link.slot];
    memset(out, 0, sizeof(*out));
    out->kind = msg->kind;
    out->status = msg->status;
    out->link = msg->link;
    out->job = msg->job;
    out->tag = link->tag;
    out->n_pages = msg->n_pages;
    out->n_refetched = msg->n_refetched;
    out->n_bytes = msg->n_bytes;
    out->elapsed_ns = msg->elapsed_ns;
    if (msg->status < 0)
        td_fail(&out->err, msg->status, "%s", msg->text);
    switch (msg->kind) {
    case TD_XFER_LINK_UP:
        snprintf(out->transport, sizeof(out->transport), "%.31s", msg->text);
        memcpy(link->transport, out->transport, sizeof(link->transport));
        break;
    case TD_XFER_LINK_DOWN: link->live = 0; break;
    case TD_XFER_JOB_DONE: end_job(xfer, msg, out); break;
    }
    return TD_OK;
}

uint32_t td_xfer_range_crc(const td_xfer_region *region, uint32_t slot, uint64_t offset,
                           uint64_t n_bytes)
{
    td_assert(slot < region->n_slots && offset <= region->stride &&
              n_bytes <= region->stride - offset);
    return td_crc32c(0, (const unsigned char *)region->base + slot * region->stride + offset,
                     n_bytes);
}
