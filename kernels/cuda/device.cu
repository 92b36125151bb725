/* device.cu - the CUDA form of a device: one GPU, one stream. */
#include "kernels/cuda/device.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sys/mman.h>
extern "C" {
#include "common/base/clock.h"
}

#define NEEDED_MAJOR 9 /* sm_90a */
#define NEEDED_MINOR 0
#define POLL_SPIN_NS (20 * TD_NS_PER_MS) /* then with short sleeps between looks */
#define POLL_SLEEP_NS 50000
#define GIVE_UP_NS (5 * TD_NS_PER_S)     /* for work that was given up to end */
#define POLL_STEP_NS (50 * TD_NS_PER_MS) /* no time between two looks counts for more */

struct cuda_device { /* td_device_head first */
    td_device_head head;
    td_stream stream;
};

static td_stream *stream_of(td_device *device)
{
    return &reinterpret_cast<cuda_device *>(device)->stream;
}

static td_status failed(td_err *err, td_stream *s, const char *what, cudaError_t e)
{
    cudaGetLastError(); /* it is told here, and not the next launch's */
    return td_fail(err, e == cudaErrorMemoryAllocation ? TD_NOMEM : TD_CUDA, "GPU %d: %s: %s",
                   s->index, what, cudaGetErrorString(e));
}

/* ---- waiting ---- */

td_cuda_guard *td_cuda_guard_new(int64_t deadline_ms, void (*give_up)(void *rank))
{
    td_cuda_guard *guard = static_cast<td_cuda_guard *>(calloc(1, sizeof(*guard)));
    if (guard != NULL)
        *guard = {1, 0, deadline_ms, give_up, NULL};
    return guard;
}

void td_cuda_guard_give(td_cuda_guard *guard)
{
    if (guard != NULL && __atomic_sub_fetch(&guard->n_owners, 1, __ATOMIC_ACQ_REL) == 0)
        free(guard);
}

void td_cuda_guard_set(td_stream *s, td_cuda_guard *guard, void *rank)
{
    s->guard_rank = rank;
    if (s->guard == guard)
        return;
    __atomic_add_fetch(&guard->n_owners, 1, __ATOMIC_RELAXED);
    td_cuda_guard_give(s->guard);
    s->guard = guard;
}

void td_cuda_guard_end(td_cuda_guard *guard)
{
    __atomic_store_n(&guard->dead, 1, __ATOMIC_RELEASE);
}

int td_cuda_guard_dead(const td_cuda_guard *guard)
{
    return __atomic_load_n(&guard->dead, __ATOMIC_ACQUIRE);
}

int td_cuda_guard_late(const td_cuda_guard *guard)
{
    return guard->stop != NULL && *guard->stop == TD_CUDA_STOP_LATE;
}

/* Looks until the stream is empty or limit_ns have passed; once the group is dead, what waits for
 * peers is given up. Time in which the process was stopped does not count. */
static cudaError_t look(const td_stream *s, int64_t limit_ns)
{
    const td_cuda_guard *guard = s->guard;
    int64_t waited = 0, last = td_now_ns();
    for (;;) {
        const cudaError_t e = cudaStreamQuery(s->stream);
        if (e != cudaErrorNotReady)
            return e;
        cudaGetLastError(); /* "not ready" is no launch's failure */
        if (waited >= limit_ns)
            return e;
        if (guard->give_up != NULL && td_cuda_guard_dead(guard))
            guard->give_up(s->guard_rank);
        if (waited > POLL_SPIN_NS) {
            const struct timespec pause = {0, POLL_SLEEP_NS};
            nanosleep(&pause, NULL);
        }
        const int64_t now = td_now_ns();
        waited += now - last < POLL_STEP_NS ? now - last : POLL_STEP_NS;
        last = now;
    }
}

/* Until the stream is empty. cudaErrorNotReady: it was not by the deadline; with a group that can
 * give up, it is empty now if the GPU still does anything. */
static cudaError_t drain(const td_stream *s)
{
    if (s->guard == NULL)
        return cudaStreamSynchronize(s->stream);
    const cudaError_t e = look(s, s->guard->deadline_ms * TD_NS_PER_MS);
    if (e == cudaErrorNotReady && s->guard->give_up != NULL) {
        td_cuda_guard_end(s->guard);
        look(s, GIVE_UP_NS);
    }
    return e;
}

