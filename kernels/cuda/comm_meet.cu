/* comm_meet.cu - streams of ranks on different GPUs meet without the host: the form that a recorded
 * step can hold, launched any number of times. Each rank tells the others, in their memory, how
 * many meetings it has come to, and waits until the others have come to as many, which it reads in
 * its own memory. Counts only grow, and a rank cannot come to a meeting before all have come to the
 * one before it, so a peer is never more than one ahead.
 * The release makes what the rank's kernels wrote before visible to whoever acquires the count and
 * to the kernels behind that; nothing else needs a fence. One block a rank: it always gets to run,
 * because ranks that share a GPU have no recorded steps. */
#include "kernels/cuda/comm.cuh"

#define LOOKS 64 /* at the count between two looks at the clock and at page-locked memory */

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

/* A thread for each rank. */
__global__ void __launch_bounds__(TD_CUDA_COMM_MAX_RANKS) meet_kernel(td_comm_meeting m)
{
    const uint32_t r = threadIdx.x;
    td_comm_turns *mine = m.turns[m.rank];
    const uint64_t turn = mine->turn + 1;
    if (r < m.n && r != m.rank) {
        tell(&m.turns[r]->from[m.rank], turn);
        wait_for(&mine->from[r], turn, m.stop, m.limit_ns);
    }
    __syncthreads(); /* all have read the old turn */
    if (r == 0)
        mine->turn = turn;
}

td_status td_comm_meet_launch(const td_comm_meeting *meeting, td_stream *s)
{
    meet_kernel<<<1, TD_CUDA_COMM_MAX_RANKS, 0, s->stream>>>(*meeting);
    return td_cuda_launched(s, "a meeting of ranks");
}

cudaError_t td_comm_meet_load(void)
{
    cudaFuncAttributes unused;
    return cudaFuncGetAttributes(&unused, meet_kernel);
}
