/* comm.h - collectives between the ranks of one daemon, which are threads of one process. The
 * thread form moves bytes between the ranks' host memories; the CUDA plug-in has forms for ranks on
 * GPUs (td_backend_comm() in kernels/backend.h). Every rank calls the same collectives in the same
 * order with the same sizes. Calls are ordered on the given stream, of that rank's own device,
 * which is the same one in every call; no form reads what the device computed on the host. Waits
 * end when the group is aborted or when a peer has not arrived for the group's deadline:
 * TD_CANCELLED / TD_DEADLINE, and the group is unusable from then on. On a GPU the wait for a
 * peer's bytes is the stream's, so td_stream_sync() ends with these as well. Memory handed to a
 * collective must live until every rank's call has returned and every rank's stream has passed it
 * (td_stream_sync()), after an abort too: a peer may still be copying from it. TD_INTERNAL: the
 * ranks came with different sizes or counts out of bounds; on a GPU a later call says so of counts.
 */
#ifndef TD_COMM_COMM_H
#define TD_COMM_COMM_H
#include "common/base/status.h"
#include "common/device/device.h"

#include <stddef.h>
#include <stdint.h>

typedef struct td_comm_group td_comm_group; /* shared by the ranks' threads */
typedef struct td_comm td_comm;             /* one rank's end; that rank's thread only */

/* The thread form. deadline_ms: longest wait for a peer inside one collective, not counting time in
 * which the process was stopped. spin_us: spin before sleeping. */
td_status td_comm_group_create(uint32_t n_ranks, uint32_t spin_us, int64_t deadline_ms,
                               td_comm_group **out, td_err *err);
void td_comm_group_destroy(td_comm_group *group); /* after all threads left it; NULL is fine */
void td_comm_group_abort(td_comm_group *group);   /* any thread */
const char *td_comm_group_form(const td_comm_group *group); /* "threads", "peer", "nccl" */
td_comm *td_comm_group_rank(td_comm_group *group, uint32_t rank);
uint32_t td_comm_rank(const td_comm *comm);
uint32_t td_comm_n_ranks(const td_comm *comm);
void td_comm_abort(td_comm *comm); /* its group */

/* recv[r] = rank r's send: send [n_bytes], recv [n_ranks, n_bytes]; may not overlap. */
td_status td_comm_all_gather(td_comm *comm, const void *send, size_t n_bytes, void *recv,
                             td_stream *stream);
/* recv[i] = sum over ranks, in rank order, of that rank's send[rank * n + i]; f32; send [n_ranks,
 * n], recv [n]. */
td_status td_comm_reduce_scatter_f32(td_comm *comm, const float *send, size_t n, float *recv,
                                     td_stream *stream);
/* Block (me -> r) of send goes to block (me) of rank r's recv. send, recv: [n_ranks, cap_rows,
 * row_bytes]; of block r only the first send_counts[r] rows are moved (counts: [n_ranks] i32 in
 * device memory). recv_counts [n_ranks] is written. Rows past the counts are left as they are. */
td_status td_comm_all_to_all_rows(td_comm *comm, const void *send, const int32_t *send_counts,
                                  uint32_t cap_rows, size_t row_bytes, void *recv,
                                  int32_t *recv_counts, td_stream *stream);
td_status td_comm_barrier(td_comm *comm);
/* NULL: a step with collectives of this group can be recorded (td_graph_begin()); all ranks record
 * the same collectives, meanwhile meeting on the host as ever, and launch the same recorded steps
 * in the same order, between calls that are not recorded as they like. The memory that was handed
 * to the collectives must live as long as such steps are launched. Else why not: a constant text,
 * and a collective in a step that is being recorded fails with TD_UNSUPPORTED. Any thread. */
const char *td_comm_unrecordable(const td_comm *comm);
#endif
