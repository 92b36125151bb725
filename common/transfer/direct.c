/* direct.c - a reader's ranges that UCX fetches straight into a device's pages, and their CRC32C,
 * computed where they lie. A range counts as arrived only when it was checked. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"

#include <string.h>

#define UCX_MINOR 22

static td_status open_checks(td_engine *engine, td_err *err)
{
    const td_xfer_config *config = &engine->config;
    const size_t each = TD_CHECK_RANGES * (sizeof(int32_t) + sizeof(uint32_t));
    td_status st = td_device_open_stream(config->device, &engine->check_stream, err);
    if (st == TD_OK)
        st = td_device_alloc_host(config->device, TD_CHECKS * each, &engine->check_memory, err);
    if (st == TD_OK)
        st = td_device_alloc(config->device, TD_CHECKS * each, &engine->check_device_memory, err);
    if (st == TD_OK) /* it is zeroed there; at boot, nothing else is on it */
        st = td_stream_sync(td_device_stream(config->device), err);
    for (uint32_t i = 0; st == TD_OK && i < TD_CHECKS; i++) {
        td_check *check = &engine->checks[i];
        size_t at = (size_t)2 * TD_CHECK_RANGES * i;
        check->slots = (int32_t *)engine->check_memory + at;
        check->crc = (uint32_t *)(check->slots + TD_CHECK_RANGES);
        check->device_slots = (int32_t *)engine->check_device_memory + at;
        check->device_crc = (uint32_t *)(check->device_slots + TD_CHECK_RANGES);
        st = td_event_create(config->device, &check->done, err);
    }
    return st;
}

/* 1.16 crashes a reader whose fetch ends with its endpoint (rndv_rtr.c invalidates memory that is
 * registered by hand), and what lies between was not tried. */
static int is_new_enough(void)
{
    unsigned major, minor, release;
    ucp_get_version(&major, &minor, &release);
    return major > 1 || (major == 1 && minor >= UCX_MINOR);
}

/* Whether UCX can: it is new enough, it says so, and it takes the pool. */
static td_status try_ucx(td_engine *engine, td_err *err)
{
    const td_xfer_region *region = &engine->regions[TD_XFER_PAGES];
    if (!td_device_is_gpu(engine->config.device))
        return TD_OK;
    if (!engine->ucx.has_gpu)
        return td_fail(err, TD_UNSUPPORTED, "ucx %s has no transport for GPU memory",
                       ucp_get_version_string());
    if (!is_new_enough())
        return td_fail(err, TD_UNSUPPORTED, "ucx %s is older than 1.%d, which bears broken fetches",
                       ucp_get_version_string(), UCX_MINOR);
    return td_ucx_register(&engine->ucx, region->base, region->n_slots * region->stride, err);
}

td_status td_direct_open(td_engine *engine, td_err *err)
{
    const td_xfer_config *config = &engine->config;
    td_err why;
    engine->first_to_check = engine->last_to_check = TD_NONE;
    if (config->device_regions != 1U << TD_XFER_PAGES || config->path == TD_XFER_RING ||
        (config->verify && config->crc == NULL))
        return TD_OK;
    td_status st = try_ucx(engine, &why);
    if (st != TD_OK && config->path == TD_XFER_DIRECT)
        return td_fail(err, TD_CONFIG, "transfer: direct was asked for, but %s", why.text);
    if (st != TD_OK) {
        td_info("xfer.ring", "rank=%u why=\"%s\"", config->rank, why.text);
        return TD_OK;
    }
    engine->is_direct = 1;
    return open_checks(engine, err);
}

void td_direct_close(td_engine *engine)
{
    td_device_close_stream(engine->check_stream);
    for (uint32_t i = 0; i < TD_CHECKS; i++)
        td_event_destroy(engine->config.device, engine->checks[i].done);
    if (engine->config.device != NULL) {
        td_device_free_host(engine->config.device, engine->check_memory);
        td_device_free(engine->config.device, engine->check_device_memory);
    }
    engine->check_stream = NULL;
    engine->check_memory = engine->check_device_memory = NULL;
}

/* UCX is done with the range. */
static void on_fetched(td_engine *engine, td_get *get, int is_ok)
{
    td_link *link = &engine->links[get->link];
    td_job *job = &engine->jobs[get->job];
    get->moved_ns = engine->now_ns;
    engine->n_messages++; /* UCX gets things done */
    if (link->state == TD_XFER_LINK_READY && link->ep != NULL && link->attempt == get->attempt) {
        link->moved_ns = engine->now_ns;
        td_link_acknowledge(engine, link, job->n_bytes);
        if (!is_ok && link->broken == NULL)
            link->broken = "a range could not be fetched";
    }
    if (!is_ok || !get->live) {
        td_get_laid(engine, get);
        return;
    }
    get->n_got = job->n_bytes;
    if (!engine->config.verify) {
        td_get_laid(engine, get);
        td_get_finish(engine, get);
        return;
    }
    uint32_t slot = (uint32_t)(get - engine->gets);
    get->next_to_check = TD_NONE;
    if (engine->first_to_check == TD_NONE)
        engine->first_to_check = slot;
    else
        engine->gets[engine->last_to_check].next_to_check = slot;
    engine->last_to_check = slot;
}

