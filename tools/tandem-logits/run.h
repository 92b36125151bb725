/* run.h - one prompt through the prefill ranks (threads of this process), then a greedy
 * continuation from rank 0's cache, on one rank as tandem-decode would do it, or on tensor-parallel
 * ones. */
#ifndef TD_TOOLS_LOGITS_RUN_H
#define TD_TOOLS_LOGITS_RUN_H
#include "kernels/backend.h"
#include "model/config.h"
#include "model/cp_split.h"
#include "model/decode_step.h"
#include "model/sampling.h"

#define TD_LOGITS_DEADLINE_MS 600000 /* for a rank that waits for another one */

typedef struct {
    const char *model; /* folder */
    int precise;
    td_kv_dtype kv;
    uint32_t n_ranks; /* of the prompt's forward pass */
    uint32_t tensor;  /* tensor-parallel ranks of the continuation; 0: 1 */
    td_cp_split split;
    td_moe_mode moe;
    uint32_t chunk;     /* tokens of a step; 0: the whole prompt in one */
    uint32_t generate;  /* tokens */
    uint32_t drafts;    /* per step */
    uint32_t n_threads; /* over all ranks; 0: one per CPU */
    int dump_layers, draft_prenorm;
    int no_graphs; /* enqueue decode steps operation by operation */
    int no_logits; /* only the continuation is wanted */
    td_backend_kind backend;
    uint32_t gpu;                /* cuda: rank 0's */
    uint32_t ranks_per_gpu;      /* cuda: ranks that share one; 0: 1 */
    td_comm_form comm;           /* cuda: how ranks reach each other */
    const td_ops *ops;           /* NULL: the backend's */
    const td_sampling *sampling; /* NULL: greedy */
} td_logits_options;

typedef struct {
    td_model_config config;
    int has_draft;
    uint32_t n_ids, n_generated;
    float *logits;      /* [n_ids, V]; NULL with no_logits */
    float *mtp_logits;  /* [n_ids - 1, V] and room for a row more; NULL without draft layer */
    float *hidden;      /* [n_ids, D] after the final norm */
    float *mtp_hidden;  /* [n_ids - 1, D] after shared_head.norm, NULL without draft layer */
    float **layer_out;  /* [n_layers] of [n_ids, D]; NULL without dump_layers */
    int32_t **selected; /* [n_layers] of [n_ids, index_topk] */
    int32_t *generated; /* [n_generated] */
    double load_s, prefill_s, decode_s;
    td_decode_graphs graphs;                 /* zeros: steps were not recorded */
    uint64_t n_steps, n_drafted, n_accepted; /* of the continuation */
} td_logits_result;

/* TD_INVALID, TD_CONFIG, TD_UNSUPPORTED, TD_NOT_FOUND: options, checkpoint or ids are wrong.
 * *out is for td_logits_free(), also after a failure. */
td_status td_logits_run(const td_logits_options *options, const int32_t *ids, uint32_t n_ids,
                        td_logits_result *out, td_err *err);
void td_logits_free(td_logits_result *result); /* zeroed is fine */
#endif
