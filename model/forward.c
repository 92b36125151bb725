#include "model/forward.h"

#include "kernels/rope/rope_table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A CPU's tiles stay in its caches; a GPU wants rows for all of its multiprocessors. */
#define CPU_TILE_ROWS 128
#define CPU_INDEX_SCRATCH_BYTES ((uint64_t)64 << 20)
#define GPU_TILE_ROWS 2048
#define GPU_INDEX_SCRATCH_BYTES ((uint64_t)256 << 20)

void *td_device_pool_alloc(td_device_pool *pool, size_t n_bytes, td_err *err)
{
    void *ptr = NULL;
    if (pool->st < 0)
        return NULL;
    if (pool->n == pool->room) {
        uint32_t room = pool->room * 2 + 16;
        void **ptrs = realloc(pool->ptrs, room * sizeof(*ptrs));
        if (ptrs == NULL) {
            pool->st = td_fail(err, TD_NOMEM, "engine: no memory");
            return NULL;
        }
        pool->ptrs = ptrs;
        pool->room = room;
    }
    pool->st = td_device_alloc(pool->device, n_bytes > 0 ? n_bytes : 1, &ptr, err);
    if (pool->st < 0)
        return NULL;
    pool->ptrs[pool->n++] = ptr;
    return ptr;
}

void td_device_pool_free(td_device_pool *pool)
{
    for (uint32_t i = 0; i < pool->n; i++)
        td_device_free(pool->device, pool->ptrs[i]);
    free(pool->ptrs);
    *pool = (td_device_pool){.device = pool->device};
}

td_status td_forward_failed(td_forward *f, const char *op, td_status st)
{
    td_err why;
    const int of_device = st == TD_CUDA || st == TD_NOMEM;
    if (of_device && td_stream_sync(f->stream, &why) < 0) /* it knows what CUDA said */
        return td_fail(f->err, st, "operation %s: %s", op, why.text);
    return td_fail(f->err, st, "operation %s: %s", op, td_status_text(st));
}

void td_forward_abandon(td_forward *f)
{
    if (f->comm == NULL)
        return;
    td_comm_abort(f->comm);
    td_stream_sync(f->stream, NULL); /* what it says is not why the step failed */
}

static td_status check(const td_engine_config *config, td_err *err)
{
    const td_weights *w = config->weights;
    const td_kv_layout *l = config->layout;
    const td_model_config *c = &w->config;
    if (w->precise != (l->dtype == TD_KV_F32))
        return td_fail(err, TD_CONFIG, "%s mode with an %s cache",
                       w->precise ? "precise" : "quantised", td_kv_dtype_name(l->dtype));
    if ((int32_t)l->latent_dim != c->kv_lora_rank || (int32_t)l->rope_dim != c->qk_rope_dim ||
        (int32_t)l->index_dim != c->index_dim ||
        (int32_t)l->n_layers != c->n_layers + (l->draft_layer >= 0))
        return td_fail(err, TD_CONFIG, "the cache's layout is not this model's");
    if (l->draft_layer >= 0 && !w->has_draft)
        return td_fail(err, TD_CONFIG, "a cache with a draft layer, but the checkpoint has none");
    if (config->max_context == 0 || config->max_context > (uint32_t)c->max_positions)
        return td_fail(err, TD_CONFIG, "context of %u positions: the model has %d",
                       config->max_context, c->max_positions);
    if (config->n_pages == 0 || config->n_pages > INT32_MAX / TD_KV_PAGE_ROWS)
        return td_fail(err, TD_CONFIG, "%u pages: 1 to %d", config->n_pages,
                       INT32_MAX / TD_KV_PAGE_ROWS);
    if ((w->n_ranks > 1) != (config->comm != NULL) ||
        (config->comm != NULL && (td_comm_n_ranks(config->comm) != (uint32_t)w->n_ranks ||
                                  td_comm_rank(config->comm) != (uint32_t)w->rank)))
        return td_fail(err, TD_CONFIG, "the weights are cut for rank %d of %d, the collectives not",
                       w->rank, w->n_ranks);
    return TD_OK;
}

