/* plugin.cu - what libtandem-cuda.so shows: one table. */
#include "kernels/cuda/device.cuh"
extern "C" {
#include "kernels/backend.h"
}

static const td_ops ops = {"cuda",
#define MEMBER(op) td_##op##_cuda,
                           TD_OPS_MAP(MEMBER)
#undef MEMBER
};

extern "C" __attribute__((visibility("default"))) const td_plugin td_cuda_plugin = {
    TD_PLUGIN_ABI, sizeof(td_ops), TD_VERSION, td_cuda_device_open, &ops};
