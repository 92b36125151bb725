/* forward.h - private to model/: the layers of the model over the operation table, on one rank, for
 * the rows of a step (design.md, the device-operation table; model-spec A.3-A.8, A.12, C.1-C.4).
 * prefill_step.c and decode_step.c say which rows, and in which order. Everything is enqueued;
 * nothing here reads a device result. */
#ifndef TD_MODEL_FORWARD_H
#define TD_MODEL_FORWARD_H
#include "model/engine.h"

/* The rows of a step on this rank. Device pointers; padding rows have position, seq and slot -1,
 * length 0. */
typedef struct {
    int32_t n;                  /* rows on this rank; the same on every rank */
    const int32_t *positions;   /* [n] */
    const int32_t *seq;         /* [n] row of block_table */
    const int32_t *len;         /* [n] positions the row sees: its own + 1 */
    const int32_t *slots;       /* [P * n] rank-major: page * 64 + row, of every rank's rows */
    const int32_t *block_table; /* [.., max_pages] */
    int32_t max_pages;
    int32_t max_len; /* known to the host: no len is larger */
} td_rows;

/* Device memory that is freed with its owner. */
typedef struct {
    td_device *device;
    void **ptrs; /* [n] */
    uint32_t n, room;
    td_status st; /* the first failure; later calls do nothing */
} td_device_pool;

void *td_device_pool_alloc(td_device_pool *pool, size_t n_bytes, td_err *err); /* NULL: pool->st */
void td_device_pool_free(td_device_pool *pool);

typedef struct {
    const td_weights *w;
    const td_ops *ops;
    td_device *device;
    td_stream *stream;
    td_comm *comm;
    const td_kv_layout *layout;
    unsigned char *kv_base;
    uint32_t n_pages, max_context;
    int32_t n_ranks, max_rows; /* ranks that split the rows (1 when they split heads); rows of this
                                  rank */
    int32_t n_parts;           /* ranks that split heads and widths, all with all rows; else 1 */
    int32_t heads;             /* of this rank */
    int32_t tile;              /* rows that attention works on at a time */
    int64_t index_scratch;     /* floats in index_y */
    td_dtype act;
    size_t act_bytes;
    int draft_prenorm;
    float attn_scale;
    td_device_pool pool;
    td_err *err; /* of the running step */

    float *cos_sin; /* [max_context, R/2, 2] */
    int32_t *iota;  /* [max(tile * H, max_rows)] 0, 1, 2, .. */
    /* State of the rows between operations, [max_rows, ..] */
    void *x;                    /* [n, D] act: normed input of the next sublayer */
    uint8_t *xq;                /* [n, D] e4m3 of x, when the checkpoint is FP8 */
    float *xs;                  /* [n, ceil(D/128)] */
    void *res;                  /* [n, D] act: residual stream */
    void *h;                    /* [n, D] act: a sublayer's output */
    float *wide;                /* [n, D] a copy of x for f32 weights; quantised mode only */
    void *latent;               /* [n, C + R] act */
    void *key;                  /* [n, index_dim] act */
    void *latent_all, *key_all; /* [P * n, ..]; the same as above when P is 1 */
    void *cat;      /* [n, 2 D] act: the draft layer's input; NULL without draft layer */
    uint8_t *cat_q; /* only for an e4m3 eh_proj */
    float *cat_s;
    /* Attention, [tile, ..] */
    void *qa, *q, *qf, *u, *o;
    uint8_t *qa_q, *o_q;
    float *qa_s, *o_s;
    void *iq; /* [tile, Hi, dim] act */
    uint8_t *iq_q;
    float *iq_s, *iw;  /* [tile, Hi] */
    float *index_y;    /* scores */
    int32_t *selected; /* [tile, index_topk] */
    /* MLP: T = P * n rows (ranks in fused mode) */
    void *gx; /* [T, D] act; x when P is 1 */
    uint8_t *gxq;
    float *gxs;
    float *gate_logits;      /* [n, E] */
    int32_t *ids;            /* [n, K] */
    float *weights;          /* [n, K] */
    int32_t *gids;           /* [T, K] */
    float *gweights;         /* [T, K] */
    void *mlp_gate, *mlp_up; /* [T, I] act; the product overwrites mlp_gate */
    uint8_t *mlp_q;
    float *mlp_s;
    float *y;     /* [T, D] f32 partial sums */
    float *ysum;  /* [n, D] f32 */
    float *parts; /* [n_parts, n, D] f32, of all ranks; NULL when n_parts is 1 */
    /* MoE by experts' owners: cap = max_rows rows from and to each rank */
    int32_t *ep_rows, *ep_counts, *ep_slot, *ep_recv_counts, *ep_back_counts;
    void *ep_x; /* [P, cap, D] to send */
    uint8_t *ep_xq;
    float *ep_xs, *ep_weights, *ep_parts;
    int32_t *ep_ids;
} td_forward;