static td_status make_rope(td_forward *f, td_err *err)
{
    const td_model_config *c = &f->w->config;
    const td_rope_config *r = &c->rope;
    td_rope_params params = {.R = c->qk_rope_dim,
                             .theta = (float)r->theta,
                             .yarn = r->yarn,
                             .factor = (float)r->factor,
                             .beta_fast = (float)r->beta_fast,
                             .beta_slow = (float)r->beta_slow,
                             .original_max_pos = r->original_max_positions};
    size_t n_bytes = (size_t)f->max_context * (size_t)c->qk_rope_dim * sizeof(float);
    f->cos_sin = td_device_pool_alloc(&f->pool, n_bytes, err);
    float *host = malloc(n_bytes);
    td_status st = f->pool.st;
    if (host == NULL)
        st = td_fail(err, TD_NOMEM, "engine: no memory for %u positions", f->max_context);
    if (st == TD_OK)
        st = td_rope_table(&params, (int)f->max_context, host, err);
    if (st == TD_OK)
        st = td_stream_write(f->stream, f->cos_sin, host, n_bytes);
    if (st == TD_OK)
        st = td_stream_sync(f->stream, err);
    free(host);
    double m = r->yarn && r->factor > 1 ? 0.1 * r->mscale_all_dim * log(r->factor) + 1.0 : 1.0;
    f->attn_scale = (float)(m * m / sqrt((double)c->qk_nope_dim + c->qk_rope_dim));
    return st;
}

static td_status make_iota(td_forward *f, td_err *err)
{
    size_t n = (size_t)f->tile * (size_t)f->w->config.n_heads;
    if (n < (size_t)f->max_rows)
        n = (size_t)f->max_rows;
    f->iota = td_device_pool_alloc(&f->pool, n * sizeof(int32_t), err);
    int32_t *host = calloc(n + 1, sizeof(*host));
    td_status st = f->pool.st;
    if (host == NULL)
        st = td_fail(err, TD_NOMEM, "engine: no memory");
    for (size_t i = 0; i < n && host != NULL; i++)
        host[i] = (int32_t)i;
    if (st == TD_OK)
        st = td_stream_write(f->stream, f->iota, host, n * sizeof(*host));
    if (st == TD_OK)
        st = td_stream_sync(f->stream, err);
    free(host);
    return st;
}

typedef struct { /* allocates [rows, cols] of a size */
    td_device_pool *pool;
    td_err *err;
} taker;

static void *take(const taker *t, int64_t rows, int64_t cols, size_t size)
{
    return td_device_pool_alloc(t->pool, (size_t)(rows * cols) * size, t->err);
}

static int32_t groups(int32_t width)
{
    return td_ceil_div(width, TD_QUANT_GROUP);
}

static int has_f32_weights(const td_weights *w)
{
    int any = w->head.dtype == TD_F32;
    for (int32_t i = 0; i < w->n_layers + w->has_draft; i++)
        any |= w->layers[i].index_w.dtype == TD_F32 ||
               (w->layers[i].is_moe && w->layers[i].gate.dtype == TD_F32);
    return any;
}

static void alloc_rows(td_forward *f, const taker *t)
{
    const td_model_config *c = &f->w->config;
    int32_t n = f->max_rows, d = c->hidden_size, latent = c->kv_lora_rank + c->qk_rope_dim;
    size_t a = f->act_bytes;
    f->x = take(t, n, d, a);
    f->res = take(t, n, d, a);
    f->h = take(t, n, d, a);
    if (f->act == TD_BF16 && has_f32_weights(f->w))
        f->wide = take(t, n, d, sizeof(float));
    if (c->fp8 && !f->w->precise) {
        f->xq = take(t, n, d, 1);
        f->xs = take(t, n, groups(d), sizeof(float));
    }
    f->latent = f->latent_all = take(t, n, latent, a);
    f->key = f->key_all = take(t, n, c->index_dim, a);
    if (f->n_ranks > 1) {
        f->latent_all = take(t, (int64_t)n * f->n_ranks, latent, a);
        f->key_all = take(t, (int64_t)n * f->n_ranks, c->index_dim, a);
    }
    if (f->layout->draft_layer >= 0) {
        f->cat = take(t, n, 2 * d, a);
        if (f->w->layers[f->w->n_layers].eh.dtype == TD_E4M3) {
            f->cat_q = take(t, n, 2 * d, 1);
            f->cat_s = take(t, n, groups(2 * d), sizeof(float));
        }
    }
}

