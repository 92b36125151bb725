/* cluster.cuh - a cluster: up to 8 neighbouring blocks of threads that run at the same time and
 * read each other's dynamic shared memory. A block may not end while another still reads its
 * memory. */
#ifndef TD_KERNELS_CUDA_CLUSTER_CUH
#define TD_KERNELS_CUDA_CLUSTER_CUH
#include "kernels/cuda/cuda.cuh"

#define TD_CLUSTER_MAX 8 /* more would have to be asked for, and not every GPU has the room */

/* This block's number in its cluster: blockIdx.x modulo its size. */
__device__ inline int td_cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}

/* Every thread of the cluster arrives, then waits; what was written before is there after. */
__device__ inline void td_cluster_arrive()
{
    __syncwarp(); /* lanes may come from a loop that they left one by one */
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void td_cluster_wait()
{
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline void td_cluster_sync()
{
    td_cluster_arrive();
    td_cluster_wait();
}

/* Where the same place of this block's dynamic shared memory is in block `rank`'s. */
template <typename T> __device__ inline const T *td_cluster_peer(const T *shared, int rank)
{
    uint64_t at;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(at) : "l"(shared), "r"(rank));
    return (const T *)at;
}

/* Launches n_blocks (a multiple of n_ranks) in clusters of n_ranks: 1, 2, 4 or 8. */
template <typename... P, typename... A>
static td_status td_cluster_launch(td_stream *s, const char *op, void (*kernel)(P...),
                                   unsigned n_blocks, dim3 n_threads, size_t n_shared, int n_ranks,
                                   A... args)
{
    cudaLaunchAttribute attr = {};
    cudaLaunchConfig_t config = {};
    attr.id = cudaLaunchAttributeClusterDimension;
    attr.val.clusterDim.x = (unsigned)n_ranks;
    attr.val.clusterDim.y = attr.val.clusterDim.z = 1;
    config.gridDim = dim3(n_blocks);
    config.blockDim = n_threads;
    config.dynamicSmemBytes = n_shared;
    config.stream = s->stream;
    config.attrs = &attr;
    config.numAttrs = 1;
    td_status st = td_cuda_allow_shared(s, (const void *)kernel, n_shared, op);
    if (st < 0)
        return st;
    const cudaError_t e = cudaLaunchKernelEx(&config, kernel, args...);
    st = td_cuda_launched(s, op); /* clears the error */
    return e == cudaSuccess ? st : td_cuda_keep(s, op, e);
}
#endif
