#include "model/upload_fill.h"

#include "kernels/numbers.h"

#include <string.h>

#define BLOCK 4096 /* elements that are converted at a time */

static int is_stored_as(const td_tensor *t, td_dtype dtype)
{
    return (dtype == TD_E4M3 && t->dtype == TD_ST_F8_E4M3) ||
           (dtype == TD_BF16 && t->dtype == TD_ST_BF16) ||
           (dtype == TD_F32 && t->dtype == TD_ST_F32);
}

/* n elements from `first` on as f32, without scales. */
static td_status widen(const td_tensor *t, uint64_t first, int32_t n, const float *e4m3, float *dst,
                       td_err *err)
{
    unsigned char raw[BLOCK * sizeof(float)];
    uint64_t size = td_st_dtype_bytes(t->dtype);
    td_status st = td_tensor_read(t, first * size, (uint64_t)n * size, raw, err);
    if (st < 0)
        return st;
    if (t->dtype == TD_ST_BF16) {
        for (int32_t i = 0; i < n; i++) {
            td_bf16 b;
            memcpy(&b, raw + 2 * (size_t)i, 2);
            dst[i] = td_bf16_to_f32(b);
        }
    } else if (t->dtype == TD_ST_F8_E4M3) {
        for (int32_t i = 0; i < n; i++)
            dst[i] = e4m3[raw[i]];
    } else {
        td_assert(t->dtype == TD_ST_F32);
        memcpy(dst, raw, (size_t)n * sizeof(*dst));
    }
    return TD_OK;
}

/* Columns [lo, hi) of n rows of one group of scales, dequantised; several rows only where they are
 * whole, so that they lie side by side in the file. At most BLOCK elements. */
static td_status rows_f32(const td_matrix *m, const td_cut *c, const float *e4m3, float *dst,
                          td_err *err)
{
    float scales[BLOCK / TD_QUANT_GROUP + 2] = {0};
    int32_t lo = c->col_lo, n_cols = c->col_hi - lo, n_rows = c->row_hi - c->row_lo;
    int32_t group = lo / TD_QUANT_GROUP, n = (c->col_hi - 1) / TD_QUANT_GROUP - group + 1;
    td_assert(n_rows == 1 || n_cols == m->n_cols);
    td_status st = widen(m->w, (uint64_t)c->row_lo * (uint64_t)m->n_cols + (uint64_t)lo,
                         n_rows * n_cols, e4m3, dst, err);
    if (st < 0 || m->scale == NULL)
        return st;
    uint64_t first =
        (uint64_t)(c->row_lo / TD_QUANT_GROUP) * (uint64_t)td_ceil_div(m->n_cols, TD_QUANT_GROUP);
    st = widen(m->scale, first + (uint64_t)group, n, e4m3, scales, err);
    for (int32_t i = 0; i < n_rows && st == TD_OK; i++)
        for (int32_t k = 0; k < n_cols; k++)
            dst[i * n_cols + k] *= scales[(lo + k) / TD_QUANT_GROUP - group];
    return st;
}

/* How many rows from `row` on rows_f32() takes at a time, of n_left that are wanted. */
static int32_t rows_at_once(const td_matrix *m, int32_t row, int32_t n_cols, int32_t n_left)
{
    int32_t n = n_cols == m->n_cols && n_cols <= BLOCK ? BLOCK / n_cols : 1;
    int32_t in_group = TD_QUANT_GROUP - row % TD_QUANT_GROUP;
    n = n < in_group ? n : in_group;
    return n < n_left ? n : n_left;
}

/* Elements to dst, `step` elements apart. A checkpoint's f32 matrix may only become bf16 when that
 * loses nothing. */
static td_status store(const td_matrix *m, const float *from, int32_t n, td_dtype dtype,
                       int32_t step, unsigned char *dst, td_err *err)
{
    int exact = m->w->dtype == TD_ST_F32 && m->scale == NULL;
    for (int32_t i = 0; i < n; i++) {
        size_t at = (size_t)i * (size_t)step;
        td_bf16 b = td_f32_to_bf16(from[i]);
        if (dtype == TD_F32) {
            memcpy(dst + 4 * at, &from[i], 4);
            continue;
        }
        memcpy(dst + 2 * at, &b, 2);
        if (exact && td_bf16_to_f32(b) != from[i])
            return td_fail(err, TD_UNSUPPORTED,
                           "tensor %s is F32 and does not fit bf16 exactly: quantised mode would "
                           "round it",
                           m->w->name);
    }
    return TD_OK;
}

static td_status fill_stored(const td_upload_part *p, unsigned char *dst, td_err *err)
{
    const td_cut *c = &p->cut;
    uint64_t size = td_dtype_bytes(p->dtype), width = (uint64_t)p->m.n_cols;
    uint64_t n_rows = (uint64_t)(c->row_hi - c->row_lo), n_cols = (uint64_t)(c->col_hi - c->col_lo);
    td_status st = TD_OK;
    if (n_cols == width)
        return td_tensor_read(p->m.w, (uint64_t)c->row_lo * width * size, n_rows * width * size,
                              dst, err);
    for (uint64_t i = 0; i < n_rows && st == TD_OK; i++)
        st =
            td_tensor_read(p->m.w, (((uint64_t)c->row_lo + i) * width + (uint64_t)c->col_lo) * size,
                           n_cols * size, dst + i * n_cols * size, err);
    return st;
}

/* The part from row i of the cut on, `rows` of them, to where they belong in the part's stretch. */
static td_status fill_converted(const td_upload_part *p, int32_t i, int32_t rows, const float *e4m3,
                                unsigned char *dst, td_err *err)
{
    const td_cut *c = &p->cut;
    const size_t size = td_dtype_bytes(p->dtype);
    const int32_t n_rows = c->row_hi - c->row_lo, n_cols = c->col_hi - c->col_lo;
    float block[BLOCK] = {0};
    for (int32_t k = 0; k < n_cols; k += BLOCK) {
        int32_t n = n_cols - k < BLOCK ? n_cols - k : BLOCK, lo = c->col_lo + k;
        td_cut cut = {c->row_lo + i, c->row_lo + i + rows, lo, lo + n};
        td_status st = rows_f32(&p->m, &cut, e4m3, block, err);
        for (int32_t r = 0; r < rows && st == TD_OK; r++) {
            size_t at = p->turned ? (size_t)k * (size_t)n_rows + (size_t)(i + r)
                                  : (size_t)(i + r) * (size_t)n_cols + (size_t)k;
            st = store(&p->m, block + r * n, n, p->dtype, p->turned ? n_rows : 1, dst + at * size,
                       err);
        }
        if (st < 0)
            return st;
    }
    return TD_OK;
}

td_status td_upload_fill(const td_upload_part *p, const float *e4m3, unsigned char *dst,
                         td_err *err)
{
    const td_cut *c = &p->cut;
    const int32_t n_rows = c->row_hi - c->row_lo, n_cols = c->col_hi - c->col_lo;
    if (!p->turned && is_stored_as(p->m.w, p->dtype))
        return fill_stored(p, dst, err);
    td_assert(p->dtype != TD_E4M3);
    for (int32_t i = 0, rows = 0; i < n_rows; i += rows) {
        rows = rows_at_once(&p->m, c->row_lo + i, n_cols, n_rows - i);
        td_status st = fill_converted(p, i, rows, e4m3, dst, err);
        if (st < 0)
            return st;
    }
    return TD_OK;
}
