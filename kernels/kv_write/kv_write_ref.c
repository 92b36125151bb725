#include "kernels/kv_write/kv_write.h"
#include "kernels/numbers.h"

/* 656 bytes for C 512 and R 64: codes, scales, rotated dims as they are. */
static void write_fp8(unsigned char *row, const td_bf16 *c, int C, int R)
{
    for (int g = 0; g < C / TD_QUANT_GROUP; g++) {
        const td_bf16 *x = c + g * TD_QUANT_GROUP;
        float amax = 0.0f;
        for (int i = 0; i < TD_QUANT_GROUP; i++)
            amax = fmaxf(amax, fabsf(td_bf16_to_f32(x[i])));
        float scale = td_quant_scale(amax, 1);
        for (int i = 0; i < TD_QUANT_GROUP; i++)
            row[g * TD_QUANT_GROUP + i] = td_quant_code(td_bf16_to_f32(x[i]), scale);
        memcpy(row + C + 4 * g, &scale, 4);
    }
    memcpy(row + C + C / TD_QUANT_GROUP * 4, c + C, 2 * (size_t)R);
}

td_status td_kv_write_ref(const td_kv_write_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_kv_write_valid(a))
        return TD_BAD_SHAPE;
    const int dims = a->C + a->R;
    for (int t = 0; t < a->T; t++) {
        if (a->slots[t] < 0)
            continue;
        unsigned char *page =
            a->kv.plane + (uint64_t)(a->slots[t] / a->kv.page_rows) * a->kv.page_stride;
        const size_t row = (size_t)(a->slots[t] % a->kv.page_rows);
        const float *f32 = (const float *)a->c + t * a->c_stride;
        const td_bf16 *bf16 = (const td_bf16 *)a->c + t * a->c_stride;
        switch (a->kv.dtype) {
        case 0: {
            size_t row_bytes = (size_t)(a->C + a->C / TD_QUANT_GROUP * 4 + 2 * a->R);
            write_fp8(page + row * row_bytes, bf16, a->C, a->R);
            break;
        }
        case 1: memcpy(page + row * 2 * (size_t)dims, bf16, 2 * (size_t)dims); break;
        default: memcpy(page + row * 4 * (size_t)dims, f32, 4 * (size_t)dims); break;
        }
    }
    return TD_OK;
}
