/* backend.h - a device with the operations that run on it. `cpu` is part of every program; `cuda`
 * is one shared object (libtandem-cuda.so) that is loaded when asked for, so that the same programs
 * start on machines without any CUDA library. Nothing is chosen silently. */
#ifndef TD_KERNELS_BACKEND_H
#define TD_KERNELS_BACKEND_H
#include "common/comm/comm.h"
#include "kernels/ops.h"

typedef enum { TD_BACKEND_CPU, TD_BACKEND_CUDA } td_backend_kind; /* in the order of the knob */

typedef struct {
    td_backend_kind kind;
    uint32_t n_threads, spin_us; /* cpu: td_device_open_cpu() */
    uint32_t index;              /* cuda: which of the visible devices */
} td_backend_options;

/* TD_UNSUPPORTED: no plug-in, no such device, or one of another architecture; says what was needed
 * and what was found. Any thread. */
td_status td_backend_open(const td_backend_options *options, td_device **device, const td_ops **ops,
                          td_err *err);

/* How ranks on GPUs reach each other, in the order of the knob. PEER: their kernels read each
 * other's memory, on one GPU or on several with peer access. NCCL: each rank a GPU of its own. */
typedef enum { TD_COMM_PEER, TD_COMM_NCCL } td_comm_form;

typedef struct {
    td_backend_kind kind; /* cpu: the thread form; the next two are not looked at */
    td_comm_form form;    /* cuda */
    const uint32_t *gpus; /* cuda: [n_ranks], the index each rank opens its device with */
    uint32_t n_ranks;     /* cuda: at most TD_CUDA_COMM_MAX_RANKS */
    uint32_t spin_us;     /* before a rank that waits for another one's thread sleeps */
    int64_t deadline_ms;  /* longest wait for a peer, in a collective and in td_stream_sync() */
} td_backend_comm_options;

#define TD_CUDA_COMM_MAX_RANKS 64

/* A group whose ranks compute on this backend. TD_UNSUPPORTED: GPUs that cannot reach each other
 * in this form; says which. Any thread, before it opens a device of its own: its current GPU is
 * another one afterwards. A rank's end is for the thread that opened its device. */
td_status td_backend_comm(const td_backend_comm_options *options, td_comm_group **out, td_err *err);

/* ---- between the loader and the plug-in ---- */

#define TD_PLUGIN_ABI                                                                              \
    4 /* of this structure, td_device_class, td_comm_class, td_ops and every operation's args */
#define TD_PLUGIN_SYMBOL "td_cuda_plugin"

typedef struct {
    uint32_t abi;
    uint32_t ops_bytes; /* sizeof(td_ops) */
    const char *version;
    td_status (*open)(uint32_t index, td_device **out, td_err *err);
    const td_ops *ops;
    td_status (*comm)(const td_backend_comm_options *options, td_comm_group **out, td_err *err);
} td_plugin;
#endif
