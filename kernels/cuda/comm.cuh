/* comm.cuh - what the forms of collectives between GPUs share: the host's side of a group, and the
 * kernels that bring the peers' bytes to their places. */
#ifndef TD_KERNELS_CUDA_COMM_CUH
#define TD_KERNELS_CUDA_COMM_CUH
#include "kernels/cuda/device.cuh"
extern "C" {
#include "common/comm/class.h"
#include "kernels/backend.h"
}

/* What each rank contributes, by rank; device memory that this rank's kernels can read. */
typedef struct {
    const void *p[TD_CUDA_COMM_MAX_RANKS];
} td_comm_sources;

/* A form's group starts with it. */
typedef struct {
    td_comm_group_head head;
    td_comm_group *host; /* the same ranks' thread form: where they meet on the host */
    td_cuda_guard *guard;
    /* Page-locked, every GPU reads and writes them */
    int *fault; /* counts were out of bounds */
    int *stop;  /* TD_CUDA_STOP_: waits of kernels end */
    int gpus[TD_CUDA_COMM_MAX_RANKS];
} td_cuda_comm;

/* Fills in all but `head`; checks the GPUs. give_up: td_cuda_guard's. fini() takes a half-built
 * one. */
td_status td_cuda_comm_init(td_cuda_comm *c, const td_backend_comm_options *options,
                            void (*give_up)(void *rank), td_err *err);
void td_cuda_comm_fini(td_cuda_comm *c);
/* TD_OK: the group is alive and no fault was found so far. */
td_status td_cuda_comm_check(const td_cuda_comm *c);

/* recv [n, n_bytes] = the sources one after the other. */
td_status td_comm_gather_launch(const td_comm_sources *from, uint32_t n, size_t n_bytes, void *recv,
                                td_stream *stream);
/* recv[i] = from[0][i] + from[1][i] + .., in that order, i < n_elems. */
td_status td_comm_sum_launch(const td_comm_sources *from, uint32_t n, size_t n_elems, float *recv,
                             td_stream *stream);
/* Block r of recv [n, cap, row_bytes] = the first counts.p[r][0] rows of from.p[r]; recv_counts[r]
 * is that count. One that is no count of 0..cap rows moves what it can and sets *fault. */
typedef struct {
    td_comm_sources from, counts;
    uint32_t n, cap;
    size_t row_bytes;
    void *recv;
    int32_t *recv_counts; /* [n] */
    int *fault;
} td_comm_rows;
td_status td_comm_rows_launch(const td_comm_rows *a, td_stream *stream);

/* ---- meetings of ranks in recorded steps (comm_meet.cu) ---- */

typedef struct {                           /* in device memory of the rank; starts as zeros */
    uint64_t turn;                         /* meetings that it has left */
    uint64_t from[TD_CUDA_COMM_MAX_RANKS]; /* [r]: meetings that rank r has come to, by rank r */
} td_comm_turns;

typedef struct {
    td_comm_turns *turns[TD_CUDA_COMM_MAX_RANKS]; /* by rank; all can write to them */
    uint32_t rank, n;
    int *stop;
    uint64_t limit_ns; /* of a wait */
} td_comm_meeting;

/* What this rank's stream does before it is done, and the peers see it, before any rank's stream
 * goes on; results are worthless once *stop is set. Each rank has a GPU of its own and launches it
 * as often as the others. */
td_status td_comm_meet_launch(const td_comm_meeting *meeting, td_stream *stream);
/* Brings its code to the current GPU, so that a launch need not. */
cudaError_t td_comm_meet_load(void);

td_status td_cuda_peer_create(const td_backend_comm_options *options, td_comm_group **out,
                              td_err *err);
td_status td_cuda_nccl_create(const td_backend_comm_options *options, td_comm_group **out,
                              td_err *err);
#endif
