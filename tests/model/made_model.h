/* made_model.h - checkpoints with random weights and any shape, in the published layout, for tests
 * of what the goldens' shapes do not reach. */
#ifndef TD_TESTS_MODEL_MADE_MODEL_H
#define TD_TESTS_MODEL_MADE_MODEL_H
#include <stdint.h>

typedef struct {
    int vocab, hidden, layers, dense_layers, heads, intermediate, moe_intermediate;
    int q_lora, kv_lora, nope, rope, v, index_heads, index_dim, index_topk;
    int experts, shared, per_token, groups, topk_groups, max_positions;
    int fp8, plain_scales, yarn, draft, f32_norms;
    int bf16_scales;         /* FP8's scale tensors are BF16, rounded; 2: the same values in F32 */
    int draft_copies;        /* the draft layer brings an embedding and a head of its own */
    int f32_gates;           /* gate, weights_proj and head in F32; 2: numbers that bf16 has */
    int not_normed;          /* norm_topk_prob false */
    int indexer_interleaved; /* indexer_rope_interleave true */
    int tied;                /* tie_word_embeddings and no lm_head; 2: untied with a copy instead */
    int shards;              /* 1: model.safetensors; more: with an index */
    uint64_t seed;
    const char *leave_out; /* a tensor that is not written */
    const char *reshape;   /* a tensor that gets a column (or element) too many */
} td_made_model;

/* Small and odd: 3 heads, 9 experts in 3 groups. */
td_made_model td_made_model_odd(void);
/* Writes config.json and the tensors into dir; aborts on failure. */
void td_make_model(const char *dir, const td_made_model *m);
#endif
