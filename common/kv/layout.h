/* layout.h - what a KV page consists of. A pool is described by planes; pool and transfer code know
 * planes, never models. Page-major: an address is base + page * page_stride + plane.offset; kernels
 * take the strides. In a page the planes stand by layer, then kind (latent, index key), the draft
 * layer last, so that a group of layers is one contiguous range of bytes and is drawn by one get
 * per page. */
#ifndef TD_KV_LAYOUT_H
#define TD_KV_LAYOUT_H
#include "common/base/status.h"

#include <stdint.h>

#define TD_KV_PAGE_ROWS 64   /* tokens per page (V3.2) */
#define TD_KV_MAX_PLANES 512 /* 2 per layer */

typedef enum { TD_KV_LATENT, TD_KV_INDEX_KEY } td_kv_kind;
/* The cache's format. FP8: latent 656 B/token (spec B.1), key 132 B (B.3). BF16: latent 1,152 B,
 * key 132 B. F32: latent 2,304 B, key 512 B (precise mode only). */
typedef enum { TD_KV_FP8, TD_KV_BF16, TD_KV_F32 } td_kv_dtype;

typedef struct {
    int32_t layer; /* the draft layer is num_hidden_layers */
    td_kv_kind kind;
    uint32_t rows;      /* tokens per page */
    uint32_t row_bytes; /* bytes per token; in an FP8/BF16 index-key plane all codes stand first,
                           then all scales */
    uint64_t offset;    /* within a page; a multiple of 64 */
    uint64_t n_bytes;   /* per page = rows * row_bytes */
} td_kv_plane;

typedef struct {
    td_kv_dtype dtype;
    uint32_t n_layers;                        /* with the draft layer, if there is one */
    int32_t draft_layer;                      /* its index, or -1 */
    uint32_t latent_dim, rope_dim, index_dim; /* 512, 64, 128 */
    uint32_t n_planes;
    td_kv_plane planes[TD_KV_MAX_PLANES]; /* [n_planes] planes[2*layer + kind] */
    uint64_t page_stride;                 /* bytes of one page = sum of planes */
} td_kv_layout;

/* n_layers counts the target's layers; with_draft adds one more behind them. latent_dim is a
 * multiple of 128, rope_dim even, index_dim 128 for FP8/BF16 (any for F32). TD_INVALID says which
 * is not. */
td_status td_kv_layout_init(td_kv_layout *layout, td_kv_dtype dtype, uint32_t n_layers,
                            int with_draft, uint32_t latent_dim, uint32_t rope_dim,
                            uint32_t index_dim, td_err *err);
const td_kv_plane *td_kv_layout_plane(const td_kv_layout *layout, uint32_t layer, td_kv_kind kind);
/* The contiguous bytes of layers [first, last) in a page. */
void td_kv_layout_range(const td_kv_layout *layout, uint32_t first_layer, uint32_t last_layer,
                        uint64_t *offset, uint64_t *n_bytes);
const char *td_kv_dtype_name(td_kv_dtype dtype); /* "fp8", "bf16", "f32" */
#endif
