/* config.h - a checkpoint's config.json (model-spec A.1), read once and checked: whatever this
 * program cannot compute faithfully is refused with the key's name, what was found and what would
 * do. Nothing is hard-coded: heads, experts, groups, ranks and top-k come from the file. Which
 * tokens begin and end a text is not the forward pass's business: those ids are the router's. */
#ifndef TD_MODEL_CONFIG_H
#define TD_MODEL_CONFIG_H
#include "common/base/status.h"
#include "common/kv/layout.h"

#include <stddef.h>
#include <stdint.h>

#define TD_MODEL_MAX_LAYERS 255 /* the draft layer counted */
#define TD_MODEL_CONFIG_MAX_BYTES (16u << 20)

typedef struct {
    int yarn; /* 0: plain RoPE */
    double theta;
    double factor, beta_fast, beta_slow, mscale_all_dim; /* yarn only */
    int32_t original_max_positions;                      /* yarn only */
    int indexer_interleaved; /* indexer_rope_interleave; 0: half-split (V3.2) */
} td_rope_config;

typedef struct {
    int32_t vocab_size, hidden_size, n_layers, n_heads;
    int32_t intermediate_size, moe_intermediate_size;
    int32_t q_lora_rank, kv_lora_rank, qk_nope_dim, qk_rope_dim, v_dim;
    int32_t index_n_heads, index_dim, index_topk;
    int32_t n_experts, n_shared_experts, experts_per_token, n_group, topk_group;
    int32_t max_positions;
    int32_t n_draft_layers; /* num_nextn_predict_layers: 0 or 1 */
    int norm_topk_prob;
    int tie_embeddings; /* lm_head is the embedding table */
    double routed_scaling_factor, rms_norm_eps;
    td_rope_config rope;
    int fp8;   /* quantization_config: e4m3 weights with 128x128 block scales */
    int ue8m0; /* scale_fmt "ue8m0": activation scales are powers of two */
    unsigned char layer_is_moe[TD_MODEL_MAX_LAYERS]; /* [n_layers + n_draft_layers] */
} td_model_config;

/* json: n_bytes, need not end in NUL. TD_CONFIG: malformed, a key missing, of the wrong type, out
 * of bounds or in contradiction with another. TD_UNSUPPORTED: well-formed, but another model. */
td_status td_model_config_parse(const char *json, size_t n_bytes, td_model_config *out,
                                td_err *err);
/* dir/config.json, or what a "slice:.." says (slice.h). */
td_status td_model_config_load(const char *dir, td_model_config *out, td_err *err);

/* The cache's layout for this model. Precise mode takes an f32 cache only, quantised mode fp8 or
 * bf16 only: TD_CONFIG otherwise. */
td_status td_model_kv_layout(const td_model_config *config, int precise, td_kv_dtype dtype,
                             int with_draft, td_kv_layout *out, td_err *err);
/* Bytes of one hidden state (the blob from prefill to decode): [hidden_size] bf16, or f32 in
 * precise mode. */
size_t td_model_hidden_bytes(const td_model_config *config, int precise);
#endif
