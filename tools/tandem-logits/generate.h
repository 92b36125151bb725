/* generate.h - private: the continuation of a prompt whose KV the prefill ranks have computed, on
 * one rank or on tensor-parallel ones. */
#ifndef TD_TOOLS_LOGITS_GENERATE_H
#define TD_TOOLS_LOGITS_GENERATE_H
#include "model/rank.h"
#include "tools/tandem-logits/run.h"

typedef struct {
    const td_logits_options *o;
    const td_checkpoint *ckpt;
    const td_kv_layout *layout;
    const uint32_t *pages; /* [n_pages] */
    uint32_t n_pages, n_ids;
    int32_t first_token;
    td_rank *prompt; /* rank 0 of the prefill, idle: its cache is continued */
    void *hidden;    /* in its memory */
} td_continuation;

/* The knobs as a rank wants them; as an engine wants them. */
td_rank_options td_logits_rank_options(const td_logits_options *o, const td_checkpoint *ckpt,
                                       const td_model_config *config, const td_kv_layout *layout,
                                       uint32_t n_pages);
td_engine_config td_logits_engine(const td_logits_options *o, const td_kv_layout *layout,
                                  uint32_t n_ids, td_rank *rank, td_comm *comm);

/* Fills out->generated (room for o->generate) and the counts of steps and drafts. */
td_status td_logits_generate(const td_continuation *c, td_logits_result *out, td_err *err);
#endif
