#include "kernels/index_key_write/index_key_write.h"
#include "kernels/numbers.h"

static void write_fp8(unsigned char *page, int page_rows, int row, const td_bf16 *k)
{
    float h[128], amax = 0.0f;
    for (int i = 0; i < 128; i++)
        h[i] = td_bf16_to_f32(k[i]);
    td_hadamard128(h);
    for (int i = 0; i < 128; i++) {
        h[i] = td_bf16_to_f32(td_f32_to_bf16(h[i] * 0.08838834764831845f));
        amax = fmaxf(amax, fabsf(h[i]));
    }
    float scale = td_quant_scale(amax, 1);
    for (int i = 0; i < 128; i++)
        page[row * 128 + i] = td_quant_code(h[i], scale);
    memcpy(page + page_rows * 128 + row * 4, &scale, 4);
}

td_status td_index_key_write_ref(const td_index_key_write_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_index_key_write_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++) {
        if (a->slots[t] < 0)
            continue;
        unsigned char *page =
            a->kv.plane + (uint64_t)(a->slots[t] / a->kv.page_rows) * a->kv.page_stride;
        int row = a->slots[t] % a->kv.page_rows;
        size_t row_bytes = 4 * (size_t)a->dim;
        if (a->kv.dtype == 2)
            memcpy(page + (size_t)row * row_bytes, (const float *)a->k + t * a->dim, row_bytes);
        else
            write_fp8(page, a->kv.page_rows, row, (const td_bf16 *)a->k + t * a->dim);
    }
    return TD_OK;
}
