/* device.cuh - opening the CUDA form of a device, and what the forms of collectives need of it. */
#ifndef TD_KERNELS_CUDA_DEVICE_CUH
#define TD_KERNELS_CUDA_DEVICE_CUH
#include "kernels/cuda/cuda.cuh"

/* TD_UNSUPPORTED: no such device, or one that this build has no code for. */
td_status td_cuda_device_open(uint32_t index, td_device **out, td_err *err);
td_status td_cuda_device_check(uint32_t index, td_err *err); /* what open() would refuse */

td_cuda_guard *td_cuda_guard_new(int64_t deadline_ms, void (*give_up)(void *rank)); /* NULL: no
                                                                                        memory */
void td_cuda_guard_give(td_cuda_guard *guard); /* one owner less; NULL is fine */
/* The stream, `rank`'s, is an owner from now on. */
void td_cuda_guard_set(td_stream *s, td_cuda_guard *guard, void *rank);
void td_cuda_guard_end(td_cuda_guard *guard); /* the group is dead; any thread */
int td_cuda_guard_dead(const td_cuda_guard *guard);
/* What guard->stop says: waits go on; the group is dead; a wait on the device came to its limit. */
enum { TD_CUDA_STOP_NOT, TD_CUDA_STOP_DEAD, TD_CUDA_STOP_LATE };
int td_cuda_guard_late(const td_cuda_guard *guard);
#endif
