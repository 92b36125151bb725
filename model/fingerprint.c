#include "model/fingerprint.h"

#include "model/model_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_BYTES 4096
#define FNV_START 0xcbf29ce484222325ull
#define FILE_MAX_BYTES (512u << 20)

/* FNV-1a, 64 bits: tells mistakes apart, not forgeries. */
static uint64_t hash(uint64_t h, const void *data, size_t n_bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < n_bytes; i++)
        h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}

static uint64_t hash_u64(uint64_t h, uint64_t v)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(v >> (8 * i));
    return hash(h, bytes, 8);
}

static td_status hash_file(const char *dir, const char *name, uint64_t *out, td_err *err)
{
    char *text = NULL;
    size_t n_bytes = 0;
    td_status st = td_model_file_read(dir, name, FILE_MAX_BYTES, &text, &n_bytes, err);
    if (st < 0)
        return st;
    *out = hash(FNV_START, text, n_bytes);
    free(text);
    return TD_OK;
}

td_status td_fingerprint_model(td_fingerprint *fp, const char *dir, const td_checkpoint *ckpt,
                               td_err *err)
{
    unsigned char sample[SAMPLE_BYTES];
    uint64_t config = 0, tokenizer = 0, shapes = FNV_START, samples = FNV_START;
    td_status st = hash_file(dir, "config.json", &config, err);
    if (st < 0)
        return st;
    st = hash_file(dir, "tokenizer.json", &tokenizer, err);
    if (st < 0 && st != TD_NOT_FOUND)
        return st;
    int has_tokenizer = st == TD_OK;
    for (size_t i = 0; i < td_checkpoint_count(ckpt); i++) {
        const td_tensor *t = td_checkpoint_at(ckpt, i);
        uint64_t n = t->n_bytes < SAMPLE_BYTES ? t->n_bytes : SAMPLE_BYTES;
        shapes = hash(shapes, t->name, strlen(t->name) + 1);
        shapes = hash_u64(hash_u64(shapes, t->dtype), (uint64_t)t->n_dims);
        for (int d = 0; d < t->n_dims; d++)
            shapes = hash_u64(shapes, (uint64_t)t->shape[d]);
        st = td_tensor_read(t, (t->n_bytes - n) / 2, n, sample, err);
        if (st < 0)
            return st;
        samples = hash(samples, sample, n);
    }
    td_fingerprint_set(fp, "config", "%016" PRIx64, config);
    td_fingerprint_set(fp, "tensors", "%zu", td_checkpoint_count(ckpt));
    td_fingerprint_set(fp, "tensor-shapes", "%016" PRIx64, shapes);
    td_fingerprint_set(fp, "tensor-samples", "%016" PRIx64, samples);
    if (has_tokenizer)
        td_fingerprint_set(fp, "tokenizer", "%016" PRIx64, tokenizer);
    else
        td_fingerprint_set(fp, "tokenizer", "none");
    return TD_OK;
}

void td_fingerprint_run(td_fingerprint *fp, const td_kv_layout *layout, int precise,
                        int draft_prenorm)
{
    uint64_t h = FNV_START;
    for (uint32_t i = 0; i < layout->n_planes; i++) {
        const td_kv_plane *p = &layout->planes[i];
        h = hash_u64(hash_u64(h, (uint64_t)p->layer), p->kind);
        h = hash_u64(hash_u64(h, p->rows), p->row_bytes);
        h = hash_u64(hash_u64(h, p->offset), p->n_bytes);
    }
    td_fingerprint_set(fp, "numerics", "%d %s", TD_NUMERICS_VERSION,
                       precise ? "precise" : "quantised");
    td_fingerprint_set(fp, "kv-dtype", "%s", td_kv_dtype_name(layout->dtype));
    td_fingerprint_set(fp, "kv-planes", "%016" PRIx64, h);
    td_fingerprint_set(fp, "page-rows", "%u", (unsigned)TD_KV_PAGE_ROWS);
    td_fingerprint_set(fp, "page-bytes", "%" PRIu64, layout->page_stride);
    td_fingerprint_set(fp, "draft-layer", "%d", layout->draft_layer);
    td_fingerprint_set(fp, "draft-state", "%s", draft_prenorm ? "pre-norm" : "post-norm");
}
