/* async.cuh - copies from global to shared memory that run while the thread goes on (cp.async). */
#ifndef TD_KERNELS_CUDA_ASYNC_CUH
#define TD_KERNELS_CUDA_ASYNC_CUH
#include "kernels/cuda/cuda.cuh"

/* Sixteen bytes, both sides 16-byte aligned; only the first n_bytes are read, the others are 0. */
__device__ inline void td_copy_async(void *shared, const void *global, int n_bytes)
{
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                 "r"(n_bytes)
                 : "memory");
}

/* Sixteen bytes, both sides 16-byte aligned; they become 0 when they are not there. */
__device__ inline void td_copy_async_all(void *shared, const void *global, bool there)
{
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("{.reg .pred p; setp.eq.u32 p, %2, 0; "
                 "cp.async.cg.shared.global [%0], [%1], 16, p;}" ::"r"(to),
                 "l"(global), "r"((uint32_t)there)
                 : "memory");
}

/* Four bytes, both sides 4-byte aligned; n_bytes 0: they become 0. */
__device__ inline void td_copy_async4(void *shared, const void *global, int n_bytes)
{
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(n_bytes)
                 : "memory");
}

/* Closes a group of copies. */
__device__ inline void td_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits for all but the last PENDING groups of this thread. */
template <int PENDING> __device__ inline void td_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif
