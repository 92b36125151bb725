/* kv_write.h - latents into the paged cache (model-spec A.5, B.1, B.2; layout.h). fp8: AQ_128 with
 * powers of two of the C latent dims, 4-byte scales, then R rotated dims as bf16. bf16 / f32: as
 * computed. Bits are fixed by the formula. */
#ifndef TD_KERNELS_KV_WRITE_H
#define TD_KERNELS_KV_WRITE_H
#include "kernels/shapes.h"

typedef struct {
    const void *c;        /* [T, C + R] act, row stride c_stride: normed latent, rotated key */
    const int32_t *slots; /* [T] page * page_rows + row; -1: skip */
    td_kv_view kv;
    int T, C, R;
    int64_t c_stride;
    td_dtype act;
} td_kv_write_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_kv_write_valid(const td_kv_write_args *a)
{
    const td_kv_view *kv = &a->kv;
    if (a->T < 0 || a->C < 1 || a->R < 0 || kv->page_rows < 1 || kv->dtype < 0 || kv->dtype > 2 ||
        (kv->dtype == 0 && a->C % TD_QUANT_GROUP != 0) ||
        a->act != (kv->dtype == 2 ? TD_F32 : TD_BF16))
        return 0;
    return a->T == 0 || (a->c != NULL && a->slots != NULL && kv->plane != NULL &&
                         (a->T == 1 || a->c_stride >= a->C + a->R));
}

td_status td_kv_write_ref(const td_kv_write_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_kv_write_cpu(const td_kv_write_args *a, td_stream *stream);
td_status td_kv_write_cuda(const td_kv_write_args *a, td_stream *stream); /* in the plug-in */
#endif