static void alloc_attention(td_forward *f, const taker *t)
{
    const td_model_config *c = &f->w->config;
    int32_t n = f->tile, heads = f->heads, latent = c->kv_lora_rank + c->qk_rope_dim;
    int32_t index_q = c->index_n_heads * c->index_dim;
    size_t a = f->act_bytes;
    f->qa = take(t, n, c->q_lora_rank, a);
    f->qa_q = take(t, n, c->q_lora_rank, 1);
    f->qa_s = take(t, n, groups(c->q_lora_rank), sizeof(float));
    f->q = take(t, n, (int64_t)heads * (c->qk_nope_dim + c->qk_rope_dim), a);
    f->qf = take(t, n, (int64_t)heads * latent, a);
    f->u = take(t, n, (int64_t)heads * c->kv_lora_rank, a);
    f->o = take(t, n, (int64_t)heads * c->v_dim, a);
    f->o_q = take(t, n, (int64_t)heads * c->v_dim, 1);
    f->o_s = take(t, n, groups(heads * c->v_dim), sizeof(float));
    f->iq = take(t, n, index_q, a);
    f->iq_q = take(t, n, index_q, 1);
    f->iq_s = take(t, n, c->index_n_heads, sizeof(float));
    f->iw = take(t, n, c->index_n_heads, sizeof(float));
    f->index_y = take(t, f->index_scratch, 1, sizeof(float));
    f->selected = take(t, n, c->index_topk, sizeof(int32_t));
}

/* The widest intermediate of this rank's dense and shared MLPs. */
static int32_t widest_mlp(const td_weights *w, int32_t n_layers)
{
    int32_t most = 0;
    for (int32_t i = 0; i < n_layers; i++)
        most = w->layers[i].mlp.gate.N > most ? w->layers[i].mlp.gate.N : most;
    return most;
}

static void alloc_mlp(td_forward *f, const taker *t)
{
    const td_model_config *c = &f->w->config;
    int32_t n = f->max_rows, d = c->hidden_size, k = c->experts_per_token;
    int32_t wide = widest_mlp(f->w, (int32_t)f->layout->n_layers);
    int64_t all = (int64_t)n * f->n_ranks, rows = f->w->moe == TD_MOE_FUSED ? all : n;
    size_t a = f->act_bytes;
    f->gate_logits = take(t, n, c->n_experts, sizeof(float));
    f->ids = f->gids = take(t, n, k, sizeof(int32_t));
    f->weights = f->gweights = take(t, n, k, sizeof(float));
    f->gx = f->x;
    f->gxq = f->xq;
    f->gxs = f->xs;
    f->mlp_gate = take(t, rows, wide, a);
    f->mlp_up = take(t, rows, wide, a);
    f->mlp_q = take(t, rows, wide, 1);
    f->mlp_s = take(t, rows, groups(wide), sizeof(float));
    f->y = f->ysum = take(t, all, d, sizeof(float));
    if (f->n_parts > 1)
        f->parts = take(t, (int64_t)f->n_parts * n, d, sizeof(float));
    if (f->n_ranks == 1)
        return;
    f->ysum = take(t, n, d, sizeof(float));
    f->gids = take(t, all, k, sizeof(int32_t));
    f->gweights = take(t, all, k, sizeof(float));
    f->gx = take(t, all, d, a);
    if (f->xq != NULL) {
        f->gxq = take(t, all, d, 1);
        f->gxs = take(t, all, groups(d), sizeof(float));
    }
    if (f->w->moe != TD_MOE_EP)
        return;
    f->ep_rows = take(t, all, 1, sizeof(int32_t));
    f->ep_slot = take(t, all, 1, sizeof(int32_t));
    f->ep_counts = take(t, f->n_ranks, 1, sizeof(int32_t));
    f->ep_recv_counts = take(t, f->n_ranks, 1, sizeof(int32_t));
    f->ep_back_counts = take(t, f->n_ranks, 1, sizeof(int32_t));
    f->ep_x = take(t, all, d, a);
    f->ep_ids = take(t, all, k, sizeof(int32_t));
    f->ep_weights = take(t, all, k, sizeof(float));
    f->ep_parts = take(t, all, d, sizeof(float));
    if (f->xq != NULL) {
        f->ep_xq = take(t, all, d, 1);
        f->ep_xs = take(t, all, groups(d), sizeof(float));
    }
}

