/* index_logits.h - indexer scores (model-spec A.6): y[t,s] = ks_s * sum_h relu( q[t,h] . k_s ) *
 * w[t,h] for s < row_len[t]; f32; heads in ascending order. Rows with row_len <= skip_len are not
 * computed (top-k takes all of them). relu keeps NaN. Other entries are left alone. */
#ifndef TD_KERNELS_INDEX_LOGITS_H
#define TD_KERNELS_INDEX_LOGITS_H
#include "kernels/shapes.h"

typedef struct {
    const void *q;  /* [T, Hi, dim] e4m3 (fp8 and bf16 caches) or f32 (f32 cache) */
    const float *w; /* [T, Hi] the quantiser's scale of q is in it */
    td_kv_view kv;  /* index-key plane */
    td_rows_view rows;
    float *y; /* [T, y_stride] */
    int T, Hi, dim, skip_len;
    int64_t y_stride; /* >= the largest row_len */
} td_index_logits_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_index_logits_valid(const td_index_logits_args *a)
{
    const td_kv_view *kv = &a->kv;
    if (a->T < 0 || a->Hi < 1 || a->dim < 1 || a->y_stride < 0 || kv->page_rows < 1 ||
        kv->dtype < 0 || kv->dtype > 2 || (kv->dtype != 2 && a->dim != 128))
        return 0;
    return a->T == 0 || (a->q != NULL && a->w != NULL && a->y != NULL && kv->plane != NULL &&
                         a->rows.row_seq != NULL && a->rows.row_len != NULL &&
                         a->rows.block_table != NULL && a->rows.max_pages >= 0);
}

td_status td_index_logits_ref(const td_index_logits_args *a,
                              td_stream *stream); /* plain judge: tests only */
td_status td_index_logits_cpu(const td_index_logits_args *a, td_stream *stream);
td_status td_index_logits_cuda(const td_index_logits_args *a,
                               td_stream *stream); /* in the plug-in */
#endif
