#include "tests/model/made_model.h"

#include "kernels/numbers.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 4096

typedef struct {
    const td_made_model *m;
    td_tensor tensors[MAX_TENSORS];
    size_t n;
    uint64_t seed;
} maker;

td_made_model td_made_model_odd(void)
{
    return (td_made_model){.vocab = 203,
                           .hidden = 200,
                           .layers = 2,
                           .dense_layers = 1,
                           .heads = 3,
                           .intermediate = 392,
                           .moe_intermediate = 264,
                           .q_lora = 72,
                           .kv_lora = 128,
                           .nope = 40,
                           .rope = 16,
                           .v = 48,
                           .index_heads = 5,
                           .index_dim = 128,
                           .index_topk = 24,
                           .experts = 9,
                           .shared = 1,
                           .per_token = 3,
                           .groups = 3,
                           .topk_groups = 2,
                           .max_positions = 1024,
                           .yarn = 1,
                           .draft = 1,
                           .shards = 1,
                           .seed = 1};
}

static void *need(void *p)
{
    if (p == NULL)
        abort();
    return p;
}

/* About normal: mean 0, deviation 1. */
static float random_float(maker *k)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        k->seed = k->seed * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(k->seed >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7320508f;
}

static td_tensor *add(maker *k, const char *name, td_st_dtype dtype, int rows, int cols)
{
    static td_tensor dropped;
    if (k->m->leave_out != NULL && strcmp(name, k->m->leave_out) == 0)
        return &dropped;
    if (k->n == MAX_TENSORS)
        abort();
    int more = k->m->reshape != NULL && strcmp(name, k->m->reshape) == 0;
    td_tensor *t = &k->tensors[k->n++];
    t->name = need(strdup(name));
    t->dtype = dtype;
    t->n_dims = cols > 0 ? 2 : 1;
    t->shape[0] = rows + (cols > 0 ? 0 : more);
    t->shape[1] = cols + more;
    t->n_bytes =
        td_st_dtype_bytes(dtype) * (uint64_t)t->shape[0] * (uint64_t)(cols > 0 ? t->shape[1] : 1);
    t->data = need(calloc(1, t->n_bytes + 4));
    return t;
}

/* f32 or bf16 numbers: mean + scale * random. round: bf16's in any case. */
static void fill_rounded(maker *k, td_tensor *t, float mean, float scale, int round)
{
    size_t n = t->n_bytes / td_st_dtype_bytes(t->dtype);
    for (size_t i = 0; i < n && t->data != NULL; i++) {
        float v = mean + scale * random_float(k);
        td_bf16 b = td_f32_to_bf16(v);
        if (round)
            v = td_bf16_to_f32(b);
        if (t->dtype == TD_ST_F32)
            memcpy((unsigned char *)t->data + 4 * i, &v, 4);
        else
            memcpy((unsigned char *)t->data + 2 * i, &b, 2);
    }
}

static void fill(maker *k, td_tensor *t, float mean, float scale)
{
    fill_rounded(k, t, mean, scale, 0);
}

/* A matrix that is used as f32: gate, weights_proj, head. */
static void add_wide(maker *k, const char *prefix, const char *name, int rows, int cols)
{
    char full[256];
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    td_tensor *t = add(k, full, k->m->f32_gates ? TD_ST_F32 : TD_ST_BF16, rows, cols);
    fill_rounded(k, t, 0, 1.0f / sqrtf((float)cols), k->m->f32_gates != 1);
}

static void add_matrix(maker *k, const char *name, int rows, int cols, int quantise)
{
    char scale_name[256];
    float scale = 1.0f / sqrtf((float)cols);
    if (!quantise || !k->m->fp8) {
        fill(k, add(k, name, TD_ST_BF16, rows, cols), 0, scale);
        return;
    }
    td_tensor *w = add(k, name, TD_ST_F8_E4M3, rows, cols);
    snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", name);
    td_tensor *s = add(k, scale_name, k->m->bf16_scales == 1 ? TD_ST_BF16 : TD_ST_F32,
                       (rows + 127) / 128, (cols + 127) / 128);
    for (size_t i = 0; i < w->n_bytes && w->data != NULL; i++)
        ((unsigned char *)w->data)[i] = td_f32_to_e4m3(random_float(k) * 100.0f);
    size_t size = td_st_dtype_bytes(s->dtype);
    for (size_t i = 0; i < s->n_bytes / size && s->data != NULL; i++) {
        float v = k->m->plain_scales ? scale * 0.0137f * (1.0f + 0.1f * (float)(i % 5))
                                     : td_pow2_ceil(scale * (i % 3 == 0 ? 0.008f : 0.004f));
        td_bf16 b = td_f32_to_bf16(v);
        if (k->m->bf16_scales)
            v = td_bf16_to_f32(b);
        memcpy((unsigned char *)s->data + size * i, size == 4 ? (void *)&v : (void *)&b, size);
    }
}

