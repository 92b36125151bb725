#include "model/forward.h"

#define LATENT_NORM_EPS_PRECISE 1e-6f /* Hugging Face's q_a and kv_a norms, model-spec A.11 */
#define KEY_NORM_EPS 1e-6f

static float latent_eps(const td_forward *f)
{
    return f->w->precise ? LATENT_NORM_EPS_PRECISE : (float)f->w->config.rms_norm_eps;
}

static td_kv_view kv_view(const td_forward *f, int32_t layer, td_kv_kind kind)
{
    const td_kv_plane *plane = td_kv_layout_plane(f->layout, (uint32_t)layer, kind);
    return (td_kv_view){.plane = f->kv_base + plane->offset,
                        .page_stride = f->layout->page_stride,
                        .page_rows = (int)plane->rows,
                        .dtype = (int)f->layout->dtype};
}

td_status td_forward_kv(td_forward *f, int32_t layer, const td_rows *rows)
{
    const td_model_config *c = &f->w->config;
    const td_layer_weights *l = &f->w->layers[layer];
    int dim = c->kv_lora_rank, rope = c->qk_rope_dim, latent = dim + rope, n = rows->n;
    td_operand in = {f->x, f->xq, f->xs, n};
    TD_TRY(td_forward_linear(f, &l->kv_a, in, f->act, f->latent, 0));
    TD_TRY(td_forward_linear(f, &l->index_k, in, f->act, f->key, 0));
    TD_OP(f, rmsnorm, .x = f->latent, .w = l->kv_a_norm, .y = f->latent, .T = n, .D = dim,
          .x_stride = latent, .y_stride = latent, .eps = latent_eps(f), .act = f->act);
    TD_OP(f, rope, .x = td_at(f->latent, 1, dim, f->act_bytes), .positions = rows->positions,
          .cos_sin = f->cos_sin, .T = n, .heads = 1, .R = rope, .max_pos = (int)f->max_context,
          .row_stride = latent, .head_stride = rope, .interleaved = 1, .act = f->act);
    TD_OP(f, layernorm, .x = f->key, .w = l->index_k_norm_w, .b = l->index_k_norm_b, .y = f->key,
          .T = n, .D = c->index_dim, .eps = KEY_NORM_EPS, .act = f->act);
    TD_OP(f, rope, .x = f->key, .positions = rows->positions, .cos_sin = f->cos_sin, .T = n,
          .heads = 1, .R = rope, .max_pos = (int)f->max_context, .row_stride = c->index_dim,
          .head_stride = c->index_dim, .interleaved = c->rope.indexer_interleaved, .act = f->act);
    if (f->n_ranks > 1) {
        size_t n_latent = (size_t)n * (size_t)latent * f->act_bytes;
        size_t n_key = (size_t)n * (size_t)c->index_dim * f->act_bytes;
        td_status st = td_comm_all_gather(f->comm, f->latent, n_latent, f->latent_all, f->stream);
        if (st == TD_OK)
            st = td_comm_all_gather(f->comm, f->key, n_key, f->key_all, f->stream);
        if (st < 0)
            return td_forward_failed(f, "all_gather", st);
    }
    /* The slots put the gathered rows back in sequence order. */
    TD_OP(f, kv_write, .c = f->latent_all, .slots = rows->slots,
          .kv = kv_view(f, layer, TD_KV_LATENT), .T = n * f->n_ranks, .C = dim, .R = rope,
          .c_stride = latent, .act = f->act);
    TD_OP(f, index_key_write, .k = f->key_all, .slots = rows->slots,
          .kv = kv_view(f, layer, TD_KV_INDEX_KEY), .T = n * f->n_ranks, .dim = c->index_dim,
          .act = f->act);
    return TD_OK;
}

