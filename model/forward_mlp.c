#include "model/forward.h"

/* The rows that a sublayer works on: this rank's, or everybody's after a gather. */
typedef struct {
    td_operand in;
    const int32_t *ids;   /* [m, K] */
    const float *weights; /* [m, K] */
} mlp_rows;

static int uses(const td_layer_weights *l, td_dtype dtype)
{
    int experts = l->is_moe && (l->experts.dtype == TD_E4M3) == (dtype == TD_E4M3);
    int mlp = l->mlp.down.N > 0 && (l->mlp.gate.dtype == TD_E4M3) == (dtype == TD_E4M3);
    return experts || mlp;
}

static td_status route(td_forward *f, const td_layer_weights *l, int32_t n)
{
    const td_model_config *c = &f->w->config;
    td_operand in = {.x = f->x, .m = n};
    TD_TRY(td_forward_linear(f, &l->gate, in, TD_F32, f->gate_logits, 0));
    TD_OP(f, moe_gate, .logits = f->gate_logits, .bias = l->gate_bias, .ids = f->ids,
          .weights = f->weights, .T = n, .E = c->n_experts, .K = c->experts_per_token,
          .n_group = c->n_group, .topk_group = c->topk_group, .norm_topk = c->norm_topk_prob,
          .scale = (float)c->routed_scaling_factor, .eps = f->w->precise ? 1e-20f : 0.0f);
    return TD_OK;
}

/* y (+)= the dense MLP, or the shared experts. */
static td_status dense(td_forward *f, const td_mlp_weights *mlp, td_operand in, float *y,
                       int accumulate)
{
    int width = mlp->gate.N;
    if (width == 0 && accumulate)
        return TD_OK;
    if (width > 0) {
        int q = mlp->down.dtype == TD_E4M3;
        TD_TRY(td_forward_linear(f, &mlp->gate, in, f->act, f->mlp_gate, 0));
        TD_TRY(td_forward_linear(f, &mlp->up, in, f->act, f->mlp_up, 0));
        TD_OP(f, silu_mul, .gate = f->mlp_gate, .up = f->mlp_up, .y = f->mlp_gate,
              .q = q ? f->mlp_q : NULL, .qs = q ? f->mlp_s : NULL, .T = in.m, .I = width,
              .ue8m0 = f->w->config.ue8m0, .act = f->act);
    }
    td_operand product = {f->mlp_gate, f->mlp_q, f->mlp_s, in.m};
    return td_forward_linear(f, &mlp->down, product, TD_F32, y, accumulate);
}

static td_status experts(td_forward *f, const td_expert_weights *e, mlp_rows rows, float *y)
{
    const td_model_config *c = &f->w->config;
    int e4m3 = e->dtype == TD_E4M3;
    TD_OP(f, moe_experts, .x = e4m3 ? (const void *)rows.in.xq : rows.in.x,
          .xs = e4m3 ? rows.in.xs : NULL, .ids = rows.ids, .weights = rows.weights, .gate = e->gate,
          .up = e->up, .down = e->down, .gate_s = e->gate_s, .up_s = e->up_s, .down_s = e->down_s,
          .y = y, .T = rows.in.m, .D = c->hidden_size, .I = e->I, .K = c->experts_per_token,
          .expert_lo = e->expert_lo, .expert_hi = e->expert_hi, .ue8m0 = c->ue8m0,
          .dtype = e->dtype);
    return TD_OK;
}

static td_status gather(td_forward *f, const void *send, int64_t row_bytes, int32_t n, void *recv)
{
    td_status st = td_comm_all_gather(f->comm, send, (size_t)(row_bytes * n), recv, f->stream);
    return st < 0 ? td_forward_failed(f, "all_gather", st) : TD_OK;
}

/* Everybody's rows, rank-major. Gate and quantiser work row by row: gathering their results is the
 * same as gathering their input. */
static td_status gather_rows(td_forward *f, const td_layer_weights *l, int32_t n, mlp_rows *out)
{
    const td_model_config *c = &f->w->config;
    int64_t d = c->hidden_size, k = c->experts_per_token;
    if (f->n_ranks > 1) {
        if (uses(l, TD_E4M3)) {
            TD_TRY(gather(f, f->xq, d, n, f->gxq));
            TD_TRY(gather(f, f->xs, td_ceil_div((int)d, TD_QUANT_GROUP) * 4, n, f->gxs));
        }
        if (uses(l, f->act))
            TD_TRY(gather(f, f->x, d * (int64_t)f->act_bytes, n, f->gx));
        if (l->is_moe) {
            TD_TRY(gather(f, f->ids, k * 4, n, f->gids));
            TD_TRY(gather(f, f->weights, k * 4, n, f->gweights));
        }
    }
    *out = (mlp_rows){{f->gx, f->gxq, f->gxs, n * f->n_ranks}, f->gids, f->gweights};
    return TD_OK;
}

