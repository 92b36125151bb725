/* rank.h - what every rank of a program opens before it can compute: its device, its share of the
 * weights, its slab of KV pages. For the rank's own thread; boot only. */
#ifndef TD_MODEL_RANK_H
#define TD_MODEL_RANK_H
#include "common/kv/slab.h"
#include "kernels/backend.h"
#include "model/engine.h"

typedef struct {
    const td_checkpoint *ckpt;
    const td_model_config *config;
    const td_kv_layout *layout; /* outlives the rank */
    int precise, poison;
    td_moe_mode moe;
    int tensor; /* ranks of a tensor-parallel decoder, not of a prefill; moe: fused */
    uint32_t rank, n_ranks, n_threads, spin_us, n_pages;
    uint32_t load_threads; /* cuda: that read its weights; 0: td_weights_load_threads() */
    td_backend_kind backend;
    uint32_t gpu;           /* cuda: rank 0's; rank r is on GPU gpu + r / ranks_per_gpu */
    uint32_t ranks_per_gpu; /* cuda: ranks that share one; 0: 1 */
} td_rank_options;

typedef struct {
    td_device *device;
    td_weights *weights;
    td_kv_slab slab; /* the device's memory: kernels use it, peers read and fill it */
    void *kv;        /* cuda: the memory behind the slab */
    const td_ops *ops;
} td_rank;

/* What the knob `kv` says, in its order; auto: fp8, or f32 in precise mode. */
typedef enum { TD_RANK_KV_AUTO, TD_RANK_KV_FP8, TD_RANK_KV_BF16, TD_RANK_KV_F32 } td_rank_kv;
td_kv_dtype td_rank_kv_dtype(td_rank_kv knob, int precise);

/* Zeroed on entry. On failure everything is given back. */
td_status td_rank_open(td_rank *rank, const td_rank_options *options, td_err *err);
void td_rank_close(td_rank *rank); /* zeroed is fine */
/* The collectives of the n_ranks ranks that are opened with these options (`rank` apart); comm: how
 * ranks on GPUs reach each other. Any thread. */
td_status td_rank_group(const td_rank_options *options, td_comm_form comm, int64_t deadline_ms,
                        td_comm_group **out, td_err *err);
/* The engine's view of it; comm NULL for a single rank. Fields that are the caller's choice stay 0.
 */
td_engine_config td_rank_engine(const td_rank *rank, const td_kv_layout *layout, td_comm *comm);
/* A page that is given out: td_kv_slab_open(), and where the host cannot reach it zeros by the
 * rank's stream, so that unused slots travel as zeros. */
td_status td_rank_open_page(td_rank *rank, uint32_t page, td_err *err);
/* A page of another rank of this process to the same page of mine. On GPUs it is enqueued, and the
 * other's page has to be there by now; until my stream has passed it, that page may not change. */
td_status td_rank_take_page(const td_rank *rank, const td_rank *from, uint32_t page);
/* Begins to compute, on any of the device's streams, the CRC32C of a range of each of n pages.
 * pages and crc: the device's memory. rank: a td_rank; made to be called back by the transfer
 * layer. */
td_status td_rank_page_crc(void *rank, td_stream *stream, const int32_t *pages, uint32_t n,
                           uint64_t offset, uint64_t n_bytes, uint32_t *crc);
/* Threads of each of n ranks when n_threads (0: all CPUs of this process) serve all of them; at
 * least 1. */
uint32_t td_rank_threads(uint32_t n_threads, uint32_t n_ranks);
/* n_threads and load_threads of a rank of n_ranks (set before) for a knob of all ranks; 0: by the
 * CPUs there are. */
void td_rank_set_threads(td_rank_options *options, uint32_t n_threads);
#endif