td_status td_forward_init(td_forward *f, const td_engine_config *config, int32_t max_rows,
                          td_err *err)
{
    td_status st = check(config, err);
    if (st < 0)
        return st;
    int is_gpu = td_device_is_gpu(config->device);
    uint64_t scratch = config->index_scratch_bytes > 0 ? config->index_scratch_bytes
                       : is_gpu                        ? GPU_INDEX_SCRATCH_BYTES
                                                       : CPU_INDEX_SCRATCH_BYTES;
    int32_t tile = config->attn_tile_rows > 0 ? (int32_t)config->attn_tile_rows
                   : is_gpu                   ? GPU_TILE_ROWS
                                              : CPU_TILE_ROWS;
    *f = (td_forward){.w = config->weights,
                      .ops = config->ops,
                      .device = config->device,
                      .stream = td_device_stream(config->device),
                      .comm = config->comm,
                      .layout = config->layout,
                      .kv_base = config->kv_base,
                      .n_pages = config->n_pages,
                      .max_context = config->max_context,
                      .n_ranks = config->weights->tensor ? 1 : config->weights->n_ranks,
                      .n_parts = config->weights->tensor ? config->weights->n_ranks : 1,
                      .heads = config->weights->head_hi - config->weights->head_lo,
                      .max_rows = max_rows,
                      .tile = tile < max_rows ? tile : max_rows,
                      .act = config->weights->act,
                      .act_bytes = td_dtype_bytes(config->weights->act),
                      .draft_prenorm = config->draft_prenorm,
                      .pool = {.device = config->device}};
    /* At least one row of scores, at most those of a whole tile. */
    int64_t most = (int64_t)f->tile * f->max_context, want = (int64_t)(scratch / sizeof(float));
    f->index_scratch = want < (int64_t)f->max_context ? (int64_t)f->max_context
                       : want > most                  ? most
                                                      : want;
    if ((st = make_rope(f, err)) < 0 || (st = make_iota(f, err)) < 0)
        return st;
    taker t = {&f->pool, err};
    alloc_rows(f, &t);
    alloc_attention(f, &t);
    alloc_mlp(f, &t);
    return f->pool.st;
}

void td_forward_fini(td_forward *f)
{
    td_device_pool_free(&f->pool);
}

td_status td_forward_linear(td_forward *f, const td_linear *l, td_operand in, td_dtype y_dtype,
                            void *y, int accumulate)
{
    int e4m3 = l->dtype == TD_E4M3;
    if (l->dtype == TD_F32 && f->act == TD_BF16) {
        td_assert(l->K == f->w->config.hidden_size && in.m <= f->max_rows);
        TD_OP(f, widen, .x = in.x, .y = f->wide, .T = in.m, .D = l->K);
        in.x = f->wide;
    }
    TD_OP(f, gemm, .x = e4m3 ? (const void *)in.xq : in.x, .xs = e4m3 ? in.xs : NULL, .w = l->w,
          .ws = l->ws, .y = y, .M = in.m, .N = l->N, .K = l->K, .x_stride = l->K, .y_stride = l->N,
          .dtype = l->dtype, .y_dtype = y_dtype, .accumulate = accumulate);
    return TD_OK;
}

