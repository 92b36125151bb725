#include "model/weights_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES (2 * TD_ST_MAX_NAME_BYTES)

#define SHARED_BYTES ((size_t)128 << 20) /* of an allocation for tensors of up to a sixteenth */
#define ALIGN ((size_t)512)

static void *alloc(td_weights_reader *r, size_t n_bytes)
{
    td_weights *w = r->out;
    void *ptr = NULL;
    if ((w->n_allocations & (w->n_allocations + 1)) == 0) { /* grow at 0, 1, 3, 7, .. */
        void **more =
            realloc(w->allocations, ((size_t)w->n_allocations * 2 + 1) * sizeof(*w->allocations));
        if (more == NULL) {
            r->st = td_fail(r->err, TD_NOMEM, "weights: no memory");
            return NULL;
        }
        w->allocations = more;
    }
    r->st = td_device_alloc(w->device, n_bytes, &ptr, r->err);
    if (r->st < 0)
        return NULL;
    w->allocations[w->n_allocations++] = ptr;
    r->st = td_upload_allocated(r->upload, ptr, r->err);
    return r->st == TD_OK ? ptr : NULL;
}

/* A GPU's allocations hold up the copies that are under way, so there small tensors share them. On
 * the CPU each has its own, where a sanitizer sees what is read behind its end. */