static void add_norm(maker *k, const char *prefix, const char *name, int n)
{
    char full[256];
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    fill(k, add(k, full, k->m->f32_norms ? TD_ST_F32 : TD_ST_BF16, n, 0), 1.0f, 0.1f);
}

static void named(maker *k, const char *prefix, const char *name, int rows, int cols, int quantise)
{
    char full[256];
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    add_matrix(k, full, rows, cols, quantise);
}

static void add_mlp(maker *k, const char *prefix, int width)
{
    named(k, prefix, "gate_proj.weight", width, k->m->hidden, 1);
    named(k, prefix, "up_proj.weight", width, k->m->hidden, 1);
    named(k, prefix, "down_proj.weight", k->m->hidden, width, 1);
}

static void add_layer(maker *k, int index, int moe)
{
    const td_made_model *m = k->m;
    char p[128], full[200];
    snprintf(p, sizeof(p), "model.layers.%d.", index);
    add_norm(k, p, "input_layernorm.weight", m->hidden);
    add_norm(k, p, "post_attention_layernorm.weight", m->hidden);
    add_norm(k, p, "self_attn.q_a_layernorm.weight", m->q_lora);
    add_norm(k, p, "self_attn.kv_a_layernorm.weight", m->kv_lora);
    named(k, p, "self_attn.q_a_proj.weight", m->q_lora, m->hidden, 1);
    named(k, p, "self_attn.q_b_proj.weight", m->heads * (m->nope + m->rope), m->q_lora, 1);
    named(k, p, "self_attn.kv_a_proj_with_mqa.weight", m->kv_lora + m->rope, m->hidden, 1);
    named(k, p, "self_attn.kv_b_proj.weight", m->heads * (m->nope + m->v), m->kv_lora, 1);
    named(k, p, "self_attn.o_proj.weight", m->hidden, m->heads * m->v, 1);
    named(k, p, "self_attn.indexer.wq_b.weight", m->index_heads * m->index_dim, m->q_lora, 1);
    named(k, p, "self_attn.indexer.wk.weight", m->index_dim, m->hidden, 1);
    add_wide(k, p, "self_attn.indexer.weights_proj.weight", m->index_heads, m->hidden);
    snprintf(full, sizeof(full), "%sself_attn.indexer.k_norm.weight", p);
    fill(k, add(k, full, TD_ST_F32, m->index_dim, 0), 1.0f, 0.1f);
    snprintf(full, sizeof(full), "%sself_attn.indexer.k_norm.bias", p);
    fill(k, add(k, full, TD_ST_F32, m->index_dim, 0), 0.0f, 0.1f);
    snprintf(full, sizeof(full), "%smlp.", p);
    if (!moe) {
        add_mlp(k, full, m->intermediate);
        return;
    }
    add_wide(k, full, "gate.weight", m->experts, m->hidden);
    snprintf(full, sizeof(full), "%smlp.gate.e_score_correction_bias", p);
    fill(k, add(k, full, TD_ST_F32, m->experts, 0), 0.0f, 0.1f);
    for (int e = 0; e < m->experts; e++) {
        snprintf(full, sizeof(full), "%smlp.experts.%d.", p, e);
        add_mlp(k, full, m->moe_intermediate);
    }
    snprintf(full, sizeof(full), "%smlp.shared_experts.", p);
    if (m->shared > 0)
        add_mlp(k, full, m->moe_intermediate * m->shared);
}

static void add_draft(maker *k)
{
    const td_made_model *m = k->m;
    char p[128];
    snprintf(p, sizeof(p), "model.layers.%d.", m->layers);
    add_layer(k, m->layers, 1);
    add_norm(k, p, "enorm.weight", m->hidden);
    add_norm(k, p, "hnorm.weight", m->hidden);
    add_norm(k, p, "shared_head.norm.weight", m->hidden);
    named(k, p, "eh_proj.weight", m->hidden, 2 * m->hidden, 0);
}

/* Last of all: the other weights stay what they are without. */
static void add_draft_copies(maker *k)
{
    char p[128];
    snprintf(p, sizeof(p), "model.layers.%d.", k->m->layers);
    named(k, p, "embed_tokens.weight", k->m->vocab, k->m->hidden, 0);
    named(k, p, "shared_head.head.weight", k->m->vocab, k->m->hidden, 0);
}

