#include "common/kv/layout.h"

#include <string.h>

#define KINDS 2U
#define FP8_GROUP 128U /* latent values per f32 scale */
#define MAX_DIM 65536U /* keeps every product below far from overflow */

static td_status check_dims(td_kv_dtype dtype, uint32_t latent_dim, uint32_t rope_dim,
                            uint32_t index_dim, td_err *err)
{
    if (dtype != TD_KV_FP8 && dtype != TD_KV_BF16 && dtype != TD_KV_F32)
        return td_fail(err, TD_INVALID, "kv layout: unknown dtype %d", (int)dtype);
    if (latent_dim == 0 || latent_dim > MAX_DIM || latent_dim % FP8_GROUP != 0)
        return td_fail(err, TD_INVALID, "kv layout: latent dim %u is not a multiple of %u",
                       latent_dim, FP8_GROUP);
    if (rope_dim > MAX_DIM || rope_dim % 2 != 0)
        return td_fail(err, TD_INVALID, "kv layout: rope dim %u is not even", rope_dim);
    if (index_dim == 0 || index_dim > MAX_DIM)
        return td_fail(err, TD_INVALID, "kv layout: index dim %u is out of range", index_dim);
    if (dtype != TD_KV_F32 && index_dim != 128)
        return td_fail(err, TD_INVALID, "kv layout: index dim %u, but %s needs 128", index_dim,
                       td_kv_dtype_name(dtype));
    return TD_OK;
}

/* Latent: FP8 = codes, one f32 scale per group, rotated dims in bf16; BF16 and F32 = all dims as
 * they are. Index key: codes and one f32 scale, or f32 values. */
static uint32_t row_bytes(td_kv_dtype dtype, td_kv_kind kind, uint32_t latent_dim,
                          uint32_t rope_dim, uint32_t index_dim)
{
    if (kind == TD_KV_INDEX_KEY)
        return dtype == TD_KV_F32 ? 4 * index_dim : index_dim + 4;
    switch (dtype) {
    case TD_KV_FP8: return latent_dim + latent_dim / FP8_GROUP * 4 + 2 * rope_dim;
    case TD_KV_BF16: return 2 * (latent_dim + rope_dim);
    case TD_KV_F32: break;
    }
    return 4 * (latent_dim + rope_dim);
}

td_status td_kv_layout_init(td_kv_layout *layout, td_kv_dtype dtype, uint32_t n_layers,
                            int with_draft, uint32_t latent_dim, uint32_t rope_dim,
                            uint32_t index_dim, td_err *err)
{
    td_status st = check_dims(dtype, latent_dim, rope_dim, index_dim, err);
    if (st != TD_OK)
        return st;
    uint32_t max_layers = TD_KV_MAX_PLANES / KINDS - (with_draft ? 1 : 0);
    if (n_layers == 0 || n_layers > max_layers)
        return td_fail(err, TD_INVALID, "kv layout: %u layers, want 1..%u", n_layers, max_layers);

    memset(layout, 0, sizeof(*layout));
    layout->dtype = dtype;
    layout->n_layers = n_layers + (with_draft ? 1 : 0);
    layout->draft_layer = with_draft ? (int32_t)n_layers : -1;
    layout->latent_dim = latent_dim;
    layout->rope_dim = rope_dim;
    layout->index_dim = index_dim;
    layout->n_planes = KINDS * layout->n_layers;
    uint64_t offset = 0;
    for (uint32_t i = 0; i < layout->n_planes; i++) {
        td_kv_plane *plane = &layout->planes[i];
        plane->layer = (int32_t)(i / KINDS);
        plane->kind = i % KINDS == 0 ? TD_KV_LATENT : TD_KV_INDEX_KEY;
        plane->rows = TD_KV_PAGE_ROWS;
        plane->row_bytes = row_bytes(dtype, plane->kind, latent_dim, rope_dim, index_dim);
        plane->offset = offset;
        plane->n_bytes = (uint64_t)plane->rows * plane->row_bytes;
        td_assert(plane->n_bytes % 64 == 0);
        offset += plane->n_bytes;
    }
    layout->page_stride = offset;
    return TD_OK;
}

const td_kv_plane *td_kv_layout_plane(const td_kv_layout *layout, uint32_t layer, td_kv_kind kind)
{
    td_assert(layer < layout->n_layers);
    return &layout->planes[KINDS * layer + (kind == TD_KV_LATENT ? 0 : 1)];
}

void td_kv_layout_range(const td_kv_layout *layout, uint32_t first_layer, uint32_t last_layer,
                        uint64_t *offset, uint64_t *n_bytes)
{
    td_assert(first_layer <= last_layer && last_layer <= layout->n_layers);
    uint64_t begin = first_layer < layout->n_layers ? layout->planes[KINDS * first_layer].offset
                                                    : layout->page_stride;
    uint64_t end = last_layer < layout->n_layers ? layout->planes[KINDS * last_layer].offset
                                                 : layout->page_stride;
    *offset = begin;
    *n_bytes = end - begin;
}

const char *td_kv_dtype_name(td_kv_dtype dtype)
{
    switch (dtype) {
    case TD_KV_FP8: return "fp8";
    case TD_KV_BF16: return "bf16";
    case TD_KV_F32: return "f32";
    }
    return "unknown";
}