td_status td_forward_norm(td_forward *f, int32_t n, const float *w, int first, int quant)
{
    const td_model_config *c = &f->w->config;
    int d = c->hidden_size;
    quant = quant && f->xq != NULL;
    TD_OP(f, rmsnorm, .x = first ? f->res : f->h, .res = first ? NULL : f->res, .w = w, .y = f->x,
          .res_out = first ? NULL : f->res, .q = quant ? f->xq : NULL, .qs = quant ? f->xs : NULL,
          .T = n, .D = d, .x_stride = d, .y_stride = d, .eps = (float)c->rms_norm_eps,
          .ue8m0 = c->ue8m0, .act = f->act);
    return TD_OK;
}

td_status td_forward_embed(td_forward *f, const int32_t *ids, int32_t n)
{
    const td_model_config *c = &f->w->config;
    TD_OP(f, embed, .ids = ids, .table = f->w->embed, .y = f->res, .T = n, .D = c->hidden_size,
          .V = c->vocab_size, .act = f->act);
    return td_forward_norm(f, n, f->w->layers[0].input_norm, 1, 1);
}

td_status td_forward_draft_input(td_forward *f, const int32_t *ids, const void *hidden, int32_t n)
{
    const td_model_config *c = &f->w->config;
    const td_layer_weights *l = &f->w->layers[f->w->n_layers];
    int d = c->hidden_size;
    float eps = (float)c->rms_norm_eps;
    TD_OP(f, embed, .ids = ids, .table = f->w->embed, .y = f->h, .T = n, .D = d, .V = c->vocab_size,
          .act = f->act);
    TD_OP(f, rmsnorm, .x = f->h, .w = l->e_norm, .y = f->cat, .T = n, .D = d, .x_stride = d,
          .y_stride = 2 * d, .eps = eps, .act = f->act);
    TD_OP(f, rmsnorm, .x = hidden, .w = l->h_norm, .y = td_at(f->cat, 1, d, f->act_bytes), .T = n,
          .D = d, .x_stride = d, .y_stride = 2 * d, .eps = eps, .act = f->act);
    if (l->eh.dtype == TD_E4M3)
        TD_OP(f, quant, .x = f->cat, .q = f->cat_q, .qs = f->cat_s, .T = n, .K = 2 * d,
              .x_stride = 2 * d, .ue8m0 = c->ue8m0);
    td_operand in = {f->cat, f->cat_q, f->cat_s, n};
    TD_TRY(td_forward_linear(f, &l->eh, in, f->act, f->res, 0));
    return td_forward_norm(f, n, l->input_norm, 1, 1);
}

td_status td_forward_sum(td_forward *f, const float *part, int32_t n)
{
    int32_t d = f->w->config.hidden_size;
    int64_t size = (int64_t)n * d;
    if (f->n_parts > 1) {
        td_status st =
            td_comm_all_gather(f->comm, part, (size_t)size * sizeof(float), f->parts, f->stream);
        if (st < 0)
            return td_forward_failed(f, "all_gather", st);
        part = f->parts;
    }
    TD_OP(f, sum_partials, .parts = part, .y = f->h, .P = f->n_parts, .T = n, .D = d,
          .part_stride = size, .act = f->act);
    return TD_OK;
}

td_status td_forward_rest(td_forward *f, int32_t layer, const td_rows *rows, int32_t *selected_out)
{
    TD_TRY(td_forward_attention(f, layer, rows, selected_out));
    TD_TRY(td_forward_norm(f, rows->n, f->w->layers[layer].post_norm, 0, 1));
    return td_forward_mlp(f, layer, rows->n);
}

td_status td_forward_head(td_forward *f, const void *x, int32_t m, float *logits)
{
    td_operand in = {.x = x, .m = m};
    return td_forward_linear(f, &f->w->head, in, TD_F32, logits, 0);
}

td_status td_forward_pick(td_forward *f, const void *src, const int32_t *rows, int32_t n, void *dst)
{
    int64_t bytes = (int64_t)f->w->config.hidden_size * (int64_t)f->act_bytes;
    TD_OP(f, gather_rows, .x = src, .rows = rows, .y = dst, .T = n, .row_bytes = bytes,
          .x_stride_bytes = bytes, .y_stride_bytes = bytes);
    return TD_OK;
}