/* max_rows: of this rank. On failure the forward is half-built: fini() it. */
td_status td_forward_init(td_forward *f, const td_engine_config *config, int32_t max_rows,
                          td_err *err);
void td_forward_fini(td_forward *f);
td_status td_forward_failed(td_forward *f, const char *op, td_status st);
/* What a step ends with that failed half-way: its peers wait no more, and when it returns the
 * stream uses nobody's memory any more. */
void td_forward_abandon(td_forward *f);

/* Runs one operation of the table; returns from the calling function when it fails. */
#define TD_OP(f, op, ...)                                                                          \
    do {                                                                                           \
        const td_##op##_args args_ = {__VA_ARGS__};                                                \
        td_status st_ = (f)->ops->op(&args_, (f)->stream);                                         \
        if (st_ < 0)                                                                               \
            return td_forward_failed(f, #op, st_);                                                 \
    } while (0)
#define TD_TRY(call)                                                                               \
    do {                                                                                           \
        td_status st_ = (call);                                                                    \
        if (st_ < 0)                                                                               \
            return st_;                                                                            \
    } while (0)

/* y = x w^T for m rows. x in the activations' type with its quantised form beside it; whichever the
 * weight takes is used (for an f32 weight in quantised mode, K is D). Rows are contiguous. */
typedef struct {
    const void *x;
    const uint8_t *xq;
    const float *xs;
    int32_t m;
} td_operand;
td_status td_forward_linear(td_forward *f, const td_linear *l, td_operand in, td_dtype y_dtype,
                            void *y, int accumulate);
/* x = norm(h + res), res = h + res; with quant also xq, xs. first: x = norm(res) alone. */
td_status td_forward_norm(td_forward *f, int32_t n, const float *w, int first, int quant);
/* Embedding of ids [n] to res, x = the first layer's norm of it. */
td_status td_forward_embed(td_forward *f, const int32_t *ids, int32_t n);
/* The draft layer's input (A.12): res = eh_proj [ norm(embed(ids)) ; norm(hidden) ], x = its input
 * norm. hidden [n, D] act, may be f->x or f->res. */
td_status td_forward_draft_input(td_forward *f, const int32_t *ids, const void *hidden, int32_t n);
/* From x: latents and index keys of all ranks' rows into the cache. */
td_status td_forward_kv(td_forward *f, int32_t layer, const td_rows *rows);
/* From x: h = attention of the rows. selected_out: NULL, or device [n, index_topk]. */
td_status td_forward_attention(td_forward *f, int32_t layer, const td_rows *rows,
                               int32_t *selected_out);
/* From x: h = MLP or MoE of n rows. */
td_status td_forward_mlp(td_forward *f, int32_t layer, int32_t n);
/* h = the sum over the parts of every rank [n, D], in rank order, rounded once. */
td_status td_forward_sum(td_forward *f, const float *part, int32_t n);
/* attention, norm, mlp. Afterwards res and h want the next norm. */
td_status td_forward_rest(td_forward *f, int32_t layer, const td_rows *rows, int32_t *selected_out);
/* logits [m, V] f32 of m rows [m, D] act. */
td_status td_forward_head(td_forward *f, const void *x, int32_t m, float *logits);
/* dst[i] = src[rows[i]], [.., D] act; rows: device. */
td_status td_forward_pick(td_forward *f, const void *src, const int32_t *rows, int32_t n,
                          void *dst);
/* Pointer `rows` rows of `cols` elements of `size` bytes further. */
static inline void *td_at(const void *base, int64_t rows, int64_t cols, size_t size)
{
    return (char *)(uintptr_t)base + (size_t)(rows * cols) * size;
}
#endif
