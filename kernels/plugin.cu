/* plugin.cu - what libtandem-cuda.so shows: one table. */
#include "kernels/cuda/comm.cuh"
#include "kernels/cuda/device.cuh"
extern "C" {
#include "kernels/backend.h"
}

static const td_ops ops = {"cuda",
#define MEMBER(op) td_##op##_cuda,
                           TD_OPS_MAP(MEMBER)
#undef MEMBER
};

static td_status open_comm(const td_backend_comm_options *options, td_comm_group **out, td_err *err)
{
    if (options->form == TD_COMM_NCCL)
        return td_cuda_nccl_create(options, out, err);
    return td_cuda_peer_create(options, out, err);
}

extern "C" __attribute__((visibility("default"))) const td_plugin td_cuda_plugin = {
    TD_PLUGIN_ABI, sizeof(td_ops), TD_VERSION, td_cuda_device_open, &ops, open_comm};