/* Every rank computes its slice of the width for all rows; f->ysum is the sum for its own. */
static td_status fused(td_forward *f, const td_layer_weights *l, int32_t n)
{
    mlp_rows all;
    TD_TRY(gather_rows(f, l, n, &all));
    if (l->is_moe)
        TD_TRY(experts(f, &l->experts, all, f->y));
    if (!l->is_moe || f->w->config.n_shared_experts > 0)
        TD_TRY(dense(f, &l->mlp, all.in, f->y, l->is_moe));
    if (f->n_ranks > 1) {
        td_status st = td_comm_reduce_scatter_f32(
            f->comm, f->y, (size_t)n * (size_t)f->w->config.hidden_size, f->ysum, f->stream);
        if (st < 0)
            return td_forward_failed(f, "reduce_scatter", st);
    }
    return TD_OK;
}

/* Rows in the order of f->ep_rows to their experts' owners. */
static td_status send_rows(td_forward *f, const void *x, int64_t row_bytes, int32_t n, void *staged,
                           void *recv)
{
    TD_OP(f, gather_rows, .x = x, .rows = f->ep_rows, .y = staged, .T = f->n_ranks * n,
          .row_bytes = row_bytes, .x_stride_bytes = row_bytes, .y_stride_bytes = row_bytes);
    td_status st = td_comm_all_to_all_rows(f->comm, staged, f->ep_counts, (uint32_t)n,
                                           (size_t)row_bytes, recv, f->ep_recv_counts, f->stream);
    return st < 0 ? td_forward_failed(f, "all_to_all", st) : TD_OK;
}

/* Rows travel to whole experts and their sums back; the shared experts stay at home. */
static td_status expert_parallel(td_forward *f, const td_layer_weights *l, int32_t n)
{
    const td_model_config *c = &f->w->config;
    int64_t d = c->hidden_size, k = c->experts_per_token,
            scales = td_ceil_div((int)d, TD_QUANT_GROUP);
    int32_t all = n * f->n_ranks;
    TD_OP(f, ep_plan, .ids = f->ids, .rows = f->ep_rows, .counts = f->ep_counts, .slot = f->ep_slot,
          .T = n, .K = (int)k, .E = c->n_experts, .P = f->n_ranks);
    /* Places that nobody fills must not name an expert. */
    TD_TRY(td_stream_fill(f->stream, f->gids, 0xff, (size_t)(all * k) * sizeof(int32_t)));
    TD_TRY(send_rows(f, f->ids, k * 4, n, f->ep_ids, f->gids));
    TD_TRY(send_rows(f, f->weights, k * 4, n, f->ep_weights, f->gweights));
    if (l->experts.dtype == TD_E4M3) {
        TD_TRY(send_rows(f, f->xq, d, n, f->ep_xq, f->gxq));
        TD_TRY(send_rows(f, f->xs, scales * 4, n, f->ep_xs, f->gxs));
    } else {
        TD_TRY(send_rows(f, f->x, d * (int64_t)f->act_bytes, n, f->ep_x, f->gx));
    }
    mlp_rows rows = {{f->gx, f->gxq, f->gxs, all}, f->gids, f->gweights};
    TD_TRY(experts(f, &l->experts, rows, f->y));
    td_status st = td_comm_all_to_all_rows(f->comm, f->y, f->ep_recv_counts, (uint32_t)n,
                                           (size_t)d * sizeof(float), f->ep_parts,
                                           f->ep_back_counts, f->stream);
    if (st < 0)
        return td_forward_failed(f, "all_to_all", st);
    TD_OP(f, ep_combine, .parts = f->ep_parts, .slot = f->ep_slot, .y = f->ysum, .T = n,
          .P = f->n_ranks, .D = (int)d, .cap = n);
    return TD_OK;
}

td_status td_forward_mlp(td_forward *f, int32_t layer, int32_t n)
{
    const td_layer_weights *l = &f->w->layers[layer];
    td_operand own = {f->x, f->xq, f->xs, n};
    int ep = f->w->moe == TD_MOE_EP && f->n_ranks > 1;
    if (l->is_moe)
        TD_TRY(route(f, l, n));
    if (!ep)
        TD_TRY(fused(f, l, n));
    if (ep && l->is_moe)
        TD_TRY(expert_parallel(f, l, n));
    if (ep && (!l->is_moe || f->w->config.n_shared_experts > 0))
        TD_TRY(dense(f, &l->mlp, own, f->ysum, l->is_moe));
    return td_forward_sum(f, f->ysum, n);
}
