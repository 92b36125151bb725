#include "model/weights.h"

#include "model/weights_read.h"

#include <stdio.h>
#include <stdlib.h>

#define CUT_FP8 TD_QUANT_GROUP /* whole blocks, so that groups stay those of the unsplit tensor */
#define CUT_OTHER 8

/* This rank's part of an intermediate width. */
static void cut_width(const td_weights_reader *r, int32_t width, td_dtype dtype, int32_t *lo,
                      int32_t *hi)
{
    if (r->options->moe == TD_MOE_EP) {
        *lo = 0;
        *hi = width;
        return;
    }
    td_cut_width(width, dtype == TD_E4M3 ? CUT_FP8 : CUT_OTHER, r->options->n_ranks,
                 r->options->rank, lo, hi);
}

/* Dense MLP or shared experts. */
static void read_mlp(td_weights_reader *r, const char *prefix, int32_t width, td_mlp_weights *out)
{
    int32_t lo, hi, d = r->config->hidden_size;
    td_matrix gate = td_read_matrix(r, prefix, "gate_proj.weight", width, d);
    td_matrix up = td_read_matrix(r, prefix, "up_proj.weight", width, d);
    td_matrix down = td_read_matrix(r, prefix, "down_proj.weight", d, width);
    if (r->st < 0)
        return;
    td_dtype dtype = td_read_dtype(r, &gate);
    if (td_read_dtype(r, &up) != dtype || td_read_dtype(r, &down) != dtype) {
        r->st = td_fail(r->err, TD_UNSUPPORTED, "%sgate, up and down differ in dtype", prefix);
        return;
    }
    cut_width(r, width, dtype, &lo, &hi);
    td_cut rows = {lo, hi, 0, d}, cols = {0, d, lo, hi};
    out->gate = td_read_linear(r, &gate, &rows, dtype);
    out->up = td_read_linear(r, &up, &rows, dtype);
    out->down = td_read_linear(r, &down, &cols, dtype);
}

/* One matrix of one expert to its place in the rank's array of experts. */
static void read_expert(td_weights_reader *r, const td_matrix *m, const td_cut *cut, int32_t index,
                        void *w, float *ws)
{
    int32_t n = cut->row_hi - cut->row_lo, k = cut->col_hi - cut->col_lo;
    if (r->st < 0)
        return;
    td_dtype dtype = td_read_dtype(r, m);
    size_t bytes = (size_t)n * (size_t)k * td_dtype_bytes(dtype);
    td_read_part(r, m, cut, dtype, (char *)w + (size_t)index * bytes);
    if (dtype == TD_E4M3)
        td_read_scales(r, m, cut,
                       ws + (size_t)index * (size_t)td_ceil_div(n, TD_QUANT_GROUP) *
                                (size_t)td_ceil_div(k, TD_QUANT_GROUP));
}

static void alloc_experts(td_weights_reader *r, td_expert_weights *out)
{
    size_t n = (size_t)(out->expert_hi - out->expert_lo), d = (size_t)r->config->hidden_size;
    size_t bytes = n * d * (size_t)out->I * td_dtype_bytes(out->dtype);
    out->gate = td_read_alloc(r, bytes);
    out->up = td_read_alloc(r, bytes);
    out->down = td_read_alloc(r, bytes);
    if (out->dtype != TD_E4M3)
        return;
    size_t blocks = n * (size_t)td_ceil_div(out->I, TD_QUANT_GROUP) *
                    (size_t)td_ceil_div(r->config->hidden_size, TD_QUANT_GROUP);
    out->gate_s = td_read_alloc(r, blocks * sizeof(float));
    out->up_s = td_read_alloc(r, blocks * sizeof(float));
    out->down_s = td_read_alloc(r, blocks * sizeof(float));
}

/* Looks up expert e's matrices and says what the operations get them as. */
static td_dtype find_expert(td_weights_reader *r, const char *layer, int32_t e, td_matrix *gate,
                            td_matrix *up, td_matrix *down)
{
    int32_t d = r->config->hidden_size, width = r->config->moe_intermediate_size;
    char prefix[TD_ST_MAX_NAME_BYTES];
    snprintf(prefix, sizeof(prefix), "%smlp.experts.%d.", layer, e);
    *gate = td_read_matrix(r, prefix, "gate_proj.weight", width, d);
    *up = td_read_matrix(r, prefix, "up_proj.weight", width, d);
    *down = td_read_matrix(r, prefix, "down_proj.weight", d, width);
    td_dtype dtype = td_read_dtype(r, gate);
    if (r->st == TD_OK && (td_read_dtype(r, up) != dtype || td_read_dtype(r, down) != dtype))
        r->st = td_fail(r->err, TD_UNSUPPORTED, "%sgate, up and down differ in dtype", prefix);
    return dtype;
}