static void on_done(void *request, ucs_status_t status, size_t n_bytes, void *arg)
{
    td_get *get = arg;
    td_engine *engine = get->engine;
    if (get->is_laying) /* not forgotten meanwhile */
        on_fetched(engine, get, status == UCS_OK && n_bytes == engine->jobs[get->job].n_bytes);
    ucp_request_free(request);
}

ucs_status_t td_direct_fetch(td_engine *engine, td_link *link, td_get *get, void *data,
                             size_t n_bytes)
{
    td_job *job = &engine->jobs[get->job];
    if (!link->is_direct || !td_is_staged(engine, job->region) || n_bytes != job->n_bytes ||
        get->n_got != 0 || get->is_laying) {
        link->broken = "the peer offers a range that is not as it was asked for";
        return UCS_OK;
    }
    if (td_get_fault(engine, link, get, NULL)) {
        td_link_acknowledge(engine, link, n_bytes);
        return UCS_OK;
    }
    get->engine = engine;
    get->is_laying = 1;
    job->n_laying++;
    engine->n_laying++;
    td_status st = td_ucx_fetch(&engine->ucx, data, td_get_page(engine, get), n_bytes,
                                td_device_is_gpu(engine->config.device), on_done, get);
    if (st != TD_PENDING)
        on_fetched(engine, get, st == TD_OK);
    return UCS_INPROGRESS;
}

/* ---- checking ---- */

static uint32_t next_to_check(td_engine *engine)
{
    uint32_t slot = engine->first_to_check;
    engine->first_to_check = engine->gets[slot].next_to_check;
    if (engine->first_to_check == TD_NONE)
        engine->last_to_check = TD_NONE;
    return slot;
}

static void fail_device(td_engine *engine, const char *what)
{
    if (!engine->stage.failed)
        td_error("xfer.device", "rank=%u why=\"%s failed\"", engine->config.rank, what);
    engine->stage.failed = 1; /* jobs end with it, see settle() in job.c */
}

/* Ranges of one job, as many as came one after the other. */
static void begin_check(td_engine *engine, td_check *check)
{
    const td_xfer_config *config = &engine->config;
    uint32_t job_slot = engine->gets[engine->first_to_check].job;
    const td_job *job = &engine->jobs[job_slot];
    while (check->n < TD_CHECK_RANGES && engine->first_to_check != TD_NONE &&
           engine->gets[engine->first_to_check].job == job_slot) {
        uint32_t slot = next_to_check(engine);
        check->gets[check->n] = slot;
        check->slots[check->n++] = (int32_t)engine->pages[engine->gets[slot].page].local;
    }
    engine->n_checking++;
    td_stream *stream = engine->check_stream;
    td_status st = td_device_flush_writes(config->device);
    const char *what = st == TD_OK ? "checking pages"
                                   : "ordering a network device's writes before the GPU's reads";
    if (st == TD_OK)
        st = td_stream_write(stream, check->device_slots, check->slots,
                             check->n * sizeof(*check->slots));
    if (st == TD_OK)
        st = config->crc(config->crc_arg, stream, check->device_slots, check->n, job->offset,
                         job->n_bytes, check->device_crc);
    if (st == TD_OK)
        st = td_stream_read(stream, check->crc, check->device_crc, check->n * sizeof(*check->crc));
    if (st == TD_OK)
        st = td_event_record(check->done, stream);
    if (st != TD_OK)
        fail_device(engine, what);
}

static unsigned end_check(td_engine *engine, td_check *check)
{
    td_status st =
        engine->stage.failed ? TD_CUDA : td_event_poll(check->done, engine->check_stream);
    unsigned n = check->n;
    if (st == TD_PENDING)
        return 0;
    if (st != TD_OK)
        fail_device(engine, "checking pages");
    for (uint32_t i = 0; i < n; i++) {
        td_get *get = &engine->gets[check->gets[i]];
        int is_live = get->live;
        get->crc32c = check->crc[i] ^ get->flip;
        td_get_laid(engine, get);
        if (is_live && st == TD_OK)
            td_get_finish(engine, get);
        else if (is_live)
            td_job_end(engine, &engine->jobs[get->job], TD_CUDA, "checking pages failed");
    }
    check->n = 0;
    engine->n_checking--;
    return n;
}

unsigned td_direct_tend(td_engine *engine)
{
    unsigned n = 0;
    for (uint32_t i = 0; engine->is_direct && i < TD_CHECKS; i++) {
        td_check *check = &engine->checks[i];
        if (check->n > 0)
            n += end_check(engine, check);
        if (check->n == 0 && engine->first_to_check != TD_NONE)
            begin_check(engine, check);
    }
    return n;
}

void td_direct_forget(td_engine *engine)
{
    for (uint32_t i = 0; engine->n_laying > 0 && i < engine->n_gets; i++)
        engine->gets[i].is_forgotten = engine->gets[i].is_laying;
    for (uint32_t slot = engine->first_to_check; slot != TD_NONE;
         slot = engine->gets[slot].next_to_check)
        engine->gets[slot].is_forgotten = 0;
    for (uint32_t i = 0; i < TD_CHECKS; i++)
        for (uint32_t k = 0; k < engine->checks[i].n; k++)
            engine->gets[engine->checks[i].gets[k]].is_forgotten = 0;
    for (uint32_t i = 0; engine->n_laying > 0 && i < engine->n_gets; i++) {
        td_get *get = &engine->gets[i];
        if (get->is_forgotten)
            td_get_laid(engine, get);
        get->is_forgotten = 0;
    }
}