void *td_read_alloc(td_weights_reader *r, size_t n_bytes)
{
    const size_t size = n_bytes > 0 ? (n_bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
    if (r->st < 0)
        return NULL;
    r->out->n_bytes += n_bytes;
    if (!td_device_is_gpu(r->out->device) || size > SHARED_BYTES / 16)
        return alloc(r, n_bytes > 0 ? n_bytes : 1);
    if (size > r->room_left) {
        r->room = alloc(r, SHARED_BYTES);
        r->room_left = r->room != NULL ? SHARED_BYTES : 0;
    }
    if (r->room == NULL)
        return NULL;
    void *ptr = r->room;
    r->room += size;
    r->room_left -= size;
    return ptr;
}

/* The tensor of this name and shape (n_cols 0: a vector). */
static const td_tensor *look_up(td_weights_reader *r, const char *name, int32_t n_rows,
                                int32_t n_cols)
{
    if (r->st < 0)
        return NULL;
    const td_tensor *t = td_checkpoint_find(r->ckpt, name);
    int64_t want[2] = {n_rows, n_cols};
    int n_dims = n_cols > 0 ? 2 : 1;
    char found[96], expected[64];
    if (t == NULL) {
        r->st = td_fail(r->err, TD_CONFIG, "tensor %s is missing", name);
        return NULL;
    }
    if (t->n_dims != n_dims || memcmp(t->shape, want, (size_t)n_dims * sizeof(*want)) != 0) {
        r->st = td_fail(r->err, TD_CONFIG, "tensor %s has shape %s, config.json asks for %s", name,
                        td_st_shape_text(t->shape, t->n_dims, found, sizeof(found)),
                        td_st_shape_text(want, n_dims, expected, sizeof(expected)));
        return NULL;
    }
    return t;
}

static void bad_dtype(td_weights_reader *r, const td_tensor *t, const char *expected)
{
    if (r->st == TD_OK)
        r->st = td_fail(r->err, TD_CONFIG, "tensor %s has dtype %s, expected %s", t->name,
                        td_st_dtype_name(t->dtype), expected);
}

td_matrix td_read_matrix(td_weights_reader *r, const char *prefix, const char *name, int32_t n_rows,
                         int32_t n_cols)
{
    char full[NAME_BYTES];
    td_matrix m = {.n_rows = n_rows, .n_cols = n_cols};
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    m.w = look_up(r, full, n_rows, n_cols);
    if (m.w == NULL)
        return m;
    if (m.w->dtype == TD_ST_F8_E4M3 && r->config->fp8) {
        snprintf(full, sizeof(full), "%s%s_scale_inv", prefix, name);
        m.scale = look_up(r, full, td_ceil_div(n_rows, TD_QUANT_GROUP),
                          td_ceil_div(n_cols, TD_QUANT_GROUP));
        if (m.scale != NULL && m.scale->dtype != TD_ST_F32 && m.scale->dtype != TD_ST_BF16)
            bad_dtype(r, m.scale, "F32 or BF16");
    } else if (m.w->dtype == TD_ST_F8_E4M3) {
        bad_dtype(r, m.w, "BF16 (config.json has no quantization_config)");
    } else if (m.w->dtype != TD_ST_BF16 && m.w->dtype != TD_ST_F32) {
        bad_dtype(r, m.w, "F8_E4M3, BF16 or F32");
    }
    return m;
}

td_dtype td_read_dtype(const td_weights_reader *r, const td_matrix *m)
{
    if (r->options->precise)
        return TD_F32;
    return m->w != NULL && m->w->dtype == TD_ST_F8_E4M3 ? TD_E4M3 : TD_BF16;
}

void td_read_part(td_weights_reader *r, const td_matrix *m, const td_cut *cut, td_dtype dtype,
                  void *dst)
{
    if (r->st == TD_OK)
        r->st = td_upload_add(r->upload, &(td_upload_part){*m, *cut, dtype, 0, dst}, r->err);
}

void td_read_turned(td_weights_reader *r, const td_matrix *m, const td_cut *cut, td_dtype dtype,
                    void *dst)
{
    if (r->st == TD_OK)
        r->st = td_upload_add(r->upload, &(td_upload_part){*m, *cut, dtype, 1, dst}, r->err);
}

void td_read_scales(td_weights_reader *r, const td_matrix *m, const td_cut *cut, float *dst)
{
    if (r->st < 0 || cut->row_hi == cut->row_lo || cut->col_hi == cut->col_lo)
        return;
    td_matrix scales = {.w = m->scale,
                        .n_rows = td_ceil_div(m->n_rows, TD_QUANT_GROUP),
                        .n_cols = td_ceil_div(m->n_cols, TD_QUANT_GROUP)};
    td_cut part = {cut->row_lo / TD_QUANT_GROUP, td_ceil_div(cut->row_hi, TD_QUANT_GROUP),
                   cut->col_lo / TD_QUANT_GROUP, td_ceil_div(cut->col_hi, TD_QUANT_GROUP)};
    td_read_part(r, &scales, &part, TD_F32, dst);
}

float *td_read_vector(td_weights_reader *r, const char *prefix, const char *name, int32_t n)
{
    char full[NAME_BYTES];
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    const td_tensor *t = look_up(r, full, n, 0);
    if (t != NULL && t->dtype != TD_ST_F32 && t->dtype != TD_ST_BF16)
        bad_dtype(r, t, "F32 or BF16");
    float *dst = td_read_alloc(r, (size_t)n * sizeof(*dst));
    if (dst == NULL)
        return NULL;
    td_matrix m = {.w = t, .n_rows = 1, .n_cols = n};
    td_cut all = {0, 1, 0, n};
    td_read_part(r, &m, &all, TD_F32, dst);
    return dst;
}

td_linear td_read_linear(td_weights_reader *r, const td_matrix *m, const td_cut *cut,
                         td_dtype dtype)
{
    td_linear l = {.N = cut->row_hi - cut->row_lo, .K = cut->col_hi - cut->col_lo, .dtype = dtype};
    size_t n = (size_t)l.N, k = (size_t)l.K;
    l.w = td_read_alloc(r, n * k * td_dtype_bytes(l.dtype));
    td_read_part(r, m, cut, l.dtype, l.w);
    if (l.dtype == TD_E4M3) {
        size_t blocks =
            (size_t)td_ceil_div(l.N, TD_QUANT_GROUP) * (size_t)td_ceil_div(l.K, TD_QUANT_GROUP);
        l.ws = td_read_alloc(r, blocks * sizeof(*l.ws));
        td_read_scales(r, m, cut, l.ws);
    }
    return l;
}

td_linear td_read_whole(td_weights_reader *r, const char *prefix, const char *name, int32_t n_rows,
                        int32_t n_cols)
{
    td_cut all = {0, n_rows, 0, n_cols};
    td_matrix m = td_read_matrix(r, prefix, name, n_rows, n_cols);
    return td_read_linear(r, &m, &all, td_read_dtype(r, &m));
}

td_linear td_read_wide(td_weights_reader *r, const char *prefix, const char *name, int32_t n_rows,
                       int32_t n_cols)
{
    td_cut all = {0, n_rows, 0, n_cols};
    td_matrix m = td_read_matrix(r, prefix, name, n_rows, n_cols);
    if (r->st == TD_OK && m.w->dtype == TD_ST_F8_E4M3)
        r->st = td_fail(r->err, TD_UNSUPPORTED, "tensor %s%s is e4m3", prefix, name);
    int wide = r->st == TD_OK && m.w->dtype == TD_ST_F32;
    return td_read_linear(r, &m, &all, wide ? TD_F32 : td_read_dtype(r, &m));
}
