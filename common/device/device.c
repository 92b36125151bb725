#include "common/device/device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/device/class.h"
#include "common/device/team.h"

#define ALIGN 64U
#define MAX_THREADS 1024U

/* ---- whichever form ---- */

static const td_device_class *class_of(const td_stream *stream)
{
    return ((const td_stream_head *)(const void *)stream)->class_;
}

static td_device_head *head_of(td_device *device)
{
    return (td_device_head *)(void *)device;
}

void td_device_close(td_device *device)
{
    if (device != NULL)
        head_of(device)->class_->close(device);
}

td_stream *td_device_stream(td_device *device)
{
    return head_of(device)->stream;
}

const char *td_device_name(const td_device *device)
{
    return ((const td_device_head *)(const void *)device)->name;
}

td_status td_device_alloc(td_device *device, size_t n_bytes, void **out, td_err *err)
{
    return head_of(device)->class_->alloc(device, n_bytes, out, err);
}

void td_device_free(td_device *device, void *ptr)
{
    if (ptr != NULL)
        head_of(device)->class_->free(device, ptr);
}

td_status td_device_alloc_host(td_device *device, size_t n_bytes, void **out, td_err *err)
{
    return head_of(device)->class_->alloc_host(device, n_bytes, out, err);
}

void td_device_free_host(td_device *device, void *ptr)
{
    if (ptr != NULL)
        head_of(device)->class_->free_host(device, ptr);
}

uint64_t td_device_free_bytes(td_device *device)
{
    return head_of(device)->class_->free_bytes(device);
}

td_status td_stream_write(td_stream *stream, void *dst_device, const void *src_host, size_t n_bytes)
{
    return class_of(stream)->write(stream, dst_device, src_host, n_bytes);
}

td_status td_stream_read(td_stream *stream, void *dst_host, const void *src_device, size_t n_bytes)
{
    return class_of(stream)->read(stream, dst_host, src_device, n_bytes);
}

td_status td_stream_fill(td_stream *stream, void *dst_device, int byte, size_t n_bytes)
{
    return class_of(stream)->fill(stream, dst_device, byte, n_bytes);
}

td_status td_stream_copy(td_stream *stream, void *dst_device, const void *src_device,
                         size_t n_bytes)
{
    return class_of(stream)->copy(stream, dst_device, src_device, n_bytes);
}

td_status td_stream_sync(td_stream *stream, td_err *err)
{
    return class_of(stream)->sync(stream, err);
}

int td_device_records(const td_device *device)
{
    return ((const td_device_head *)(const void *)device)->class_->graph_begin != NULL;
}

td_status td_graph_begin(td_stream *stream, td_err *err)
{
    if (class_of(stream)->graph_begin == NULL)
        return td_fail(err, TD_UNSUPPORTED, "this device cannot record steps");
    return class_of(stream)->graph_begin(stream, err);
}

td_status td_graph_end(td_stream *stream, td_graph **out, size_t *n_nodes, td_err *err)
{
    return class_of(stream)->graph_end(stream, out, n_nodes, err);
}

td_status td_graph_launch(td_graph *graph, td_stream *stream)
{
    return class_of(stream)->graph_launch(graph, stream);
}

void td_graph_destroy(td_graph *graph, td_stream *stream)
{
    if (graph != NULL)
        class_of(stream)->graph_destroy(graph);
}

td_status td_event_create(td_device *device, td_event **out, td_err *err)
{
    return head_of(device)->class_->event_create(device, out, err);
}

void td_event_destroy(td_device *device, td_event *event)
{
    if (event != NULL)
        head_of(device)->class_->event_destroy(device, event);
}

td_status td_event_record(td_event *event, td_stream *stream)
{
    return class_of(stream)->event_record(event, stream);
}

td_status td_event_wait(td_event *event, td_stream *stream, td_err *err)
{
    return class_of(stream)->event_wait(event, stream, err);
}

td_status td_event_poll(td_event *event, td_stream *stream)
{
    return class_of(stream)->event_poll(event, stream);
}

td_status td_event_elapsed_ns(td_event *from, td_event *to, td_stream *stream, int64_t *out,
                              td_err *err)
{
    return class_of(stream)->event_elapsed_ns(from, to, stream, out, err);
}

td_status td_device_bind(td_device *device, td_err *err)
{
    return head_of(device)->class_->bind(device, err);
}

int td_device_is_gpu(const td_device *device)
{
    return ((const td_device_head *)(const void *)device)->class_->is_gpu;
}

td_status td_device_open_stream(td_device *device, td_stream **out, td_err *err)
{
    return head_of(device)->class_->open_stream(device, out, err);
}

void td_device_close_stream(td_stream *stream)
{
    if (stream != NULL)
        class_of(stream)->close_stream(stream);
}

td_status td_device_flush_writes(td_device *device)
{
    return head_of(device)->class_->flush_writes(device);
}

/* ---- the CPU form ---- */

