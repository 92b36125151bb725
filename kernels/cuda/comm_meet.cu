/* comm_meet.cu - streams of ranks on different GPUs meet without the host: the form that a recorded
 * step can hold, launched any number of times. Each rank tells the others, in their memory, how
 * many meetings it has come to, and waits until the others have come to as many, which it reads in
 * its own memory. Counts only grow, and a rank cannot come to a meeting before all have come to the
 * one before it, so a peer is never more than one ahead.
 * The release makes what the rank's kernels wrote before visible to whoever acquires the count and
 * to the kernels behind that; nothing else needs a fence. A kernel that waits has so few blocks
 * that all of them get to run, because ranks that share a GPU have no recorded steps and what else
 * runs on a GPU ends by itself. */
#include "kernels/cuda/comm.cuh"

#include "kernels/cuda/copy.cuh"

#define THREADS TD_COPY_THREADS
#define MAX_BLOCKS 128 /* all of them at a time on any GPU that this is built for */
#define LOOKS 64       /* at the count between two looks at the clock and at page-locked memory */

static __device__ inline void tell(uint64_t *count, uint64_t value)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(count), "l"(value) : "memory");
}

static __device__ inline uint64_t told(const uint64_t *count)
{
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(count) : "memory");
    return value;
}

static __device__ inline uint64_t now_ns()
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

static __device__ void wait_for(const uint64_t *count, uint64_t turn, volatile int *stop,
                                uint64_t limit_ns)
{
    const uint64_t start = now_ns();
    for (;;) {
        for (int i = 0; i < LOOKS; i++)
            if (told(count) >= turn)
                return;
        if (*stop != TD_CUDA_STOP_NOT)
            return;
        if (now_ns() - start > limit_ns) {
            *stop = TD_CUDA_STOP_LATE; /* every rank's waits end, and td_stream_sync() says why */
            return;
        }
    }
}

/* A thread for each rank, by which each other one is told and waited for. */
static __device__ inline void meet(const td_comm_meeting &m, uint64_t turn)
{
    const uint32_t r = threadIdx.x;
    if (r < m.n && r != m.rank) {
        tell(&m.turns[r]->from[m.rank], turn);
        wait_for(&m.turns[m.rank]->from[r], turn, m.stop, m.limit_ns);
    }
    __syncthreads();
}

__global__ void __launch_bounds__(TD_CUDA_COMM_MAX_RANKS) meet_kernel(td_comm_meeting m)
{
    td_comm_turns *mine = m.turns[m.rank];
    const uint64_t turn = mine->turn + 1;
    meet(m, turn);
    if (threadIdx.x == 0)
        mine->turn = turn;
}

/* The first block meets the peers, and then lets the others go on: many blocks that look at
 * page-locked memory hold each other up. */
static __device__ inline void meet_in_first_block(const td_comm_meeting &m, uint64_t turn)
{
    uint64_t *open = &m.turns[m.rank]->open;
    if (blockIdx.x == 0)
        meet(m, turn);
    if (threadIdx.x == 0 && blockIdx.x == 0)
        tell(open, turn);
    if (threadIdx.x == 0)
        while (told(open) < turn) /* not without an end: the first block's wait has one */
            ;
    __syncthreads();
}

/* `parts` blocks to a source. They wait until the peers' bytes are there; the last one that is done
 * waits until the peers have read this rank's. */
__global__ void __launch_bounds__(THREADS)
    meet_gather_kernel(td_comm_meeting m, td_comm_sources from, unsigned parts, int64_t n_bytes,
                       unsigned char *recv)
{
    __shared__ bool is_last;
    td_comm_turns *mine = m.turns[m.rank];
    const uint64_t turn = mine->turn + 1;
    const unsigned r = blockIdx.x / parts, part = blockIdx.x % parts;
    meet_in_first_block(m, turn);
    td_copy(recv + r * n_bytes, from.p[r], n_bytes, (int)(part * THREADS + threadIdx.x),
            (int)(parts * THREADS));
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(&mine->n_blocks, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!is_last)
        return;
    meet(m, turn + 1);
    if (threadIdx.x == 0) {
        mine->n_blocks = 0;
        mine->turn = turn + 1;
    }
}

td_status td_comm_meet_launch(const td_comm_meeting *meeting, td_stream *s)
{
    meet_kernel<<<1, TD_CUDA_COMM_MAX_RANKS, 0, s->stream>>>(*meeting);
    return td_cuda_launched(s, "a meeting of ranks");
}

td_status td_comm_meet_gather_launch(const td_comm_meeting *m, const td_comm_sources *from,
                                     size_t n_bytes, void *recv, td_stream *s)
{
    static_assert(TD_CUDA_COMM_MAX_RANKS <= MAX_BLOCKS, "a block to a source");
    static_assert(TD_CUDA_COMM_MAX_RANKS <= THREADS, "a thread to a rank");
    const size_t per_block = THREADS * sizeof(uint4), most = MAX_BLOCKS / m->n;
    const size_t wanted = (n_bytes + per_block - 1) / per_block;
    const unsigned parts = (unsigned)(wanted < 1 ? 1 : wanted > most ? most : wanted);
    meet_gather_kernel<<<m->n * parts, THREADS, 0, s->stream>>>(*m, *from, parts, (int64_t)n_bytes,
                                                                (unsigned char *)recv);
    return td_cuda_launched(s, "all_gather");
}

cudaError_t td_comm_meet_load(void)
{
    cudaFuncAttributes unused;
    const cudaError_t e = cudaFuncGetAttributes(&unused, meet_kernel);
    return e == cudaSuccess ? cudaFuncGetAttributes(&unused, meet_gather_kernel) : e;
}
