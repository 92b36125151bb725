#include "kernels/index_logits/index_logits.h"
#include "kernels/numbers.h"

/* dot of query (t, h) and the key at `row` of `page`, without scales */
static float dot(const td_index_logits_args *a, int64_t th, const unsigned char *page, int row)
{
    double sum = 0.0;
    for (int d = 0; d < a->dim; d++) {
        float q, k;
        if (a->kv.dtype == 2) {
            q = ((const float *)a->q)[th * a->dim + d];
            memcpy(&k, page + ((size_t)row * (size_t)a->dim + (size_t)d) * 4, 4);
        } else {
            q = td_e4m3_to_f32(((const uint8_t *)a->q)[th * a->dim + d]);
            k = td_e4m3_to_f32(page[row * a->dim + d]);
        }
        sum += (double)q * k;
    }
    return (float)sum;
}

td_status td_index_logits_ref(const td_index_logits_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_index_logits_valid(a))
        return TD_BAD_SHAPE;
    for (int64_t t = 0; t < a->T; t++) {
        int len = a->rows.row_len[t], seq = a->rows.row_seq[t];
        if (seq < 0 || len <= a->skip_len)
            continue;
        for (int s = 0; s < len; s++) {
            int32_t id =
                a->rows.block_table[(int64_t)seq * a->rows.max_pages + s / a->kv.page_rows];
            const unsigned char *page = a->kv.plane + (uint64_t)id * a->kv.page_stride;
            int row = s % a->kv.page_rows;
            float sum = 0.0f, scale = 1.0f;
            for (int h = 0; h < a->Hi; h++) {
                float d = dot(a, t * a->Hi + h, page, row);
                sum += (d < 0.0f ? 0.0f : d) * a->w[t * a->Hi + h];
            }
            if (a->kv.dtype != 2)
                memcpy(&scale, page + a->kv.page_rows * a->dim + row * 4, 4);
            a->y[t * a->y_stride + s] = scale * sum;
        }
    }
    return TD_OK;
}
