/* pipe.cuh - warps of a block with different jobs: barriers in shared memory that some arrive at
 * and others wait for (mbarrier), barriers of a part of the block, registers that one part gives up
 * and another takes. */
#ifndef TD_KERNELS_CUDA_PIPE_CUH
#define TD_KERNELS_CUDA_PIPE_CUH
#include "kernels/cuda/cuda.cuh"

/* A barrier completes a phase when n_arrivals have come, and starts the next. One thread; the block
 * sees it behind its next barrier. */
__device__ inline void td_pipe_init(uint64_t *barrier, int n_arrivals)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(barrier);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(n_arrivals) : "memory");
}

/* What this thread did before is seen by those who waited for the phase. */
__device__ inline void td_pipe_arrive(uint64_t *barrier)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(barrier);
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0];}" ::"r"(at)
                 : "memory");
}

/* Until phase n (0, 1, ..) is complete, of which `odd` is n % 2; phase n + 1 must not be. */
__device__ inline void td_pipe_wait(uint64_t *barrier, uint32_t odd)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(barrier);
    uint32_t done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(at), "r"(odd)
                     : "memory");
    } while (done == 0);
}

/* As __syncthreads() for N threads (whole warps) of the block; id 1..15, 0 is __syncthreads(). */
template <int N> __device__ inline void td_pipe_sync(int id)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(N) : "memory");
}

/* Registers to a thread from here on, for every warp of a warpgroup: fewer than at the kernel's
 * start, or more, which waits until others gave them up. */
template <int N> __device__ inline void td_pipe_fewer_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ inline void td_pipe_more_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
#endif
