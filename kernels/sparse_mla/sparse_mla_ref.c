#include "kernels/numbers.h"
#include "kernels/sparse_mla/sparse_mla.h"

#include <stdlib.h>

static float get(const void *x, int64_t i, td_dtype act)
{
    return act == TD_F32 ? ((const float *)x)[i] : td_bf16_to_f32(((const td_bf16 *)x)[i]);
}

/* The cached row of one position as C + R numbers. */
static void read_key(const td_sparse_mla_args *a, int seq, int position, float *key)
{
    const td_kv_view *kv = &a->kv;
    int32_t page = a->rows.block_table[(int64_t)seq * a->rows.max_pages + position / kv->page_rows];
    const unsigned char *base = kv->plane + (uint64_t)page * kv->page_stride;
    const size_t row = (size_t)(position % kv->page_rows), C = (size_t)a->C, R = (size_t)a->R;
    if (kv->dtype == 2) {
        memcpy(key, base + row * 4 * (C + R), 4 * (C + R));
        return;
    }
    const unsigned char *p =
        base + row * (kv->dtype == 1 ? 2 * (C + R) : C + C / TD_QUANT_GROUP * 4 + 2 * R);
    for (size_t i = 0; i < C + R; i++) {
        td_bf16 b;
        float scale;
        if (kv->dtype == 0 && i < C) {
            memcpy(&scale, p + C + i / TD_QUANT_GROUP * 4, 4);
            key[i] = td_e4m3_to_f32(p[i]) * scale;
            continue;
        }
        memcpy(&b, kv->dtype == 1 ? p + 2 * i : p + C + C / TD_QUANT_GROUP * 4 + 2 * (i - C), 2);
        key[i] = td_bf16_to_f32(b);
    }
}

/* One head: keys [n, C + R], p [n] is scratch. */
static void attend(const td_sparse_mla_args *a, int64_t th, const float *keys, int n, float *p)
{
    const int dims = a->C + a->R;
    float max = -INFINITY;
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        double s = 0.0;
        for (int d = 0; d < dims; d++)
            s += (double)get(a->q, th * dims + d, a->act) * keys[(int64_t)i * dims + d];
        p[i] = (float)s * a->scale;
        max = fmaxf(max, p[i]);
    }
    for (int i = 0; i < n; i++) {
        p[i] = td_expf(p[i] - max);
        sum += p[i];
    }
    for (int i = 0; i < n; i++) {
        p[i] = (float)(p[i] / sum);
        if (a->act == TD_BF16)
            p[i] = td_bf16_to_f32(td_f32_to_bf16(p[i]));
    }
    for (int c = 0; c < a->C; c++) {
        double u = 0.0;
        for (int i = 0; i < n; i++)
            u += (double)p[i] * keys[(int64_t)i * dims + c];
        float y = (float)u;
        if (a->act == TD_F32)
            ((float *)a->u)[th * a->C + c] = y;
        else
            ((td_bf16 *)a->u)[th * a->C + c] = td_f32_to_bf16(y);
    }
}

td_status td_sparse_mla_ref(const td_sparse_mla_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_sparse_mla_valid(a))
        return TD_BAD_SHAPE;
    const size_t dims = (size_t)a->C + (size_t)a->R, k = (size_t)a->k;
    float *keys = calloc(k * dims + k + 1, sizeof(float));
    if (keys == NULL)
        return TD_NOMEM;
    for (int64_t t = 0; t < a->T; t++) {
        int n = 0;
        for (int i = 0; i < a->k && a->rows.row_seq[t] >= 0; i++)
            if (a->selected[t * a->k + i] >= 0)
                read_key(a, a->rows.row_seq[t], a->selected[t * a->k + i],
                         keys + dims * (size_t)n++);
        for (int h = 0; h < a->H; h++)
            attend(a, t * a->H + h, keys, n, keys + k * dims);
    }
    free(keys);
    return TD_OK;
}
