/* comm.cu - the host's side of a group of ranks on GPUs, and the kernels of the collectives: each
 * reads the sources in rank order, so sums have the same bits on every rank.
 * Bound: the links between the GPUs, or memory where the ranks share one; measured as a part of
 * what they serve (docs/kernels.md: prefill on two ranks, decode on two ranks). */
#include "kernels/cuda/comm.cuh"

#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/group.cuh"

#define THREADS TD_COPY_THREADS
#define MAX_PARTS 64 /* blocks that share a source's bytes */

static td_status check_gpus(td_cuda_comm *c, const td_backend_comm_options *o, td_err *err)
{
    for (uint32_t r = 0; r < o->n_ranks; r++) {
        const td_status st = td_cuda_device_check(o->gpus[r], err);
        if (st < 0)
            return st;
        c->gpus[r] = (int)o->gpus[r];
    }
    return TD_OK;
}

td_status td_cuda_comm_init(td_cuda_comm *c, const td_backend_comm_options *o,
                            void (*give_up)(void *rank), td_err *err)
{
    td_status st = check_gpus(c, o, err);
    if (st == TD_OK)
        st = td_comm_group_create(o->n_ranks, o->spin_us, o->deadline_ms, &c->host, err);
    if (st < 0)
        return st;
    c->guard = td_cuda_guard_new(o->deadline_ms, give_up);
    if (c->guard == NULL)
        return td_fail(err, TD_NOMEM, "comm: no memory for %u ranks", o->n_ranks);
    cudaError_t e = cudaSetDevice(c->gpus[0]);
    if (e == cudaSuccess)
        e = cudaHostAlloc((void **)&c->fault, 2 * sizeof(int), cudaHostAllocPortable);
    if (e != cudaSuccess) {
        cudaGetLastError();
        c->fault = NULL;
        return td_fail(err, TD_CUDA, "GPU %d: page-locked memory for %u ranks: %s", c->gpus[0],
                       o->n_ranks, cudaGetErrorString(e));
    }
    c->stop = c->fault + 1;
    *c->fault = 0;
    *c->stop = TD_CUDA_STOP_NOT;
    return TD_OK;
}

void td_cuda_comm_fini(td_cuda_comm *c)
{
    if (c->guard != NULL) { /* the threads have left; their streams may live on */
        c->guard->give_up = NULL;
        c->guard->stop = NULL;
    }
    td_cuda_guard_give(c->guard);
    if (c->fault != NULL) {
        cudaSetDevice(c->gpus[0]);
        cudaFreeHost(c->fault);
    }
    td_comm_group_destroy(c->host);
}

td_status td_cuda_comm_check(const td_cuda_comm *c)
{
    if (td_cuda_guard_dead(c->guard))
        return TD_CANCELLED;
    if (td_cuda_guard_late(c->guard))
        return TD_DEADLINE;
    return *(volatile const int *)c->fault != 0 ? TD_INTERNAL : TD_OK;
}

static unsigned parts_of(size_t n, size_t per_block)
{
    const size_t parts = (n + per_block - 1) / per_block;
    return (unsigned)(parts < 1 ? 1 : parts > MAX_PARTS ? MAX_PARTS : parts);
}

/* `parts` blocks to a source. */
__global__ void __launch_bounds__(THREADS)
    gather_kernel(td_comm_sources from, unsigned parts, int64_t n_bytes, unsigned char *recv)
{
    const unsigned r = blockIdx.x / parts, part = blockIdx.x % parts;
    td_copy(recv + r * n_bytes, from.p[r], n_bytes, (int)(part * THREADS + threadIdx.x),
            (int)(parts * THREADS));
}

td_status td_comm_gather_launch(const td_comm_sources *from, uint32_t n, size_t n_bytes, void *recv,
                                td_stream *s)
{
    if (n_bytes == 0)
        return TD_OK;
    const unsigned parts = parts_of(n_bytes, THREADS * sizeof(uint4));
    gather_kernel<<<n * parts, THREADS, 0, s->stream>>>(*from, parts, (int64_t)n_bytes,
                                                        (unsigned char *)recv);
    return td_cuda_launched(s, "all_gather");
}

/* Four neighbours to a thread. */
__global__ void __launch_bounds__(THREADS)
    sum_kernel(td_comm_sources from, int n_ranks, int64_t n, float *recv)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= n)
        return;
    const int count = n - i < 4 ? (int)(n - i) : 4;
    td_group sum = td_load4((const float *)from.p[0] + i, count);
    for (int r = 1; r < n_ranks; r++)
        sum = td_group_add(sum, td_load4((const float *)from.p[r] + i, count));
    td_store4(sum, recv + i, count);
}

td_status td_comm_sum_launch(const td_comm_sources *from, uint32_t n, size_t n_elems, float *recv,
                             td_stream *s)
{
    if (n_elems == 0)
        return TD_OK;
    sum_kernel<<<td_grid((int64_t)n_elems, THREADS * 4), THREADS, 0, s->stream>>>(
        *from, (int)n, (int64_t)n_elems, recv);
    return td_cuda_launched(s, "reduce_scatter");
}

/* `parts` blocks to a source, which share the rows that there are. */
__global__ void __launch_bounds__(THREADS) rows_kernel(td_comm_rows a, unsigned parts)
{
    const unsigned r = blockIdx.x / parts, part = blockIdx.x % parts;
    const int64_t cap = a.cap, row_bytes = (int64_t)a.row_bytes;
    const int64_t said = *(const int32_t *)a.counts.p[r];
    const int64_t n = said < 0 ? 0 : said > cap ? cap : said;
    if (part == 0 && threadIdx.x == 0 && threadIdx.y == 0) {
        a.recv_counts[r] = (int32_t)n;
        if (n != said)
            *(volatile int *)a.fault = 1;
    }
    const unsigned char *src = (const unsigned char *)a.from.p[r];
    unsigned char *dst = (unsigned char *)a.recv + r * cap * row_bytes;
    for (int64_t j = part * blockDim.y + threadIdx.y; j < n; j += parts * blockDim.y)
        td_copy(dst + j * row_bytes, src + j * row_bytes, row_bytes, threadIdx.x, blockDim.x);
}

td_status td_comm_rows_launch(const td_comm_rows *a, td_stream *s)
{
    const dim3 block = td_copy_block((int64_t)a->row_bytes);
    const unsigned parts = parts_of(a->cap, block.y);
    rows_kernel<<<a->n * parts, block, 0, s->stream>>>(*a, parts);
    return td_cuda_launched(s, "all_to_all_rows");
}
