/* sparse_mla.h - absorbed attention over the selected positions (model-spec A.5): with q = [q~ C ;
 * q_pe R] and key rows [c ; k_pe], s_i = (q . key_i) * scale;  p_i = exp(s_i - max s) / sum_j
 * exp(s_j - max s);  u = act( sum_i r(p_i) c_i );  r rounds p to bf16 when act is bf16: after the
 * division, as the published code does and tests/golden was made (rounding before it gives a median
 * error of 2e-2 in layer0_out, twenty times the bound). c is the cache's value (fp8:
 * code * scale). No selected position, or row_seq -1, gives zeros;
 * p below 2^-126 may be 0. row_len is not read. A row's bits depend on nothing but that row's
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

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_sparse_mla_valid(const td_sparse_mla_args *a)
{
    const td_kv_view *kv = &a->kv;
    if (a->T < 0 || a->H < 1 || a->C < 1 || a->R < 0 || a->k < 0 || kv->page_rows < 1 ||
        kv->dtype < 0 || kv->dtype > 2 || (kv->dtype == 0 && a->C % TD_QUANT_GROUP != 0) ||
        (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    return a->T == 0 || (a->q != NULL && a->u != NULL && kv->plane != NULL &&
                         a->rows.row_seq != NULL && a->rows.block_table != NULL &&
                         a->rows.max_pages >= 0 && (a->k == 0 || a->selected != NULL));
}

td_status td_sparse_mla_ref(const td_sparse_mla_args *a,
                            td_stream *stream); /* plain judge: tests only */
td_status td_sparse_mla_cpu(const td_sparse_mla_args *a, td_stream *stream);
td_status td_sparse_mla_cuda(const td_sparse_mla_args *a, td_stream *stream); /* in the plug-in */
#endif