/* The rows that travel to experts have the experts' dtype: every rank takes it from expert 0,
 * whether it owns that one, others or none. */
static void read_experts(td_weights_reader *r, const char *layer, td_expert_weights *out)
{
    const td_model_config *c = r->config;
    int32_t lo, hi, d = c->hidden_size;
    td_matrix gate, up, down;
    out->expert_hi = c->n_experts;
    if (r->options->moe == TD_MOE_EP)
        td_cut_experts(c->n_experts, r->options->n_ranks, r->options->rank, &out->expert_lo,
                       &out->expert_hi);
    out->dtype = find_expert(r, layer, 0, &gate, &up, &down);
    cut_width(r, c->moe_intermediate_size, out->dtype, &lo, &hi);
    out->I = hi - lo;
    alloc_experts(r, out);
    const td_cut rows = {lo, hi, 0, d}, cols = {0, d, lo, hi};
    const struct {
        const td_matrix *m;
        const td_cut *cut;
        void *w;
        float *ws;
    } arrays[] = {{&gate, &rows, out->gate, out->gate_s},
                  {&up, &rows, out->up, out->up_s},
                  {&down, &cols, out->down, out->down_s}};
    /* One array after the other, as they lie in memory: long copies. */
    for (size_t i = 0; i < sizeof(arrays) / sizeof(*arrays); i++)
        for (int32_t e = out->expert_lo; e < out->expert_hi && r->st == TD_OK; e++) {
            td_dtype dtype = find_expert(r, layer, e, &gate, &up, &down);
            if (r->st == TD_OK && dtype != out->dtype)
                r->st =
                    td_fail(r->err, TD_UNSUPPORTED,
                            "%smlp.experts: expert %d has another dtype than expert 0", layer, e);
            read_expert(r, arrays[i].m, arrays[i].cut, e - out->expert_lo, arrays[i].w,
                        arrays[i].ws);
        }
}

/* The rank's heads, in whole blocks of q_b's rows and o's columns. */
static void cut_heads(const td_weights_reader *r)
{
    const td_model_config *c = r->config;
    int fp8 = c->fp8 && !r->options->precise;
    int32_t q_dim = c->qk_nope_dim + c->qk_rope_dim, unit = 1;
    td_weights *w = r->out;
    w->head_hi = c->n_heads;
    if (!r->options->tensor)
        return;
    while ((fp8 && unit * q_dim % CUT_FP8 != 0) || unit * c->v_dim % (fp8 ? CUT_FP8 : CUT_OTHER))
        unit++;
    td_cut_width(c->n_heads, unit, r->options->n_ranks, r->options->rank, &w->head_lo, &w->head_hi);
}

/* kv_b_proj [H, nope + v, C] in its absorbed halves (model-spec A.5): W_UK transposed, W_UV as it
 * stands, both dequantised. */
static void read_absorbed(td_weights_reader *r, const char *layer, td_layer_weights *out)
{
    const td_model_config *c = r->config;
    int32_t nope = c->qk_nope_dim, v = c->v_dim, dim = c->kv_lora_rank;
    int32_t lo = r->out->head_lo, hi = r->out->head_hi;
    size_t heads = (size_t)(hi - lo), act = td_dtype_bytes(r->out->act);
    size_t uk_bytes = (size_t)dim * (size_t)nope * act, uv_bytes = (size_t)v * (size_t)dim * act;
    td_matrix m =
        td_read_matrix(r, layer, "self_attn.kv_b_proj.weight", c->n_heads * (nope + v), dim);
    out->w_uk = td_read_alloc(r, heads * uk_bytes);
    out->w_uv = td_read_alloc(r, heads * uv_bytes);
    for (int32_t h = lo; h < hi && r->st == TD_OK; h++) {
        td_cut rows = {h * (nope + v), h * (nope + v) + nope, 0, dim};
        td_read_turned(r, &m, &rows, r->out->act, (char *)out->w_uk + (size_t)(h - lo) * uk_bytes);
    }
    for (int32_t h = lo; h < hi && r->st == TD_OK; h++) {
        td_cut rows = {h * (nope + v) + nope, (h + 1) * (nope + v), 0, dim};
        td_read_part(r, &m, &rows, r->out->act, (char *)out->w_uv + (size_t)(h - lo) * uv_bytes);
    }
}