static td_status sync_stream(td_stream *s, td_err *err)
{
    const cudaError_t e = drain(s);
    if (e == cudaErrorNotReady)
        return td_fail(err, TD_DEADLINE, "GPU %d: not done after %lld ms", s->index,
                       (long long)s->guard->deadline_ms);
    if (s->error[0] != '\0')
        return td_fail(err, TD_CUDA, "GPU %d: %s", s->index, s->error);
    if (e == cudaSuccess && s->guard != NULL && td_cuda_guard_late(s->guard)) {
        td_cuda_guard_end(s->guard);
        return td_fail(err, TD_DEADLINE, "GPU %d: another rank did not come", s->index);
    }
    if (e == cudaSuccess && s->guard != NULL && s->guard->give_up != NULL &&
        td_cuda_guard_dead(s->guard))
        return td_fail(err, TD_CANCELLED, "GPU %d: the ranks' collectives were aborted", s->index);
    return e == cudaSuccess ? TD_OK : failed(err, s, "running what was enqueued", e);
}

/* ---- memory ---- */

static void close_device(td_device *device)
{
    cuda_device *d = reinterpret_cast<cuda_device *>(device);
    cudaSetDevice(d->stream.index);
    if (d->stream.stream != NULL) {
        drain(&d->stream);
        cudaStreamDestroy(d->stream.stream);
    }
    for (int i = 0; i < d->stream.n_scratch; i++)
        cudaFree(d->stream.scratch[i]);
    td_cuda_guard_give(d->stream.guard);
    free(d);
}

static td_status alloc_memory(td_device *device, size_t n_bytes, void **out, td_err *err)
{
    td_stream *s = stream_of(device);
    void *ptr = NULL;
    size_t available = 0, total = 0;
    cudaError_t e = cudaSetDevice(s->index);
    if (e == cudaSuccess)
        e = cudaMalloc(&ptr, n_bytes > 0 ? n_bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* it is not sticky */
        cudaMemGetInfo(&available, &total);
        return td_fail(err, TD_NOMEM, "GPU %d: no memory for %zu bytes: %zu of %zu are free",
                       s->index, n_bytes, available, total);
    }
    if (e != cudaSuccess)
        return failed(err, s, "allocating memory", e);
    e = cudaMemsetAsync(ptr, 0, n_bytes, s->stream);
    if (e != cudaSuccess) {
        cudaFree(ptr);
        return failed(err, s, "zeroing memory", e);
    }
    *out = ptr;
    return TD_OK;
}

static void free_memory(td_device *device, void *ptr)
{
    td_stream *s = stream_of(device);
    cudaSetDevice(s->index);
    drain(s);
    cudaFree(ptr);
}

td_status td_cuda_keep(td_stream *s, const char *what, cudaError_t e)
{
    if (e == cudaSuccess)
        return TD_OK;
    cudaGetLastError(); /* it is kept here, and not the next launch's */
    if (s->error[0] == '\0')
        snprintf(s->error, sizeof(s->error), "%s: %s", what, cudaGetErrorString(e));
    return TD_CUDA;
}

static td_status move(td_stream *s, void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind)
{
    if (n_bytes == 0)
        return TD_OK;
    return td_cuda_keep(s, "a copy", cudaMemcpyAsync(dst, src, n_bytes, kind, s->stream));
}

static td_status write_memory(td_stream *s, void *dst, const void *src, size_t n_bytes)
{
    return move(s, dst, src, n_bytes, cudaMemcpyHostToDevice);
}

static td_status read_memory(td_stream *s, void *dst, const void *src, size_t n_bytes)
{
    return move(s, dst, src, n_bytes, cudaMemcpyDeviceToHost);
}

static td_status copy_memory(td_stream *s, void *dst, const void *src, size_t n_bytes)
{
    return move(s, dst, src, n_bytes, cudaMemcpyDeviceToDevice);
}

static td_status fill_memory(td_stream *s, void *dst, int byte, size_t n_bytes)
{
    if (n_bytes == 0)
        return TD_OK;
    return td_cuda_keep(s, "a fill", cudaMemsetAsync(dst, byte, n_bytes, s->stream));
}

#define LARGE_PAGE ((size_t)2 << 20)
#define SMALL_PAGE ((size_t)4096)

/* Memory of its own pages, page-locked when it is there: large pages where the system has them, by
 * which locking and every copy into it take less time than with cudaMallocHost(). */
