#include "common/device/device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/device/team.h"

#define ALIGN 64U
#define MAX_THREADS 1024U

struct td_device {
    td_stream *stream;
    char name[64];
};

uint32_t td_device_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

td_status td_device_open_cpu(uint32_t n_threads, uint32_t spin_us, td_device **out, td_err *err)
{
    static const char *const isa_names[] = {"portable", "avx2", "avx512"};
    if (n_threads > MAX_THREADS)
        return td_fail(err, TD_INVALID, "device: %u threads, at most %u", n_threads, MAX_THREADS);
    if (n_threads == 0)
        n_threads = td_device_cpus();
    td_device *device = calloc(1, sizeof(*device));
    if (device == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory");
    td_status st = td_team_create(n_threads, spin_us, &device->stream, err);
    if (st < 0) {
        td_device_close(device);
        return st;
    }
    snprintf(device->name, sizeof(device->name), "cpu (%u thread%s, %s)", n_threads,
             n_threads == 1 ? "" : "s", isa_names[td_cpu_isa(device->stream)]);
    *out = device;
    return TD_OK;
}

void td_device_close(td_device *device)
{
    if (device == NULL)
        return;
    td_team_destroy(device->stream);
    free(device);
}

td_stream *td_device_stream(td_device *device)
{
    return device->stream;
}

const char *td_device_name(const td_device *device)
{
    return device->name;
}

/* calloc, so that big allocations come as zero pages; what calloc returned stands in the eight
 * bytes before *out. */
td_status td_device_alloc(td_device *device, size_t n_bytes, void **out, td_err *err)
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

void td_device_free(td_device *device, void *ptr)
{
    (void)device;
    if (ptr == NULL)
        return;
    void *base;
    memcpy(&base, (unsigned char *)ptr - sizeof(base), sizeof(base));
    free(base);
}

td_status td_stream_copy(td_stream *stream, void *dst_device, const void *src_device,
                         size_t n_bytes)
{
    (void)stream;
    if (n_bytes > 0)
        memmove(dst_device, src_device, n_bytes);
    return TD_OK;
}

td_status td_stream_write(td_stream *stream, void *dst_device, const void *src_host, size_t n_bytes)
{
    return td_stream_copy(stream, dst_device, src_host, n_bytes);
}

td_status td_stream_read(td_stream *stream, void *dst_host, const void *src_device, size_t n_bytes)
{
    return td_stream_copy(stream, dst_host, src_device, n_bytes);
}

td_status td_stream_fill(td_stream *stream, void *dst_device, int byte, size_t n_bytes)
{
    (void)stream;
    if (n_bytes > 0)
        memset(dst_device, byte, n_bytes);
    return TD_OK;
}

td_status td_stream_sync(td_stream *stream, td_err *err)
{
    (void)stream;
    (void)err;
    return TD_OK;
}
