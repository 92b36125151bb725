/* class.h - what each form of a device implements; for the forms alone (device.c dispatches, the
 * CUDA plug-in brings one). A form's td_device starts with a td_device_head, its td_stream with a
 * pointer to its class. */
#ifndef TD_DEVICE_CLASS_H
#define TD_DEVICE_CLASS_H
#include "common/device/device.h"

typedef struct { /* contracts: device.h */
    void (*close)(td_device *device);
    td_status (*alloc)(td_device *device, size_t n_bytes, void **out, td_err *err);
    void (*free)(td_device *device, void *ptr);
    td_status (*alloc_host)(td_device *device, size_t n_bytes, void **out, td_err *err);
    void (*free_host)(td_device *device, void *ptr);
    uint64_t (*free_bytes)(td_device *device);
    td_status (*write)(td_stream *stream, void *dst_device, const void *src_host, size_t n_bytes);
    td_status (*read)(td_stream *stream, void *dst_host, const void *src_device, size_t n_bytes);
    td_status (*fill)(td_stream *stream, void *dst_device, int byte, size_t n_bytes);
    td_status (*copy)(td_stream *stream, void *dst_device, const void *src_device, size_t n_bytes);
    td_status (*sync)(td_stream *stream, td_err *err);
    /* NULL: cannot record */
    td_status (*graph_begin)(td_stream *stream, td_err *err);
    td_status (*graph_end)(td_stream *stream, td_graph **out, size_t *n_nodes, td_err *err);
    td_status (*graph_launch)(td_graph *graph, td_stream *stream);
    void (*graph_destroy)(td_graph *graph);
    td_status (*event_create)(td_device *device, td_event **out, td_err *err);
    void (*event_destroy)(td_device *device, td_event *event);
    td_status (*event_record)(td_event *event, td_stream *stream);
    td_status (*event_wait)(td_event *event, td_stream *stream, td_err *err);
    td_status (*event_poll)(td_event *event, td_stream *stream);
    td_status (*event_elapsed_ns)(td_event *from, td_event *to, td_stream *stream, int64_t *out,
                                  td_err *err);
    int is_gpu;
    td_status (*bind)(td_device *device, td_err *err);
    td_status (*open_stream)(td_device *device, td_stream **out, td_err *err);
    void (*close_stream)(td_stream *stream);
    td_status (*flush_writes)(td_device *device);
} td_device_class;

typedef struct {
    const td_device_class *class_;
    td_stream *stream;
    char name[128];
} td_device_head;

typedef struct {
    const td_device_class *class_;
} td_stream_head;
#endif