uint32_t td_device_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

static void cpu_close(td_device *device)
{
    td_team_destroy(head_of(device)->stream);
    free(device);
}

/* calloc, so that big allocations come as zero pages; what calloc returned stands in the eight
 * bytes before *out. */
static td_status cpu_alloc(td_device *device, size_t n_bytes, void **out, td_err *err)
{
    (void)device;
    void *base = NULL;
    if (n_bytes <= SIZE_MAX - 2 * ALIGN)
        base = calloc(1, n_bytes + 2 * ALIGN);
    if (base == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory for %zu bytes", n_bytes);
    unsigned char *ptr = (unsigned char *)base + ALIGN + (ALIGN - (uintptr_t)base % ALIGN) % ALIGN;
    memcpy(ptr - sizeof(base), &base, sizeof(base));
    *out = ptr;
    return TD_OK;
}

static void cpu_free(td_device *device, void *ptr)
{
    (void)device;
    void *base;
    memcpy(&base, (unsigned char *)ptr - sizeof(base), sizeof(base));
    free(base);
}

static td_status cpu_copy(td_stream *stream, void *dst, const void *src, size_t n_bytes)
{
    (void)stream;
    if (n_bytes > 0)
        memmove(dst, src, n_bytes);
    return TD_OK;
}

static td_status cpu_fill(td_stream *stream, void *dst_device, int byte, size_t n_bytes)
{
    (void)stream;
    if (n_bytes > 0)
        memset(dst_device, byte, n_bytes);
    return TD_OK;
}

static td_status cpu_sync(td_stream *stream, td_err *err)
{
    (void)stream;
    (void)err;
    return TD_OK;
}

static uint64_t cpu_free_bytes(td_device *device)
{
    (void)device;
    return 0;
}

/* Whatever is enqueued is done at once: a point is the time it was recorded at. */
struct td_event {
    int64_t at_ns;
};

static td_status cpu_event_create(td_device *device, td_event **out, td_err *err)
{
    (void)device;
    td_event *event = calloc(1, sizeof(*event));
    if (event == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory for an event");
    *out = event;
    return TD_OK;
}

static void cpu_event_destroy(td_device *device, td_event *event)
{
    (void)device;
    free(event);
}

static td_status cpu_event_record(td_event *event, td_stream *stream)
{
    (void)stream;
    event->at_ns = td_now_ns();
    return TD_OK;
}

static td_status cpu_event_wait(td_event *event, td_stream *stream, td_err *err)
{
    (void)event;
    (void)stream;
    (void)err;
    return TD_OK;
}

static td_status cpu_event_poll(td_event *event, td_stream *stream)
{
    (void)event;
    (void)stream;
    return TD_OK;
}

static td_status cpu_event_elapsed_ns(td_event *from, td_event *to, td_stream *stream, int64_t *out,
                                      td_err *err)
{
    (void)stream;
    (void)err;
    *out = to->at_ns - from->at_ns;
    return TD_OK;
}

static td_status cpu_bind(td_device *device, td_err *err)
{
    (void)device;
    (void)err;
    return TD_OK;
}

static td_status cpu_open_stream(td_device *device, td_stream **out, td_err *err)
{
    (void)device;
    return td_team_create(1, 0, out, err);
}

static td_status cpu_flush_writes(td_device *device)
{
    (void)device;
    return TD_OK;
}

const td_device_class td_cpu_class = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .alloc_host = cpu_alloc,
    .free_host = cpu_free,
    .free_bytes = cpu_free_bytes,
    .write = cpu_copy,
    .read = cpu_copy,
    .fill = cpu_fill,
    .copy = cpu_copy,
    .sync = cpu_sync,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_poll = cpu_event_poll,
    .event_elapsed_ns = cpu_event_elapsed_ns,
    .bind = cpu_bind,
    .open_stream = cpu_open_stream,
    .close_stream = td_team_destroy,
    .flush_writes = cpu_flush_writes,
};

td_status td_device_open_cpu(uint32_t n_threads, uint32_t spin_us, td_device **out, td_err *err)
{
    static const char *const isa_names[] = {"portable", "avx2", "avx512"};
    if (n_threads > MAX_THREADS)
        return td_fail(err, TD_INVALID, "device: %u threads, at most %u", n_threads, MAX_THREADS);
    if (n_threads == 0)
        n_threads = td_device_cpus();
    td_device_head *head = calloc(1, sizeof(*head));
    if (head == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory");
    head->class_ = &td_cpu_class;
    td_status st = td_team_create(n_threads, spin_us, &head->stream, err);
    if (st < 0) {
        free(head);
        return st;
    }
    snprintf(head->name, sizeof(head->name), "cpu (%u thread%s, %s)", n_threads,
             n_threads == 1 ? "" : "s", isa_names[td_cpu_isa(head->stream)]);
    *out = (td_device *)(void *)head;
    return TD_OK;
}