static td_status alloc_host(td_device *device, size_t n_bytes, void **out, td_err *err)
{
    td_stream *s = stream_of(device);
    const size_t align = n_bytes >= LARGE_PAGE ? LARGE_PAGE : SMALL_PAGE;
    const size_t size = (n_bytes + align - 1) / align * align + (n_bytes == 0 ? align : 0);
    void *memory = NULL;
    cudaError_t e = cudaSetDevice(s->index);
    if (e == cudaSuccess && posix_memalign(&memory, align, size) != 0)
        e = cudaErrorMemoryAllocation;
    if (e == cudaSuccess) {
        madvise(memory, size, MADV_HUGEPAGE); /* a wish */
        memset(memory, 0, size);
        e = cudaHostRegister(memory, size, cudaHostRegisterPortable);
    }
    if (e != cudaSuccess) {
        free(memory);
        cudaGetLastError();
        return td_fail(err, e == cudaErrorMemoryAllocation ? TD_NOMEM : TD_CUDA,
                       "GPU %d: %zu bytes of page-locked host memory: %s", s->index, size,
                       cudaGetErrorString(e));
    }
    *out = memory;
    return TD_OK;
}

static void free_host(td_device *device, void *ptr)
{
    td_stream *s = stream_of(device);
    cudaSetDevice(s->index);
    drain(s);
    if (cudaHostUnregister(ptr) != cudaSuccess)
        cudaGetLastError(); /* not the next launch's */
    free(ptr);
}

static uint64_t free_bytes(td_device *device)
{
    size_t available = 0, total = 0;
    cudaSetDevice(stream_of(device)->index);
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? available : 0;
}

/* ---- recorded steps ---- */

struct td_graph {
    cudaGraphExec_t exec;
};

static td_status graph_begin(td_stream *s, td_err *err)
{
    cudaError_t e = cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal);
    return e == cudaSuccess ? TD_OK : failed(err, s, "recording a step", e);
}

static td_status graph_end(td_stream *s, td_graph **out, size_t *n_nodes, td_err *err)
{
    cudaGraph_t graph = NULL;
    td_graph *g = NULL;
    *out = NULL;
    cudaError_t e = cudaStreamEndCapture(s->stream, &graph);
    if (e == cudaSuccess)
        e = cudaGraphGetNodes(graph, NULL, n_nodes);
    if (e == cudaSuccess) {
        g = static_cast<td_graph *>(calloc(1, sizeof(*g)));
        e = g == NULL ? cudaErrorMemoryAllocation : cudaGraphInstantiate(&g->exec, graph, 0);
    }
    if (e == cudaSuccess) /* memory that it needs on the device is taken now, not at a launch */
        e = cudaGraphUpload(g->exec, s->stream);
    if (graph != NULL)
        cudaGraphDestroy(graph);
    if (e != cudaSuccess) {
        cudaGetLastError();
        if (g != NULL && g->exec != NULL)
            cudaGraphExecDestroy(g->exec);
        free(g);
        return failed(err, s, "recording a step", e);
    }
    *out = g;
    return TD_OK;
}

static td_status graph_launch(td_graph *graph, td_stream *s)
{
    return td_cuda_keep(s, "a recorded step", cudaGraphLaunch(graph->exec, s->stream));
}

static void graph_destroy(td_graph *graph)
{
    cudaGraphExecDestroy(graph->exec);
    free(graph);
}

/* ---- points on the stream ---- */

struct td_event {
    cudaEvent_t event;
};

static td_status event_create(td_device *device, td_event **out, td_err *err)
{
    td_stream *s = stream_of(device);
    td_event *event = static_cast<td_event *>(calloc(1, sizeof(*event)));
    cudaError_t e = event == NULL ? cudaErrorMemoryAllocation : cudaSetDevice(s->index);
    if (e == cudaSuccess)
        e = cudaEventCreate(&event->event);
    if (e != cudaSuccess) {
        free(event);
        return failed(err, s, "making an event", e);
    }
    *out = event;
    return TD_OK;
}

static void event_destroy(td_device *device, td_event *event)
{
    (void)device;
    cudaEventDestroy(event->event);
    free(event);
}

static td_status event_record(td_event *event, td_stream *s)
{
    return td_cuda_keep(s, "an event", cudaEventRecord(event->event, s->stream));
}

static td_status event_wait(td_event *event, td_stream *s, td_err *err)
{
    cudaError_t e = cudaEventSynchronize(event->event);
    if (s->error[0] != '\0')
        return td_fail(err, TD_CUDA, "GPU %d: %s", s->index, s->error);
    return e == cudaSuccess ? TD_OK : failed(err, s, "running what was enqueued", e);
}

static td_status event_poll(td_event *event, td_stream *s)
{
    const cudaError_t e = cudaEventQuery(event->event);
    if (e == cudaErrorNotReady) {
        cudaGetLastError(); /* it is no launch's failure */
        return TD_PENDING;
    }
    return td_cuda_keep(s, "running what was enqueued", e);
}

