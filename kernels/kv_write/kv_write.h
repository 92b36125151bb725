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

td_status td_kv_write_ref(const td_kv_write_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_kv_write_cpu(const td_kv_write_args *a, td_stream *stream);
#endif