/* Queries of m rows from row at: f->qf [m, H, C + R], and f->qa with its quantised form. */
static td_status queries(td_forward *f, const td_layer_weights *l, const td_rows *rows, int32_t at,
                         int32_t m)
{
    const td_model_config *c = &f->w->config;
    int heads = f->heads, nope = c->qk_nope_dim, rope = c->qk_rope_dim, dim = c->kv_lora_rank;
    int q_dim = nope + rope, latent = dim + rope, rank = c->q_lora_rank, d = c->hidden_size;
    int fp8 = f->xq != NULL;
    td_operand in = {.x = td_at(f->x, at, d, f->act_bytes), .m = m};
    if (fp8) {
        in.xq = td_at(f->xq, at, d, 1);
        in.xs = td_at(f->xs, at, td_ceil_div(d, TD_QUANT_GROUP), sizeof(float));
    }
    TD_TRY(td_forward_linear(f, &l->q_a, in, f->act, f->qa, 0));
    TD_OP(f, rmsnorm, .x = f->qa, .w = l->q_a_norm, .y = f->qa, .q = fp8 ? f->qa_q : NULL,
          .qs = fp8 ? f->qa_s : NULL, .T = m, .D = rank, .x_stride = rank, .y_stride = rank,
          .eps = latent_eps(f), .ue8m0 = c->ue8m0, .act = f->act);
    if (heads == 0) /* the indexer needs qa on every rank */
        return TD_OK;
    td_operand qr = {f->qa, f->qa_q, f->qa_s, m};
    TD_TRY(td_forward_linear(f, &l->q_b, qr, f->act, f->q, 0));
    TD_OP(f, head_gemm, .x = f->q, .w = l->w_uk, .y = f->qf, .T = m, .H = heads, .N = dim,
          .K = nope, .x_row = (int64_t)heads * q_dim, .x_head = q_dim,
          .y_row = (int64_t)heads * latent, .y_head = latent, .act = f->act);
    TD_OP(f, gather_rows, .x = td_at(f->q, 1, nope, f->act_bytes), .rows = f->iota,
          .y = td_at(f->qf, 1, dim, f->act_bytes), .T = m * heads,
          .row_bytes = (int64_t)(rope * (int)f->act_bytes),
          .x_stride_bytes = (int64_t)(q_dim * (int)f->act_bytes),
          .y_stride_bytes = (int64_t)(latent * (int)f->act_bytes));
    TD_OP(f, rope, .x = td_at(f->qf, 1, dim, f->act_bytes), .positions = rows->positions + at,
          .cos_sin = f->cos_sin, .T = m, .heads = heads, .R = rope, .max_pos = (int)f->max_context,
          .row_stride = (int64_t)heads * latent, .head_stride = latent, .interleaved = 1,
          .act = f->act);
    return TD_OK;
}

/* Which positions each of m rows attends to: f->selected [m, k]. */
static td_status select_positions(td_forward *f, int32_t layer, const td_rows *rows, int32_t at,
                                  int32_t m)
{
    const td_model_config *c = &f->w->config;
    const td_layer_weights *l = &f->w->layers[layer];
    int heads = c->index_n_heads, dim = c->index_dim, k = c->index_topk;
    int quantised = f->act == TD_BF16;
    size_t q_size = quantised ? 1 : sizeof(float);
    if (rows->max_len <= k) { /* all rows see all they may: no scores are read */
        TD_OP(f, topk, .logits = f->index_y, .row_len = rows->len + at, .selected = f->selected,
              .T = m, .k = k, .stride = rows->max_len);
        return TD_OK;
    }
    td_operand qr = {f->qa, f->qa_q, f->qa_s, m};
    td_operand x = {.x = td_at(f->x, at, c->hidden_size, f->act_bytes), .m = m};
    TD_TRY(td_forward_linear(f, &l->index_q, qr, f->act, f->iq, 0));
    TD_TRY(td_forward_linear(f, &l->index_w, x, TD_F32, f->iw, 0));
    TD_OP(f, rope, .x = f->iq, .positions = rows->positions + at, .cos_sin = f->cos_sin, .T = m,
          .heads = heads, .R = c->qk_rope_dim, .max_pos = (int)f->max_context,
          .row_stride = (int64_t)heads * dim, .head_stride = dim,
          .interleaved = c->rope.indexer_interleaved, .act = f->act);
    if (quantised)
        TD_OP(f, hadamard_quant, .x = f->iq, .q = f->iq_q, .qs = f->iq_s, .T = m * heads,
              .ue8m0 = 1);
    TD_OP(f, index_weights, .xw = f->iw, .qs = quantised ? f->iq_s : NULL, .w = f->iw, .T = m,
          .Hi = heads, .dim = dim);
    int64_t stride = rows->max_len;
    int32_t step = (int32_t)(f->index_scratch / stride < m ? f->index_scratch / stride : m);
    const void *q = quantised ? (const void *)f->iq_q : f->iq;
    for (int32_t i = 0; i < m; i += step) {
        int32_t n = m - i < step ? m - i : step;
        td_rows_view view = {rows->seq + at + i, rows->len + at + i, rows->block_table,
                             rows->max_pages};
        TD_OP(f, index_logits, .q = td_at(q, i, (int64_t)heads * dim, q_size),
              .w = f->iw + (int64_t)i * heads, .kv = kv_view(f, layer, TD_KV_INDEX_KEY),
              .rows = view, .y = f->index_y, .T = n, .Hi = heads, .dim = dim, .skip_len = k,
              .y_stride = stride);
        TD_OP(f, topk, .logits = f->index_y, .row_len = view.row_len,
              .selected = f->selected + (int64_t)i * k, .T = n, .k = k, .stride = stride);
    }
    return TD_OK;
}

