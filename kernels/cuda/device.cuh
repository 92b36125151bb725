/* device.cuh - opening the CUDA form of a device; for the plug-in's entry alone. */
#ifndef TD_KERNELS_CUDA_DEVICE_CUH
#define TD_KERNELS_CUDA_DEVICE_CUH
#include "kernels/cuda/cuda.cuh"

/* TD_UNSUPPORTED: no such device, or one that this build has no code for. */
td_status td_cuda_device_open(uint32_t index, td_device **out, td_err *err);
#endif
