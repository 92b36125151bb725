/* backend.h - a device with the operations that run on it. `cpu` is part of every program; `cuda`
 * is one shared object (libtandem-cuda.so) that is loaded when asked for, so that the same programs
 * start on machines without any CUDA library. Nothing is chosen silently. */
#ifndef TD_KERNELS_BACKEND_H
#define TD_KERNELS_BACKEND_H
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

/* ---- between the loader and the plug-in ---- */

#define TD_PLUGIN_ABI 1 /* of this structure, of td_ops and of every operation's arguments */
#define TD_PLUGIN_SYMBOL "td_cuda_plugin"

typedef struct {
    uint32_t abi;
    uint32_t ops_bytes; /* sizeof(td_ops) */
    const char *version;
    td_status (*open)(uint32_t index, td_device **out, td_err *err);
    const td_ops *ops;
} td_plugin;
#endif