/* What the heads of this rank see, m rows: f->o [m, H v]. */
static td_status mix(td_forward *f, int32_t layer, const td_rows *rows, int32_t at, int32_t m)
{
    const td_model_config *c = &f->w->config;
    const td_layer_weights *l = &f->w->layers[layer];
    int heads = f->heads, dim = c->kv_lora_rank, v = c->v_dim;
    td_rows_view view = {rows->seq + at, rows->len + at, rows->block_table, rows->max_pages};
    if (heads == 0)
        return TD_OK;
    TD_OP(f, sparse_mla, .q = f->qf, .selected = f->selected, .kv = kv_view(f, layer, TD_KV_LATENT),
          .rows = view, .u = f->u, .T = m, .H = heads, .C = dim, .R = c->qk_rope_dim,
          .k = c->index_topk, .scale = f->attn_scale, .act = f->act);
    TD_OP(f, head_gemm, .x = f->u, .w = l->w_uv, .y = f->o, .T = m, .H = heads, .N = v, .K = dim,
          .x_row = (int64_t)heads * dim, .x_head = dim, .y_row = (int64_t)heads * v, .y_head = v,
          .act = f->act);
    if (l->o.dtype == TD_E4M3)
        TD_OP(f, quant, .x = f->o, .q = f->o_q, .qs = f->o_s, .T = m, .K = heads * v,
              .x_stride = (int64_t)heads * v, .ue8m0 = c->ue8m0);
    return TD_OK;
}

/* Attention of m rows from row at: into f->h, or this rank's part of it into f->y. */
static td_status attend(td_forward *f, int32_t layer, const td_rows *rows, int32_t at, int32_t m)
{
    int32_t d = f->w->config.hidden_size;
    td_operand in = {f->o, f->o_q, f->o_s, m};
    TD_TRY(mix(f, layer, rows, at, m));
    if (f->n_parts > 1)
        return td_forward_linear(f, &f->w->layers[layer].o, in, TD_F32,
                                 td_at(f->y, at, d, sizeof(float)), 0);
    return td_forward_linear(f, &f->w->layers[layer].o, in, f->act,
                             td_at(f->h, at, d, f->act_bytes), 0);
}

td_status td_forward_attention(td_forward *f, int32_t layer, const td_rows *rows,
                               int32_t *selected_out)
{
    int64_t k = f->w->config.index_topk;
    for (int32_t at = 0; at < rows->n; at += f->tile) {
        int32_t m = rows->n - at < f->tile ? rows->n - at : f->tile;
        TD_TRY(queries(f, &f->w->layers[layer], rows, at, m));
        TD_TRY(select_positions(f, layer, rows, at, m));
        TD_TRY(attend(f, layer, rows, at, m));
        if (selected_out != NULL)
            TD_TRY(td_stream_copy(f->stream, selected_out + at * k, f->selected,
                                  (size_t)(m * k) * sizeof(int32_t)));
    }
    return f->n_parts > 1 ? td_forward_sum(f, f->y, rows->n) : TD_OK;
}
