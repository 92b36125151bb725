/* ops.h - the device-operation table: every operation once, each implemented for `cpu` and for
 * `cuda`; the forward pass is written over this table. Operations enqueue on a stream and return;
 * arguments point into that stream's device memory and hold until the stream has passed them.
 * TD_BAD_SHAPE: no kernel for these arguments; nothing was enqueued. */
#ifndef TD_KERNELS_OPS_H
#define TD_KERNELS_OPS_H
#include "kernels/accept/accept.h"
#include "kernels/argmax/argmax.h"
#include "kernels/embed/embed.h"
#include "kernels/ep_combine/ep_combine.h"
#include "kernels/ep_plan/ep_plan.h"
#include "kernels/gather_rows/gather_rows.h"
#include "kernels/gemm/gemm.h"
#include "kernels/hadamard_quant/hadamard_quant.h"
#include "kernels/head_gemm/head_gemm.h"
#include "kernels/index_key_write/index_key_write.h"
#include "kernels/index_logits/index_logits.h"
#include "kernels/index_weights/index_weights.h"
#include "kernels/kv_write/kv_write.h"
#include "kernels/layernorm/layernorm.h"
#include "kernels/moe_experts/moe_experts.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/page_crc/page_crc.h"
#include "kernels/quant/quant.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"
#include "kernels/sample/sample.h"
#include "kernels/silu_mul/silu_mul.h"
#include "kernels/sparse_mla/sparse_mla.h"
#include "kernels/sum_partials/sum_partials.h"
#include "kernels/topk/topk.h"
#include "kernels/widen/widen.h"

#define TD_OPS_MAP(X)                                                                              \
    X(embed)                                                                                       \
    X(rmsnorm)                                                                                     \
    X(layernorm)                                                                                   \
    X(quant)                                                                                       \
    X(widen)                                                                                       \
    X(gemm)                                                                                        \
    X(head_gemm)                                                                                   \
    X(rope)                                                                                        \
    X(hadamard_quant)                                                                              \
    X(index_weights)                                                                               \
    X(kv_write)                                                                                    \
    X(index_key_write)                                                                             \
    X(index_logits)                                                                                \
    X(topk)                                                                                        \
    X(sparse_mla)                                                                                  \
    X(moe_gate)                                                                                    \
    X(moe_experts)                                                                                 \
    X(silu_mul)                                                                                    \
    X(sum_partials)                                                                                \
    X(gather_rows)                                                                                 \
    X(sample)                                                                                      \
    X(argmax)                                                                                      \
    X(accept)                                                                                      \
    X(page_crc)                                                                                    \
    X(ep_plan)                                                                                     \
    X(ep_combine)

typedef struct {
    const char *backend; /* "cpu", "cuda", "ref" */
#define TD_OPS_MEMBER(op) td_status (*op)(const td_##op##_args *a, td_stream *stream);
    TD_OPS_MAP(TD_OPS_MEMBER)
#undef TD_OPS_MEMBER
} td_ops;

const td_ops *td_ops_cpu(void);
const td_ops *td_ops_ref(void); /* plain judges: tests only */
#endif
