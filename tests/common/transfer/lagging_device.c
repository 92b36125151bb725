#include "tests/common/transfer/lagging_device.h"

#include "common/device/class.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COPIES 4096U

typedef struct {
    td_device_head head;
    uint32_t n_polls, fail_after;
    _Atomic uint64_t n_copies;
} lagging_device;

typedef struct {
    void *to;
    const void *from;
    size_t n_bytes;
} copy;

struct td_stream {
    td_stream_head head;
    lagging_device *device;
    uint64_t n_begun, n_done;
    copy copies[MAX_COPIES]; /* ring */
};

struct td_event {
    uint64_t n_before; /* copies of the stream that are behind it */
    uint32_t n_polls_left;
};

static void run(td_stream *s, uint64_t n)
{
    for (; s->n_done < n; s->n_done++) {
        const copy *c = &s->copies[s->n_done % MAX_COPIES];
        memcpy(c->to, c->from, c->n_bytes);
    }
}

static td_status enqueue(td_stream *s, void *to, const void *from, size_t n_bytes)
{
    uint64_t n = atomic_fetch_add(&s->device->n_copies, 1) + 1;
    if (s->device->fail_after > 0 && n >= s->device->fail_after)
        return TD_CUDA;
    if (s->n_begun - s->n_done == MAX_COPIES)
        abort();
    s->copies[s->n_begun++ % MAX_COPIES] = (copy){to, from, n_bytes};
    return TD_OK;
}

static td_status bind(td_device *device, td_err *err)
{
    (void)device, (void)err;
    return TD_OK;
}

static td_status alloc_host(td_device *device, size_t n_bytes, void **out, td_err *err)
{
    (void)device;
    *out = malloc(n_bytes);
    return *out != NULL ? TD_OK : td_fail(err, TD_NOMEM, "no memory");
}

static void free_host(td_device *device, void *ptr)
{
    (void)device;
    free(ptr);
}

static td_status sync_stream(td_stream *s, td_err *err)
{
    (void)err;
    run(s, s->n_begun);
    return TD_OK;
}

static td_status open_stream(td_device *device, td_stream **out, td_err *err)
{
    td_stream *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return td_fail(err, TD_NOMEM, "no memory");
    s->device = (lagging_device *)(void *)device;
    s->head.class_ = s->device->head.class_;
    *out = s;
    return TD_OK;
}

static void close_stream(td_stream *s)
{
    run(s, s->n_begun);
    free(s);
}

static td_status event_create(td_device *device, td_event **out, td_err *err)
{
    (void)device;
    *out = calloc(1, sizeof(**out));
    return *out != NULL ? TD_OK : td_fail(err, TD_NOMEM, "no memory");
}

static void event_destroy(td_device *device, td_event *event)
{
    (void)device;
    free(event);
}

static td_status event_record(td_event *event, td_stream *s)
{
    event->n_before = s->n_begun;
    event->n_polls_left = s->device->n_polls;
    return TD_OK;
}

static td_status event_poll(td_event *event, td_stream *s)
{
    if (s->n_done >= event->n_before)
        return TD_OK;
    if (event->n_polls_left > 0) {
        event->n_polls_left--;
        return TD_PENDING;
    }
    run(s, event->n_before);
    return TD_OK;
}

static td_status flush_writes(td_device *device)
{
    (void)device;
    return TD_OK;
}

static const td_device_class lagging_class = {
    .alloc = alloc_host,
    .free = free_host,
    .sync = sync_stream,
    .alloc_host = alloc_host,
    .free_host = free_host,
    .write = enqueue,
    .read = enqueue,
    .bind = bind,
    .open_stream = open_stream,
    .close_stream = close_stream,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_poll = event_poll,
    .flush_writes = flush_writes,
};

td_device *lagging_device_open(uint32_t n_polls, uint32_t fail_after)
{
    lagging_device *d = calloc(1, sizeof(*d));
    if (d == NULL)
        abort();
    d->head.class_ = &lagging_class;
    d->n_polls = n_polls;
    d->fail_after = fail_after;
    if (open_stream((td_device *)(void *)d, &d->head.stream, NULL) != TD_OK)
        abort();
    return (td_device *)(void *)d;
}

void lagging_device_close(td_device *device)
{
    if (device != NULL)
        close_stream(td_device_stream(device));
    free(device);
}

/* arg: the td_xfer_region; it is host memory, after all. */
static td_status crc(void *arg, td_stream *stream, const int32_t *slots, uint32_t n,
                     uint64_t offset, uint64_t n_bytes, uint32_t *out)
{
    run(stream, stream->n_begun); /* the slots are among it */
    for (uint32_t i = 0; i < n; i++)
        out[i] = td_xfer_range_crc(arg, (uint32_t)slots[i], offset, n_bytes);
    return TD_OK;
}

td_device *lagging_device_from_environment(td_xfer_config *config)
{
    const char *n_polls = getenv("XFER_TEST_RING");
    if (n_polls == NULL)
        return NULL;
    config->device = lagging_device_open((uint32_t)atoi(n_polls), 0);
    config->device_regions = 1;
    config->path = getenv("XFER_TEST_DIRECT") != NULL ? TD_XFER_DIRECT : TD_XFER_RING;
    config->crc = crc;
    config->crc_arg = (void *)(uintptr_t)&config->regions[0];
    return config->device;
}

uint64_t lagging_device_copies(const td_device *device)
{
    return atomic_load(&((const lagging_device *)(const void *)device)->n_copies);
}
