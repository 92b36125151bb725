/* sparse_mla.h - absorbed attention over the selected positions (model-spec A.5): with q = [q~ C ;
 * q_pe R] and key rows [c ; k_pe], s_i = (q . key_i) * scale;  p_i = exp(s_i - max s);  u = act(
 * sum_i r(p_i) c_i / sum_i p_i ) r rounds p to bf16 when act is bf16. c is the cache's value (fp8:
 * code * scale). No selected position gives zeros. A row's bits depend on nothing but that row's
 * inputs. */
#ifndef TD_KERNELS_SPARSE_MLA_H
#define TD_KERNELS_SPARSE_MLA_H
#include "kernels/shapes.h"

typedef struct {
    const void *q;           /* [T, H, C + R] act */
    const int32_t *selected; /* [T, k] positions, -1: skip */
    td_kv_view kv;           /* latent plane */
    td_rows_view rows;
    void *u; /* [T, H, C] act */
    int T, H, C, R, k;
    float scale;
    td_dtype act;
} td_sparse_mla_args;

td_status td_sparse_mla_ref(const td_sparse_mla_args *a,
                            td_stream *stream); /* plain judge: tests only */
td_status td_sparse_mla_cpu(const td_sparse_mla_args *a, td_stream *stream);
#endif
