/* weights.h - one rank's share of a checkpoint in device memory, in the form that the operations
 * take (model-spec A.2; design.md, context parallelism).
 *   quantised mode: e4m3 weights with their scales as stored, bf16 weights as stored, kv_b_proj
 *   dequantised to bf16 for the absorbed form; what is used as f32 (gate, the indexer's
 *   weights_proj, head; model-spec A.10) may be stored as f32, any other f32 matrix is taken only
 * if bf16 holds it exactly.    precise mode: everything f32. Attention (without `tensor`),
 * indexer, gate, embedding and head are whole on every rank. */
#ifndef TD_MODEL_WEIGHTS_H
#define TD_MODEL_WEIGHTS_H
#include "common/device/device.h"
#include "kernels/shapes.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/cp_split.h"

typedef struct {    /* y = x * w^T */
    void *w;        /* [N, K] dtype */
    float *ws;      /* [ceil(N/128), ceil(K/128)] e4m3 only */
    int32_t N, K;   /* this rank's; either may be 0 */
    td_dtype dtype; /* e4m3, bf16 or f32 */
} td_linear;

typedef struct { /* I is this rank's width (fused), or the whole one (ep, dense in ep mode) */
    td_linear gate, up; /* [I, D] */
    td_linear down;     /* [D, I] */
} td_mlp_weights;

typedef struct {          /* E experts of this rank, [expert_lo, expert_hi) */
    void *gate, *up;      /* [E, I, D] dtype */
    void *down;           /* [E, D, I] */
    float *gate_s, *up_s; /* [E, ceil(I/128), ceil(D/128)] e4m3 only */
    float *down_s;        /* [E, ceil(D/128), ceil(I/128)] e4m3 only */
    int32_t expert_lo, expert_hi, I;
    td_dtype dtype;
} td_expert_weights;

typedef struct {
    float *input_norm, *post_norm, *q_a_norm, *kv_a_norm; /* f32 whatever the file has */
    td_linear q_a, q_b, kv_a, o;
    /* H: the rank's heads. q_b [H (nope + rope), ..], o [D, H v] */
    void *w_uk; /* [H, C, nope] act: q~ = w_uk q_nope (transposed from kv_b_proj) */
    void *w_uv; /* [H, v, C]    act: o = w_uv u */
    td_linear index_q, index_k, index_w; /* wq_b, wk, weights_proj */
    float *index_k_norm_w, *index_k_norm_b;
    int is_moe;
    td_mlp_weights mlp; /* dense layer, or the shared expert(s) of a MoE layer (N 0: none) */
    td_linear gate;     /* MoE: [E, D] as stored, bf16 or f32 */
    float *gate_bias;   /* MoE: [E] */
    td_expert_weights experts;
    /* The draft layer only (model-spec A.12): */
    float *e_norm, *h_norm, *head_norm;
    td_linear eh;
} td_layer_weights;

typedef struct {
    td_model_config config;
    int precise;
    td_dtype act; /* bf16, or f32 in precise mode */
    td_moe_mode moe;
    int32_t rank, n_ranks;
    int tensor;               /* ranks split heads and widths, not rows */
    int32_t head_lo, head_hi; /* this rank's attention heads; all of them, or with `tensor` maybe
                                 none */
    void *embed;              /* [V, D] act */
    td_linear head;           /* [V, D] */
    float *final_norm;        /* [D] */
    int32_t n_layers;         /* of the target */
    int has_draft;            /* layers[n_layers] is the draft layer */
    td_layer_weights *layers; /* [n_layers + has_draft] */
    uint64_t n_bytes;         /* of device memory */
    td_device *device;
    void **allocations; /* owned */
    uint32_t n_allocations;
} td_weights;

typedef struct {
    int precise;
    td_moe_mode moe;
    int32_t rank, n_ranks;
    int tensor; /* cut the heads, too: the ranks of a tensor-parallel decoder. moe: fused */
    uint32_t load_threads;    /* that read the checkpoint; 0: td_weights_load_threads() */
    size_t load_buffer_bytes; /* of page-locked memory, five times; 0: 16 MiB */
} td_weights_options;

/* Threads that read for each of a process's n ranks, which load at the same time, when load_threads
 * is 0: at least 1, at most 16. */
uint32_t td_weights_load_threads(uint32_t n_ranks);
/* TD_CONFIG: a tensor is missing or has another shape or dtype than config.json asks for (names it,
 * with what was found and expected); TD_UNSUPPORTED: a dtype that no operation takes there;
 * TD_NOMEM; TD_IO, names the tensor. The draft layer is left out when config.json names one and the
 * checkpoint has no tensor of it. The checkpoint may be closed afterwards; the device must outlive
 * the weights. */
td_status td_weights_load(const td_checkpoint *ckpt, const td_model_config *config,
                          const td_weights_options *options, td_device *device, td_weights **out,
                          td_err *err);
void td_weights_destroy(td_weights *weights); /* NULL and half-loaded are fine */
/* config.json names a draft layer and the checkpoint has its tensors. */
int td_weights_has_draft(const td_checkpoint *ckpt, const td_model_config *config);
#endif