static td_linear read_cut(td_weights_reader *r, const char *prefix, const char *name,
                          int32_t n_rows, int32_t n_cols, const td_cut *cut)
{
    td_matrix m = td_read_matrix(r, prefix, name, n_rows, n_cols);
    return td_read_linear(r, &m, cut, td_read_dtype(r, &m));
}

static void read_attention(td_weights_reader *r, const char *layer, td_layer_weights *out)
{
    const td_model_config *c = r->config;
    int32_t d = c->hidden_size, q_dim = c->qk_nope_dim + c->qk_rope_dim;
    td_cut q_rows = {r->out->head_lo * q_dim, r->out->head_hi * q_dim, 0, c->q_lora_rank};
    td_cut o_cols = {0, d, r->out->head_lo * c->v_dim, r->out->head_hi * c->v_dim};
    char p[TD_ST_MAX_NAME_BYTES];
    snprintf(p, sizeof(p), "%sself_attn.", layer);
    out->input_norm = td_read_vector(r, layer, "input_layernorm.weight", d);
    out->post_norm = td_read_vector(r, layer, "post_attention_layernorm.weight", d);
    out->q_a = td_read_whole(r, p, "q_a_proj.weight", c->q_lora_rank, d);
    out->q_a_norm = td_read_vector(r, p, "q_a_layernorm.weight", c->q_lora_rank);
    out->q_b = read_cut(r, p, "q_b_proj.weight", c->n_heads * q_dim, c->q_lora_rank, &q_rows);
    out->kv_a =
        td_read_whole(r, p, "kv_a_proj_with_mqa.weight", c->kv_lora_rank + c->qk_rope_dim, d);
    out->kv_a_norm = td_read_vector(r, p, "kv_a_layernorm.weight", c->kv_lora_rank);
    out->o = read_cut(r, p, "o_proj.weight", d, c->n_heads * c->v_dim, &o_cols);
    out->index_q =
        td_read_whole(r, p, "indexer.wq_b.weight", c->index_n_heads * c->index_dim, c->q_lora_rank);
    out->index_k = td_read_whole(r, p, "indexer.wk.weight", c->index_dim, d);
    out->index_w = td_read_wide(r, p, "indexer.weights_proj.weight", c->index_n_heads, d);
    out->index_k_norm_w = td_read_vector(r, p, "indexer.k_norm.weight", c->index_dim);
    out->index_k_norm_b = td_read_vector(r, p, "indexer.k_norm.bias", c->index_dim);
    read_absorbed(r, layer, out);
}

static void read_layer(td_weights_reader *r, int32_t index, td_layer_weights *out)
{
    const td_model_config *c = r->config;
    char layer[64], mlp[96];
    snprintf(layer, sizeof(layer), "model.layers.%d.", index);
    snprintf(mlp, sizeof(mlp), "%smlp.", layer);
    read_attention(r, layer, out);
    out->is_moe = c->layer_is_moe[index];
    if (!out->is_moe) {
        read_mlp(r, mlp, c->intermediate_size, &out->mlp);
        return;
    }
    out->gate = td_read_wide(r, mlp, "gate.weight", c->n_experts, c->hidden_size);
    out->gate_bias = td_read_vector(r, mlp, "gate.e_score_correction_bias", c->n_experts);
    read_experts(r, layer, &out->experts);
    snprintf(mlp, sizeof(mlp), "%smlp.shared_experts.", layer);
    if (c->n_shared_experts > 0)
        read_mlp(r, mlp, c->moe_intermediate_size * c->n_shared_experts, &out->mlp);
}

static void read_draft(td_weights_reader *r, td_layer_weights *out)
{
    int32_t d = r->config->hidden_size;
    char layer[64];
    snprintf(layer, sizeof(layer), "model.layers.%d.", r->config->n_layers);
    read_layer(r, r->config->n_layers, out);
    out->e_norm = td_read_vector(r, layer, "enorm.weight", d);
    out->h_norm = td_read_vector(r, layer, "hnorm.weight", d);
    out->head_norm = td_read_vector(r, layer, "shared_head.norm.weight", d);
    out->eh = td_read_whole(r, layer, "eh_proj.weight", d, 2 * d);
}

