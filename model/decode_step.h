/* decode_step.h - the decoder: continuous batching with chained drafts (model-spec
 * A.12, D.3, D.4; the hand-over of D.5 as tandem does it). A sequence joins with its prompt's KV in
 * the cache, its first token and the hidden state of the prompt's last position; every step drafts
 * up to k tokens, verifies them in batch x (k+1) rows and keeps what the target itself would have
 * drawn. A sequence's tokens depend neither on the others of the batch nor on k.
 * Tensor-parallel ranks (weights cut with `tensor`) have a decoder each, on a thread each. All are
 * given the same joins, leaves and runs in the same order, and each needs all of a prompt's KV in
 * its own pages. A rank computes its heads and its slices of every MLP for all rows; their parts
 * are gathered and summed in rank order in f32, then rounded once; all else is computed on every
 * rank, from equal bits, so that all come to the same tokens without telling each other. A step
 * that fails on one rank aborts the group. */
#ifndef TD_MODEL_DECODE_STEP_H
#define TD_MODEL_DECODE_STEP_H
#include "model/engine.h"

#define TD_DECODE_MAX_DRAFTS 8

typedef struct td_decode td_decode;

/* What recording the steps took (config->graphs): one for 1, 2, 4, .. sequences, with all drafts.
 */
typedef struct {
    uint32_t n_graphs, n_nodes; /* n_nodes: operations in the largest */
    uint64_t n_bytes;           /* of device memory, scratch included */
    int64_t took_ns;
} td_decode_graphs;

typedef struct {
    int32_t prompt_len;  /* positions 0..prompt_len-1 are in the target's cache, 0..prompt_len-2 in
                            the draft layer's; >= 1 */
    int32_t first_token; /* the token at position prompt_len */
    const void *hidden;  /* device memory, [hidden_size] act; may be NULL when max_drafts is 0 */
    const uint32_t *pages; /* [n_pages], copied; see td_decode_pages() */
    uint32_t n_pages;
    int32_t max_new_tokens; /* the first token not counted; >= 0 */
    uint32_t max_drafts;    /* of this sequence; <= the decoder's */
    td_sampling sampling;   /* min_tokens counts the first token as token 1 */
} td_decode_seq;

typedef struct {
    uint32_t slot;
    uint32_t n_tokens; /* 1..k+1 new tokens, in order; never more than were left */
    int32_t tokens[TD_DECODE_MAX_DRAFTS + 1];
    uint32_t n_drafted; /* drafts that were verified */
    uint32_t n_accepted;
    int done; /* max_new_tokens are there: the sequence takes part no more and should leave */
} td_decode_result;

/* Positions that a sequence may write: prompt + max_new_tokens + max_drafts; pages for them. */
uint32_t td_decode_pages(int32_t prompt_len, int32_t max_new_tokens, uint32_t max_drafts);

/* max_drafts: k; 0 needs no draft layer. pad_rows: the batch is padded to a multiple of so many
 * sequences (fixed shapes); 0 or 1: not at all. With config->graphs it is padded to a power of two,
 * and the steps are recorded here, which takes all ranks: the group's deadline holds. */
td_status td_decode_create(const td_engine_config *config, uint32_t max_seqs, uint32_t max_drafts,
                           uint32_t pad_seqs, td_decode **out, td_err *err);
void td_decode_destroy(td_decode *decode); /* NULL is fine */
/* Puts a sequence into a free slot 0..max_seqs-1 between two steps. TD_INVALID says what is wrong
 * with it. */
td_status td_decode_join(td_decode *decode, uint32_t slot, const td_decode_seq *seq, td_err *err);
void td_decode_leave(td_decode *decode, uint32_t slot); /* a free slot is fine; between two steps */
/* One step over all sequences that are not done. results [max_seqs]; *n_results of them are
 * written. With nothing to do *n_results is 0. An error leaves the decoder unusable. */
td_status td_decode_run(td_decode *decode, td_decode_result *results, uint32_t *n_results,
                        td_err *err);
/* For tests: logits [n_drafted + 1, V] of the slot's rows in the last step. */
td_status td_decode_read_logits(td_decode *decode, uint32_t slot, float *logits, td_err *err);
const td_decode_graphs *td_decode_graphs_report(const td_decode *decode); /* zeros: none */
/* Time that steps have spent waiting for the device since the decoder was made; the rest of
 * td_decode_run() is the host's own work. */
int64_t td_decode_waited_ns(const td_decode *decode);
uint32_t td_decode_active(const td_decode *decode); /* sequences that are not done */
#endif
