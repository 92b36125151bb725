/* moe_gate.h - routing (model-spec A.7): s = sigmoid(logits), s' = s + bias; groups ranked by the
 * sum of their two largest s' (their one, if a group has one expert); of the best topk_group groups
 * the K largest s'; weight = s / (sum s + eps) * scale, or s * scale without norm_topk. Ties:
 * lowest id (group, expert). Chosen experts stand in descending order of s'. sigmoid(l) =
 * 1 / (1 + td_expf(-l)); a NaN s' counts as -inf; bits are fixed. */
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

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_moe_gate_valid(const td_moe_gate_args *a)
{
    if (a->T < 0 || a->E < 1 || a->n_group < 1 || a->E % a->n_group != 0)
        return 0;
    if (a->topk_group < 1 || a->topk_group > a->n_group)
        return 0;
    if (a->K < 1 || a->K > a->topk_group * (a->E / a->n_group))
        return 0;
    return a->T == 0 || (a->logits != NULL && a->ids != NULL && a->weights != NULL);
}

td_status td_moe_gate_ref(const td_moe_gate_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_moe_gate_cpu(const td_moe_gate_args *a, td_stream *stream);
td_status td_moe_gate_cuda(const td_moe_gate_args *a, td_stream *stream); /* in the plug-in */
#endif