static void write_config(const char *dir, const td_made_model *m)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *f = need(fopen(path, "w"));
    fprintf(f,
            "{\"model_type\":\"deepseek_v32\",\"vocab_size\":%d,\"hidden_size\":%d,"
            "\"intermediate_size\":%d,\"moe_intermediate_size\":%d,\"num_hidden_layers\":%d,"
            "\"num_nextn_predict_layers\":%d,\"num_attention_heads\":%d,"
            "\"n_shared_experts\":%d,\"n_routed_experts\":%d,\"routed_scaling_factor\":2.5,"
            "\"kv_lora_rank\":%d,\"q_lora_rank\":%d,\"qk_rope_head_dim\":%d,\"v_head_dim\":%d,"
            "\"qk_nope_head_dim\":%d,\"n_group\":%d,\"topk_group\":%d,\"num_experts_per_tok\":%d,"
            "\"first_k_dense_replace\":%d,\"norm_topk_prob\":%s,"
            "\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-06,\"rope_theta\":10000,"
            "\"index_topk\":%d,\"index_head_dim\":%d,\"index_n_heads\":%d,\"bos_token_id\":0,"
            "\"eos_token_id\":1",
            m->vocab, m->hidden, m->intermediate, m->moe_intermediate, m->layers, m->draft,
            m->heads, m->shared, m->experts, m->kv_lora, m->q_lora, m->rope, m->v, m->nope,
            m->groups, m->topk_groups, m->per_token, m->dense_layers,
            m->not_normed ? "false" : "true", m->max_positions, m->index_topk, m->index_dim,
            m->index_heads);
    if (m->indexer_interleaved)
        fprintf(f, ",\"indexer_rope_interleave\":true");
    if (m->tied == 1)
        fprintf(f, ",\"tie_word_embeddings\":true");
    if (m->yarn)
        fprintf(f, ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"beta_fast\":32,"
                   "\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":1.0,"
                   "\"original_max_position_embeddings\":256}");
    if (m->fp8)
        fprintf(f,
                ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
                "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]%s}",
                m->plain_scales ? "" : ",\"scale_fmt\":\"ue8m0\"");
    fprintf(f, "}\n");
    fclose(f);
}

static void write_tensors(const maker *k, const char *dir)
{
    char path[512], name[64];
    td_err err;
    int n_shards = k->m->shards;
    if (n_shards <= 1) {
        snprintf(path, sizeof(path), "%s/model.safetensors", dir);
        if (td_safetensors_write(path, k->tensors, k->n, &err) != TD_OK)
            abort();
        return;
    }
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);
    FILE *f = need(fopen(path, "w"));
    fprintf(f, "{\"metadata\":{},\"weight_map\":{");
    for (int s = 0; s < n_shards; s++) {
        size_t lo = k->n * (size_t)s / (size_t)n_shards,
               hi = k->n * (size_t)(s + 1) / (size_t)n_shards;
        snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", s + 1, n_shards);
        for (size_t i = lo; i < hi; i++)
            fprintf(f, "%s\"%s\":\"%s\"", i == 0 ? "" : ",", k->tensors[i].name, name);
        snprintf(path, sizeof(path), "%s/%s", dir, name);
        if (td_safetensors_write(path, k->tensors + lo, hi - lo, &err) != TD_OK)
            abort();
    }
    fprintf(f, "}}\n");
    fclose(f);
}

void td_make_model(const char *dir, const td_made_model *m)
{
    maker *k = need(calloc(1, sizeof(*k)));
    k->m = m;
    k->seed = m->seed * 77777u + 12345u;
    add_matrix(k, "model.embed_tokens.weight", m->vocab, m->hidden, 0);
    for (int i = 0; i < m->layers; i++)
        add_layer(k, i, i >= m->dense_layers);
    if (m->draft)
        add_draft(k);
    add_norm(k, "model.", "norm.weight", m->hidden);
    if (m->tied != 1)
        add_wide(k, "", "lm_head.weight", m->vocab, m->hidden);
    if (m->tied == 2)
        memcpy((unsigned char *)k->tensors[k->n - 1].data, k->tensors[0].data,
               k->tensors[0].n_bytes);
    if (m->draft && m->draft_copies)
        add_draft_copies(k);
    write_config(dir, m);
    write_tensors(k, dir);
    for (size_t i = 0; i < k->n; i++) {
        free((char *)k->tensors[i].name);
        free((unsigned char *)k->tensors[i].data);
    }
    free(k);
}