static td_status event_elapsed_ns(td_event *from, td_event *to, td_stream *s, int64_t *out,
                                  td_err *err)
{
    float ms = 0;
    cudaError_t e = cudaEventElapsedTime(&ms, from->event, to->event);
    if (e != cudaSuccess)
        return failed(err, s, "timing", e);
    *out = static_cast<int64_t>(static_cast<double>(ms) * 1e6);
    return TD_OK;
}

/* ---- for a second thread ---- */

static td_status bind_thread(td_device *device, td_err *err)
{
    td_stream *s = stream_of(device);
    cudaError_t e = cudaSetDevice(s->index);
    if (e == cudaSuccess)
        e = cudaFree(NULL); /* the context is made, and current for the driver's calls, too */
    return e == cudaSuccess ? TD_OK : failed(err, s, "making its context current", e);
}

static td_status open_stream(td_device *device, td_stream **out, td_err *err)
{
    const td_stream *own = stream_of(device);
    td_stream *s = static_cast<td_stream *>(calloc(1, sizeof(*s)));
    if (s == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory");
    s->head = own->head;
    s->index = own->index;
    cudaError_t e = cudaSetDevice(s->index);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) {
        td_status st = failed(err, s, "opening a stream", e);
        free(s);
        return st;
    }
    *out = s;
    return TD_OK;
}

static void close_stream(td_stream *s)
{
    cudaSetDevice(s->index);
    cudaStreamSynchronize(s->stream);
    cudaStreamDestroy(s->stream);
    for (int i = 0; i < s->n_scratch; i++)
        cudaFree(s->scratch[i]);
    free(s);
}

/* Devices say whether they order a network adapter's writes themselves: before what they read
 * themselves, or before what any device reads, as ranks do that copy pages of another GPU. The
 * device's own stream is not the caller's: nothing is kept with it. */
static td_status flush_writes(td_device *device)
{
    const int index = stream_of(device)->index;
    int ordering = 0, options = 0;
    cudaError_t e =
        cudaDeviceGetAttribute(&ordering, cudaDevAttrGPUDirectRDMAWritesOrdering, index);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&options, cudaDevAttrGPUDirectRDMAFlushWritesOptions, index);
    if (e != cudaSuccess || ordering >= cudaGPUDirectRDMAWritesOrderingAllDevices)
        return e == cudaSuccess ? TD_OK : TD_CUDA;
    if ((options & cudaFlushGPUDirectRDMAWritesOptionHost) != 0)
        e = cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTargetCurrentDevice,
                                               cudaFlushGPUDirectRDMAWritesToAllDevices);
    else if (ordering < cudaGPUDirectRDMAWritesOrderingOwner)
        e = cudaErrorNotSupported;
    return e == cudaSuccess ? TD_OK : TD_CUDA;
}

static const td_device_class cuda_class = {close_device,     alloc_memory,
                                           free_memory,      alloc_host,
                                           free_host,        free_bytes,
                                           write_memory,     read_memory,
                                           fill_memory,      copy_memory,
                                           sync_stream,      graph_begin,
                                           graph_end,        graph_launch,
                                           graph_destroy,    event_create,
                                           event_destroy,    event_record,
                                           event_wait,       event_poll,
                                           event_elapsed_ns, 1,
                                           bind_thread,      open_stream,
                                           close_stream,     flush_writes};

/* What there is, against what this build has code for. */
static td_status check_device(uint32_t index, cudaDeviceProp *prop, td_err *err)
{
    int n = 0, driver = 0; /* 0: there is none */
    cudaError_t e = cudaDriverGetVersion(&driver);
    if (e == cudaSuccess && driver / 1000 < CUDART_VERSION / 1000)
        return td_fail(err, TD_UNSUPPORTED,
                       "backend cuda: a driver for CUDA %d is needed, %s is there",
                       CUDART_VERSION / 1000,
                       driver == 0           ? "none"
                       : driver / 1000 == 12 ? "one for CUDA 12"
                                             : "an older one");
    if (e == cudaSuccess)
        e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n == 0)
        return td_fail(err, TD_UNSUPPORTED, "backend cuda: no GPU can be used: %s",
                       e == cudaSuccess ? "none is visible" : cudaGetErrorString(e));
    if (index >= (uint32_t)n)
        return td_fail(err, TD_UNSUPPORTED, "backend cuda: GPU %u was asked for, %d %s visible",
                       index, n, n == 1 ? "is" : "are");
    e = cudaGetDeviceProperties(prop, (int)index);
    if (e != cudaSuccess)
        return td_fail(err, TD_CUDA, "GPU %u: reading its properties: %s", index,
                       cudaGetErrorString(e));
    if (prop->major != NEEDED_MAJOR || prop->minor != NEEDED_MINOR)
        return td_fail(err, TD_UNSUPPORTED,
                       "backend cuda: GPU %u (%s) is of compute capability %d.%d, this build has "
                       "code for %d.%d (Hopper) only",
                       index, prop->name, prop->major, prop->minor, NEEDED_MAJOR, NEEDED_MINOR);
    return TD_OK;
}

