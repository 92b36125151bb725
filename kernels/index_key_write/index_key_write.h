/* index_key_write.h - indexer keys into the paged cache (model-spec A.6, B.3). fp8 and bf16 caches:
 * hadamard_quant of the bf16 key; codes at row*128 of the page's plane, scales behind all codes.
 * f32 cache: the key as it is. Bits are fixed by the formula. */
#ifndef TD_KERNELS_INDEX_KEY_WRITE_H
#define TD_KERNELS_INDEX_KEY_WRITE_H
#include "kernels/shapes.h"

typedef struct {
    const void *k;        /* [T, dim] act, after LayerNorm and RoPE */
    const int32_t *slots; /* [T]; -1: skip */
    td_kv_view kv;
    int T, dim; /* dim 128 unless the cache is f32 */
    td_dtype act;
} td_index_key_write_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_index_key_write_valid(const td_index_key_write_args *a)
{
    const td_kv_view *kv = &a->kv;
    if (a->T < 0 || a->dim < 1 || kv->page_rows < 1 || kv->dtype < 0 || kv->dtype > 2 ||
        (kv->dtype != 2 && a->dim != 128) || a->act != (kv->dtype == 2 ? TD_F32 : TD_BF16))
        return 0;
    return a->T == 0 || (a->k != NULL && a->slots != NULL && kv->plane != NULL);
}

td_status td_index_key_write_ref(const td_index_key_write_args *a,
                                 td_stream *stream); /* plain judge: tests only */
td_status td_index_key_write_cpu(const td_index_key_write_args *a, td_stream *stream);
td_status td_index_key_write_cuda(const td_index_key_write_args *a,
                                  td_stream *stream); /* in the plug-in */
#endif
