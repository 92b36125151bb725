/* moe_gate.h - routing (model-spec A.7): s = sigmoid(logits), s' = s + bias; groups ranked by the
 * sum of their two largest s' (their one, if a group has one expert); of the best topk_group groups
 * the K largest s'; weight = s / (sum s + eps) * scale, or s * scale without norm_topk. Ties:
 * lowest id (group, expert). Chosen experts stand in descending order of s'. */
#ifndef TD_KERNELS_MOE_GATE_H
#define TD_KERNELS_MOE_GATE_H
#include "kernels/shapes.h"

typedef struct {
    const float *logits; /* [T, E] */
    const float *bias;   /* [E] or NULL */
    int32_t *ids;        /* [T, K] */
    float *weights;      /* [T, K] */
    int T, E, K, n_group, topk_group;
    int norm_topk;
    float scale, eps; /* eps: 1e-20 in precise mode, else 0 */
} td_moe_gate_args;

td_status td_moe_gate_ref(const td_moe_gate_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_moe_gate_cpu(const td_moe_gate_args *a, td_stream *stream);
#endif
