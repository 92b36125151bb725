#include "kernels/backend.h"

#include <dlfcn.h>

#define PLUGIN "libtandem-cuda.so"

/* Loaded once per call and never unloaded: the loader counts. Found beside the program's other
 * libraries (its run path), or where LD_LIBRARY_PATH says. */
static td_status load(const td_plugin **out, td_err *err)
{
    void *library = dlopen(PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return td_fail(err, TD_UNSUPPORTED,
                       "backend cuda: the plug-in " PLUGIN " cannot be loaded: %s", dlerror());
    const td_plugin *plugin = dlsym(library, TD_PLUGIN_SYMBOL);
    if (plugin == NULL)
        return td_fail(err, TD_UNSUPPORTED, "backend cuda: " PLUGIN " is not tandem's plug-in: %s",
                       dlerror());
    if (plugin->abi != TD_PLUGIN_ABI || plugin->ops_bytes != sizeof(td_ops))
        return td_fail(err, TD_UNSUPPORTED,
                       "backend cuda: " PLUGIN " (version %s, interface %u) is of another build "
                       "than this program (interface %d)",
                       plugin->version, plugin->abi, TD_PLUGIN_ABI);
    *out = plugin;
    return TD_OK;
}

td_status td_backend_open(const td_backend_options *options, td_device **device, const td_ops **ops,
                          td_err *err)
{
    const td_plugin *plugin = NULL;
    if (options->kind == TD_BACKEND_CPU) {
        *ops = td_ops_cpu();
        return td_device_open_cpu(options->n_threads, options->spin_us, device, err);
    }
    td_status st = load(&plugin, err);
    if (st == TD_OK)
        st = plugin->open(options->index, device, err);
    if (st == TD_OK)
        *ops = plugin->ops;
    return st;
}

td_status td_backend_comm(const td_backend_comm_options *o, td_comm_group **out, td_err *err)
{
    const td_plugin *plugin = NULL;
    if (o->kind == TD_BACKEND_CPU)
        return td_comm_group_create(o->n_ranks, o->spin_us, o->deadline_ms, out, err);
    if (o->n_ranks == 0 || o->n_ranks > TD_CUDA_COMM_MAX_RANKS || o->deadline_ms <= 0)
        return td_fail(err, TD_INVALID, "backend cuda: %u ranks, deadline of %lld ms", o->n_ranks,
                       (long long)o->deadline_ms);
    td_status st = load(&plugin, err);
    return st == TD_OK ? plugin->comm(o, out, err) : st;
}
