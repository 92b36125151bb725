/* device.h - memory, streams and copies of one rank's device. The CPU form is a group of threads;
 * the CUDA form lives in the CUDA plug-in. A device and its stream belong to one engine thread.
 * Operations enqueue on the stream and return; the host reads a device result only after
 * td_stream_sync() (the CPU form has finished when the call returns, but callers may not rely on
 * it). */
#ifndef TD_DEVICE_DEVICE_H
#define TD_DEVICE_DEVICE_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct td_device td_device;
typedef struct td_stream td_stream;

uint32_t td_device_cpus(void); /* that this process may run on; at least 1 */
/* n_threads: how many threads work on an operation, the calling one included; 0 takes
 * td_device_cpus(). The helpers spin for spin_us after their last work, then sleep on a futex. */
td_status td_device_open_cpu(uint32_t n_threads, uint32_t spin_us, td_device **out, td_err *err);
void td_device_close(td_device *device);             /* NULL is fine */
td_stream *td_device_stream(td_device *device);      /* lives as long as the device */
const char *td_device_name(const td_device *device); /* "cpu (2 threads, avx512)" */

/* Zeroed, 64-byte aligned. */
td_status td_device_alloc(td_device *device, size_t n_bytes, void **out, td_err *err);
void td_device_free(td_device *device, void *ptr); /* NULL is fine */

/* Host memory that this device copies from and to without staging; zeroed, 64-byte aligned. */
td_status td_device_alloc_host(td_device *device, size_t n_bytes, void **out, td_err *err);
void td_device_free_host(td_device *device, void *ptr); /* NULL is fine */

td_status td_stream_write(td_stream *stream, void *dst_device, const void *src_host,
                          size_t n_bytes);
td_status td_stream_read(td_stream *stream, void *dst_host, const void *src_device, size_t n_bytes);
td_status td_stream_fill(td_stream *stream, void *dst_device, int byte, size_t n_bytes);
/* src_device: memory of the stream's device, or of another one of this kind in this process. */
td_status td_stream_copy(td_stream *stream, void *dst_device, const void *src_device,
                         size_t n_bytes);
/* Waits until everything enqueued so far is done. */
td_status td_stream_sync(td_stream *stream, td_err *err);

/* A recorded step: what was enqueued between begin and end, not run but kept, and launched as one
 * piece as often as wanted, with whatever its buffers hold then. Only devices that can (the CUDA
 * form); the CPU form answers TD_UNSUPPORTED. Between begin and end nothing may need new scratch:
 * the same operations, run once before, have grown it. */
typedef struct td_graph td_graph;
int td_device_records(const td_device *device);
td_status td_graph_begin(td_stream *stream, td_err *err);
/* After a failure in between as well: then *out is NULL. n_nodes: operations in it. */
td_status td_graph_end(td_stream *stream, td_graph **out, size_t *n_nodes, td_err *err);
td_status td_graph_launch(td_graph *graph, td_stream *stream);
void td_graph_destroy(td_graph *graph, td_stream *stream); /* NULL is fine */

/* A point on a stream: everything that was enqueued before it was recorded is done, when a wait for
 * it returns or a poll says so. Recorded again, it is the later point. Never inside a recorded
 * step; stream is the one that it was recorded on. */
typedef struct td_event td_event;
td_status td_event_create(td_device *device, td_event **out, td_err *err);
void td_event_destroy(td_device *device, td_event *event); /* NULL is fine */
td_status td_event_record(td_event *event, td_stream *stream);
td_status td_event_wait(td_event *event, td_stream *stream, td_err *err); /* the host waits */
/* TD_OK: passed; TD_PENDING; TD_CUDA: the device failed. */
td_status td_event_poll(td_event *event, td_stream *stream);
/* Time on the device from one point to a later one, both passed. */
td_status td_event_elapsed_ns(td_event *from, td_event *to, td_stream *stream, int64_t *out,
                              td_err *err);

/* Bytes of device memory that are free now; 0 where nobody counts (CPU). */
uint64_t td_device_free_bytes(td_device *device);

/* ---- for a second thread, that moves bytes while the engine's thread computes ---- */

/* The calling thread works with this device from now on (CUDA: its context is current, as UCX needs
 * it). The calls below are for such threads, each with streams and events of its own. */
td_status td_device_bind(td_device *device, td_err *err);
int td_device_is_gpu(const td_device *device); /* its memory is not the host's */
/* Copies and operations on it run beside those of the device's own stream. Closing waits for what
 * was enqueued; NULL is fine. */
td_status td_device_open_stream(td_device *device, td_stream **out, td_err *err);
void td_device_close_stream(td_stream *stream);
/* Bytes that a network adapter has written into the device's memory are there for what is enqueued
 * after this, on any device; does nothing where the device keeps that order itself. */
td_status td_device_flush_writes(td_device *device);
#endif