td_status td_cuda_device_check(uint32_t index, td_err *err)
{
    cudaDeviceProp prop;
    return check_device(index, &prop, err);
}

td_status td_cuda_device_open(uint32_t index, td_device **out, td_err *err)
{
    cudaDeviceProp prop;
    td_status st = check_device(index, &prop, err);
    if (st < 0)
        return st;
    cuda_device *d = static_cast<cuda_device *>(calloc(1, sizeof(*d)));
    if (d == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory");
    d->head.class_ = d->stream.head.class_ = &cuda_class;
    d->head.stream = &d->stream;
    d->stream.index = (int)index;
    snprintf(d->head.name, sizeof(d->head.name), "cuda:%u (%.64s, %d SMs, %zu MiB)", index,
             prop.name, prop.multiProcessorCount, prop.totalGlobalMem >> 20);
    cudaError_t e = cudaSetDevice((int)index);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithFlags(&d->stream.stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) {
        st = failed(err, &d->stream, "opening it", e);
        free(d);
        return st;
    }
    *out = reinterpret_cast<td_device *>(d);
    return TD_OK;
}

/* ---- for the operations ---- */

/* Whole MiB, at least one; NULL: there is not so much. */
static void *new_scratch(size_t n_bytes, size_t *room)
{
    void *ptr = NULL;
    *room = (n_bytes + ((size_t)1 << 20)) >> 20 << 20;
    if (cudaMalloc(&ptr, *room) == cudaSuccess)
        return ptr;
    cudaGetLastError(); /* it is not sticky */
    return NULL;
}

void *td_cuda_scratch(td_stream *s, size_t n_bytes)
{
    if (s->n_scratch > 0 && n_bytes <= s->scratch_bytes)
        return s->scratch[s->n_scratch - 1];
    /* At least twice as much each time, for the older ones stay; and an eighth more, so that a step
     * of some rows more than the largest so far needs no other. */
    const size_t twice = 2 * s->scratch_bytes, wish = n_bytes > twice ? n_bytes : twice;
    size_t room = 0;
    void *ptr = NULL;
    if (s->n_scratch < TD_CUDA_MAX_SCRATCH && (ptr = new_scratch(wish + wish / 8, &room)) == NULL)
        ptr = new_scratch(n_bytes, &room);
    if (ptr == NULL) {
        size_t available = 0, total = 0;
        cudaMemGetInfo(&available, &total);
        if (s->error[0] == '\0')
            snprintf(s->error, sizeof(s->error),
                     "no memory for %zu bytes of scratch: %zu of %zu are free", n_bytes, available,
                     total);
        return NULL;
    }
    s->scratch[s->n_scratch++] = ptr;
    s->scratch_bytes = room;
    return ptr;
}

td_status td_cuda_launched(td_stream *s, const char *op)
{
    return td_cuda_keep(s, op, cudaGetLastError());
}

td_status td_cuda_recording(td_stream *s, int *out)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const td_status st = td_cuda_keep(s, "a stream", cudaStreamIsCapturing(s->stream, &status));
    *out = status != cudaStreamCaptureStatusNone;
    return st;
}

/* The limit belongs to the kernel and the GPU, not to the launch: it is never lowered under another
 * thread's, or a recorded one, so every kernel gets all that a block may have. */
td_status td_cuda_allow_shared(td_stream *s, const void *kernel, size_t n_bytes, const char *op)
{
    cudaFuncAttributes now;
    int most = 0;
    if (n_bytes <= 47 << 10) /* what is given unasked, less what kernels have besides */
        return TD_OK;
    td_status st = td_cuda_keep(s, op, cudaFuncGetAttributes(&now, kernel));
    if (st < 0 || (size_t)now.maxDynamicSharedSizeBytes >= n_bytes)
        return st;
    st = td_cuda_keep(
        s, op, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, s->index));
    most -= (int)now.sharedSizeBytes; /* what it has without asking counts, too */
    if (st == TD_OK)
        st = td_cuda_keep(
            s, op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    return st;
}
