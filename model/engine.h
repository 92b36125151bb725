/* engine.h - what the prompt's forward pass (prefill_step.h) and the decoder (decode_step.h) of one
 * rank are built on. Everything belongs to that rank's engine thread. */
#ifndef TD_MODEL_ENGINE_H
#define TD_MODEL_ENGINE_H
#include "common/comm/comm.h"
#include "common/kv/layout.h"
#include "kernels/ops.h"
#include "model/cp_split.h"
#include "model/sampling.h"
#include "model/weights.h"

typedef struct {
    const td_weights *weights; /* this rank's; these pointers outlive the engine */
    const td_ops *ops;
    td_device *device; /* the weights' */
    td_comm *comm;     /* NULL when weights->n_ranks is 1 */
    const td_kv_layout
        *layout;            /* with the draft layer if drafts are wanted; dtype must fit the mode */
    unsigned char *kv_base; /* this rank's slab, device memory, [n_pages, layout->page_stride] */
    uint32_t n_pages;
    uint32_t max_context; /* positions of a request; <= max_position_embeddings */
    td_cp_split split;    /* prefill with several ranks */
    int draft_prenorm; /* feed the draft layer the state before the final norm (model-spec F 2) */
    int graphs;        /* the decoder records its steps: device and comm must be able to */
    uint32_t attn_tile_rows;      /* rows that attention works on at a time; 0: 128, GPU 2048 */
    uint64_t index_scratch_bytes; /* indexer scores of a tile; 0: 64 MiB, GPU 256 MiB */
} td_engine_config;
#endif