static void read_ends(td_weights_reader *r)
{
    td_weights *w = r->out;
    const td_model_config *c = r->config;
    td_cut all = {0, c->vocab_size, 0, c->hidden_size};
    td_matrix embed =
        td_read_matrix(r, "model.", "embed_tokens.weight", c->vocab_size, c->hidden_size);
    w->embed =
        td_read_alloc(r, (size_t)c->vocab_size * (size_t)c->hidden_size * td_dtype_bytes(w->act));
    td_read_part(r, &embed, &all, w->act, w->embed);
    w->final_norm = td_read_vector(r, "model.", "norm.weight", c->hidden_size);
    if (c->tie_embeddings)
        w->head = (td_linear){w->embed, NULL, c->vocab_size, c->hidden_size, w->act};
    else
        w->head = td_read_wide(r, "", "lm_head.weight", c->vocab_size, c->hidden_size);
}

uint32_t td_weights_load_threads(uint32_t n_ranks)
{
    const uint32_t cpus = td_device_cpus();
    /* Of one rank: its own thread and the driver have work, too. */
    const uint32_t share = n_ranks > 1 ? cpus / n_ranks : cpus > 2 ? cpus - 2 : 1;
    return share < 1 ? 1 : share < 16 ? share : 16;
}

static td_status create_upload(td_weights_reader *r, td_device *device)
{
    td_upload_options o = {.n_threads = r->options->load_threads,
                           .buffer_bytes = r->options->load_buffer_bytes};
    if (o.n_threads == 0)
        o.n_threads = td_weights_load_threads((uint32_t)r->options->n_ranks);
    return td_upload_create(device, &o, &r->upload, r->err);
}

td_status td_weights_load(const td_checkpoint *ckpt, const td_model_config *config,
                          const td_weights_options *options, td_device *device, td_weights **out,
                          td_err *err)
{
    td_weights_reader r = {.ckpt = ckpt, .config = config, .options = options, .err = err};
    td_assert(options->n_ranks >= 1 && options->rank >= 0 && options->rank < options->n_ranks);
    td_weights *w = r.out = calloc(1, sizeof(*w));
    if (w == NULL)
        return td_fail(err, TD_NOMEM, "weights: no memory");
    w->config = *config;
    w->precise = options->precise;
    w->act = options->precise ? TD_F32 : TD_BF16;
    w->moe = options->moe;
    w->rank = options->rank;
    w->n_ranks = options->n_ranks;
    w->tensor = options->tensor;
    w->device = device;
    w->n_layers = config->n_layers;
    w->has_draft = td_weights_has_draft(ckpt, config);
    w->layers = calloc((size_t)(w->n_layers + 1), sizeof(*w->layers));
    if (w->layers == NULL) {
        r.st = td_fail(err, TD_NOMEM, "weights: no memory for %d layers", w->n_layers);
        goto done;
    }
    if (!options->precise && config->index_dim != 128)
        r.st = td_fail(err, TD_UNSUPPORTED, "index_head_dim %d: quantised mode takes 128 only",
                       config->index_dim);
    if (options->tensor && options->moe != TD_MOE_FUSED)
        r.st = td_fail(err, TD_CONFIG, "tensor-parallel ranks with whole experts: not supported");
    cut_heads(&r);
    if (r.st == TD_OK)
        r.st = create_upload(&r, device);
    read_ends(&r);
    for (int32_t i = 0; i < w->n_layers && r.st == TD_OK; i++)
        read_layer(&r, i, &w->layers[i]);
    if (w->has_draft)
        read_draft(&r, &w->layers[w->n_layers]);
    if (r.st == TD_OK)
        r.st = td_upload_finish(r.upload, err);
done:
    td_upload_destroy(r.upload);
    if (r.st == TD_OK)
        *out = w;
    else
        td_weights_destroy(w);
    return r.st;
}

void td_weights_destroy(td_weights *weights)
{
    if (weights == NULL)
        return;
    for (uint32_t i = 0; i < weights->n_allocations; i++)
        td_device_free(weights->device, weights->allocations[i]);
    free(weights->allocations);
    free(weights->layers);
    free(weights);
}

int td_weights_has_draft(const td_checkpoint *ckpt, const td_model_config *config)
{
    char layer[64];
    snprintf(layer, sizeof(layer), "model.layers.%d.", config->n_layers);
    return config->n_draft_layers > 0 && td_checkpoint_has_prefix(ckpt, layer);
}
