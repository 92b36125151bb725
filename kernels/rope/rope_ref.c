#include "kernels/numbers.h"
#include "kernels/rope/rope.h"

static float get(const void *x, int64_t i, td_dtype act)
{
    return act == TD_F32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

static void put(void *x, int64_t i, td_dtype act, float v)
{
    if (act == TD_F32)
        ((float *)x)[i] = v;
    else
        ((td_bf16 *)x)[i] = td_f32_to_bf16(v);
}

td_status td_rope_ref(const td_rope_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_rope_valid(a))
        return TD_BAD_SHAPE;
    for (int t = 0; t < a->T; t++) {
        if (a->positions[t] < 0 || a->positions[t] >= a->max_pos)
            continue;
        const float *cos_sin = a->cos_sin + (int64_t)a->positions[t] * a->R;
        for (int h = 0; h < a->heads; h++) {
            int64_t head = t * a->row_stride + h * a->head_stride;
            for (int i = 0; i < a->R / 2; i++) {
                int64_t i1 = head + (a->interleaved ? 2 * i : i);
                int64_t i2 = head + (a->interleaved ? 2 * i + 1 : i + a->R / 2);
                float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
                float x1 = get(a->x, i1, a->act), x2 = get(a->x, i2, a->act);
                put(a->x, i1, a->act, x1 * c - x2 * s);
                put(a->x, i2, a->act, x1 * s + x2 * c);
            }
        }
    }
    return TD_OK;
}
