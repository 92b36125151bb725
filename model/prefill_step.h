/* prefill_step.h - one rank of the prompt's forward pass (design.md, context parallelism). A step
 * takes a batch of chunks of prompts: every rank is given the same step, computes its own tokens,
 * and afterwards holds the KV of all of them. Keys and values are always read back from the cache,
 * so chunked and whole prompts, and prefill and decode, give the same bits.
 * A step that fails on one rank aborts the ranks' td_comm_group; what refuses it before it begins
 * (TD_INVALID) is the same on all. */
#ifndef TD_MODEL_PREFILL_STEP_H
#define TD_MODEL_PREFILL_STEP_H
#include "model/engine.h"

typedef struct td_prefill td_prefill;

typedef struct {           /* a chunk of one prompt */
    int32_t start;         /* position of its first token; 0..start-1 are in the cache */
    int32_t n_tokens;      /* >= 1 */
    const int32_t *tokens; /* [n_tokens] */
    int32_t next_token;    /* the prompt's token behind the chunk; -1: the chunk ends the prompt */
    const uint32_t *pages; /* [n_pages] cover positions 0..start+n_tokens-1 */
    uint32_t n_pages;
    const td_sampling *sampling; /* of the first token; NULL: do not draw one */
    void *hidden_out; /* device memory of rank 0, [hidden_size] act: the state of the prompt's last
                         position for the decoder; NULL: not wanted. Used when the chunk ends it. */
} td_prefill_seq;

/* What tandem-logits looks at. Host memory shared by all ranks, each writes the rows it computed; T
 * tokens of the step in flat order; any pointer may be NULL. */
typedef struct {
    float *logits;      /* [T, V] */
    float *mtp_logits;  /* [T, V] rows whose next token is in the prompt */
    float *hidden;      /* [T, D] after the final norm */
    float *mtp_hidden;  /* [T, D] after shared_head.norm */
    float **layer_out;  /* [n_layers] of [T, D]: the residual stream after the layer */
    int32_t **selected; /* [n_layers] of [T, index_topk]: positions, -1 padded */
} td_prefill_dump;

/* Called on the rank's thread after a layer was enqueued: the step's rows of that layer's planes
 * are final once the stream has passed this point. layer n_layers: the draft layer. */
typedef void (*td_layer_hook)(void *arg, uint32_t layer);

typedef struct {
    const td_prefill_seq *seqs; /* [n_seqs] */
    uint32_t n_seqs;
    td_layer_hook on_layer_done; /* NULL: none */
    void *hook_arg;
    const td_prefill_dump *dump; /* NULL: none */
} td_prefill_batch;

/* max_tokens: of all chunks of a step together, over all ranks. TD_CONFIG: layout, mode and weights
 * do not fit each other. */
td_status td_prefill_create(const td_engine_config *config, uint32_t max_tokens, uint32_t max_seqs,
                            td_prefill **out, td_err *err);
void td_prefill_destroy(td_prefill *prefill); /* NULL is fine */
/* Enqueues the step and waits for it. first_tokens [n_seqs]: written by rank 0, which draws them
 * (-1: none was drawn); on other ranks all are -1. TD_INVALID: the batch is not as the comments
 * above say; nothing was done. */
td_status td_prefill_run(td_prefill *prefill, const td_prefill_batch *batch, int32_t *first_tokens,
                         td_err *err);
#endif
