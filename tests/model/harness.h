/* harness.h - the ranks of a prefill, and a decoder on rank 0's cache, in one process, for tests
 * that look at the engine closer than tandem-logits does. */
#ifndef TD_TESTS_MODEL_HARNESS_H
#define TD_TESTS_MODEL_HARNESS_H
#include "model/decode_step.h"
#include "model/prefill_step.h"
#include "model/rank.h"

#define TD_HARNESS_MAX_RANKS 4

typedef struct {
    int precise, draft_prenorm, without_draft;
    td_kv_dtype kv;
    uint32_t n_ranks, max_tokens, max_seqs, n_pages, tile, max_context;
    uint64_t index_scratch_bytes;
    td_cp_split split;
    td_moe_mode moe;
    td_backend_kind backend; /* cuda: all ranks on GPU 0 */
    const td_ops *ops;       /* NULL: the backend's */
} td_harness_options;

typedef struct {
    td_harness_options o;
    td_model_config config;
    td_kv_layout layout;
    td_comm_group *group;
    td_rank ranks[TD_HARNESS_MAX_RANKS];
    td_prefill *prefill[TD_HARNESS_MAX_RANKS];
    td_err err; /* of the rank that failed first */
} td_harness;

/* How many of n ranks share a GPU: all, unless the environment's TANDEM_TEST_GPUS says over how
 * many GPUs they are spread. */
uint32_t td_harness_ranks_per_gpu(uint32_t n_ranks);
/* Aborts when it cannot. */
void td_harness_open(td_harness *h, const char *dir, const td_harness_options *o);
void td_harness_close(td_harness *h);
td_engine_config td_harness_engine(const td_harness *h, uint32_t rank);
/* Runs the step on all ranks; tokens [n_seqs] are rank 0's. */
td_status td_harness_run(td_harness *h, const td_prefill_batch *batch, int32_t *tokens);
/* A whole prompt through as many steps as chunk (0: one) makes of it; its first token. dump may be
 * NULL; its arrays begin at the prompt's first row. */
int32_t td_harness_prompt(td_harness *h, const td_prefill_seq *whole, int32_t chunk,
                          const td_prefill_dump *dump);
#endif
