#include "model/slice.h"

#include "common/base/conf.h"
#include "kernels/shapes.h"
#include "model/config.h"
#include "model/slice_bytes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 96
#define KV_LORA 512
#define NOPE 128
#define ROPE 64
#define V_DIM 128
#define INDEX_DIM 128

struct td_slice {
    td_slice_spec spec;
    size_t n;
    td_tensor *tensors; /* [n]; NULL while they are only counted */
    td_slice_recipe *recipes;
    char (*names)[NAME_BYTES];
    uint8_t codes[256];
};

#define FIELD(key, member, def, min, max, help)                                                    \
    TD_CONF_FIELD(td_slice_spec, key, member, U32, def, min, max, help),
static const td_conf_field fields[] = {TD_SLICE_KEYS(FIELD)};
#undef FIELD
#define N_FIELDS (sizeof(fields) / sizeof(*fields))

int td_slice_is(const char *model)
{
    return strncmp(model, TD_SLICE_PREFIX, strlen(TD_SLICE_PREFIX)) == 0;
}

static int whole(const char *text, size_t n, uint64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || n > 10)
            return 0;
        *out = *out * 10 + (uint64_t)(text[i] - '0');
    }
    return n > 0;
}

/* One "key=value" of n bytes. */
static td_status set_key(td_slice_spec *spec, const char *text, size_t n, td_err *err)
{
    const char *equals = memchr(text, '=', n);
    size_t key = equals == NULL ? n : (size_t)(equals - text);
    uint64_t value = 0, min = 0, max = 0;
    for (size_t i = 0; i < N_FIELDS; i++) {
        const td_conf_field *f = &fields[i];
        if (strlen(f->name) != key || memcmp(f->name, text, key) != 0)
            continue;
        whole(f->min, strlen(f->min), &min);
        whole(f->max, strlen(f->max), &max);
        if (equals == NULL || !whole(equals + 1, n - key - 1, &value) || value < min || value > max)
            return td_fail(err, TD_CONFIG, "slice: '%.*s': %s must be %s to %s (%s)",
                           n > 64 ? 64 : (int)n, text, f->name, f->min, f->max, f->help);
        *(uint32_t *)(void *)((char *)spec + f->offset) = (uint32_t)value;
        return TD_OK;
    }
    char known[256];
    size_t at = 0;
    for (size_t i = 0; i < N_FIELDS; i++)
        at += (size_t)snprintf(known + at, sizeof(known) - at, " %s", fields[i].name);
    return td_fail(err, TD_CONFIG, "slice: '%.*s' is none of its keys:%s", n > 64 ? 64 : (int)n,
                   text, known);
}

td_status td_slice_parse(const char *text, td_slice_spec *out, td_err *err)
{
    td_slice_spec spec = {0};
    uint64_t value;
    for (size_t i = 0; i < N_FIELDS; i++) {
        whole(fields[i].def, strlen(fields[i].def), &value);
        *(uint32_t *)(void *)((char *)&spec + fields[i].offset) = (uint32_t)value;
    }
    if (td_slice_is(text))
        text += strlen(TD_SLICE_PREFIX);
    while (*text != '\0') {
        size_t n = strcspn(text, ",");
        td_status st = set_key(&spec, text, n, err);
        if (st < 0)
            return st;
        text += n + (text[n] == ',');
    }
    td_status st = td_slice_check(&spec, err);
    if (st == TD_OK)
        *out = spec;
    return st;
}

td_status td_slice_check(const td_slice_spec *spec, td_err *err)
{
    char text[TD_SLICE_MAX_CONFIG_BYTES];
    td_model_config config;
    td_err why = {0};
    if (spec->dense > spec->layers)
        return td_fail(err, TD_CONFIG, "slice: %u dense layers of %u", spec->dense, spec->layers);
    if (spec->experts % 8 != 0 || spec->q_lora % 8 != 0)
        return td_fail(err, TD_CONFIG, "slice: experts %u, q-lora %u: must be multiples of 8",
                       spec->experts, spec->q_lora);
    size_t n = td_slice_config_text(spec, text);
    td_status st = td_model_config_parse(text, n, &config, &why);
    return st == TD_OK ? TD_OK : td_fail(err, TD_CONFIG, "slice: %s", why.text);
}

size_t td_slice_config_text(const td_slice_spec *s, char text[TD_SLICE_MAX_CONFIG_BYTES])
{
    int n = snprintf(
        text, TD_SLICE_MAX_CONFIG_BYTES,
        "{\n"
        "  \"architectures\": [\"DeepseekV32ForCausalLM\"],\n"
        "  \"attention_bias\": false,\n  \"bos_token_id\": 0,\n  \"eos_token_id\": 1,\n"
        "  \"first_k_dense_replace\": %u,\n  \"hidden_act\": \"silu\",\n"
        "  \"hidden_size\": %u,\n  \"index_head_dim\": %d,\n  \"index_n_heads\": %u,\n"
        "  \"index_topk\": %u,\n  \"intermediate_size\": %u,\n  \"kv_lora_rank\": %d,\n"
        "  \"max_position_embeddings\": %u,\n  \"model_type\": \"deepseek_v32\",\n"
        "  \"moe_intermediate_size\": %u,\n  \"moe_layer_freq\": 1,\n  \"n_group\": 8,\n"
        "  \"n_routed_experts\": %u,\n  \"n_shared_experts\": 1,\n  \"norm_topk_prob\": true,\n"
        "  \"num_attention_heads\": %u,\n  \"num_experts_per_tok\": 8,\n"
        "  \"num_hidden_layers\": %u,\n  \"num_key_value_heads\": %u,\n"
        "  \"num_nextn_predict_layers\": %u,\n  \"q_lora_rank\": %u,\n"
        "  \"qk_nope_head_dim\": %d,\n  \"qk_rope_head_dim\": %d,\n"
        "  \"quantization_config\": {\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", "
        "\"quant_method\": \"fp8\", \"scale_fmt\": \"ue8m0\", \"weight_block_size\": [128, 128]},\n"
        "  \"rms_norm_eps\": 1e-06,\n"
        "  \"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": "
        "1.0, "
        "\"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": "
        "\"yarn\"},\n"
        "  \"rope_theta\": 10000,\n  \"routed_scaling_factor\": 2.5,\n"
        "  \"scoring_func\": \"sigmoid\",\n  \"tie_word_embeddings\": false,\n"
        "  \"topk_group\": 4,\n  \"topk_method\": \"noaux_tc\",\n"
        "  \"torch_dtype\": \"bfloat16\",\n  \"v_head_dim\": %d,\n  \"vocab_size\": %u\n}\n",
        s->dense, s->hidden, INDEX_DIM, s->index_heads, s->topk, s->inter, KV_LORA, s->positions,
        s->moe_inter, s->experts, s->heads, s->layers, s->heads, s->drafts, s->q_lora, NOPE, ROPE,
        V_DIM, s->vocab);
    td_assert(n > 0 && n < TD_SLICE_MAX_CONFIG_BYTES);
    return (size_t)n;
}

/* ---- the tensors; every add_*() only counts while there is no memory for them ---- */

typedef struct {
    td_st_dtype dtype;
    uint32_t rows, cols; /* cols 0: a vector */
    int random;
    float value;
    const char *twin; /* has the bytes of the tensor of this name; NULL: its own */
} plan;

static void add(td_slice *s, const char *prefix, const char *name, const plan *p)
{
    size_t i = s->n++;
    if (s->tensors == NULL)
        return;
    td_tensor *t = &s->tensors[i];
    snprintf(s->names[i], NAME_BYTES, "%s%s", prefix, name);
    s->recipes[i] =
        (td_slice_recipe){td_slice_key(s->spec.seed, p->twin != NULL ? p->twin : s->names[i]),
                          p->value, p->random, s->codes};
    *t = (td_tensor){.name = s->names[i],
                     .dtype = p->dtype,
                     .n_dims = p->cols > 0 ? 2 : 1,
                     .shape = {p->rows, p->cols},
                     .make = td_slice_make,
                     .make_arg = &s->recipes[i]};
    t->n_bytes = td_st_dtype_bytes(p->dtype) * (uint64_t)p->rows * (p->cols > 0 ? p->cols : 1);
}

static void add_vector(td_slice *s, const char *prefix, const char *name, uint32_t n, float value)
{
    add(s, prefix, name, &(plan){.dtype = TD_ST_F32, .rows = n, .value = value});
}

static void add_bf16(td_slice *s, const char *prefix, const char *name, uint32_t rows,
                     uint32_t cols)
{
    add(s, prefix, name, &(plan){TD_ST_BF16, rows, cols, 1, (float)(1 / sqrt((double)cols)), NULL});
}

static void add_fp8(td_slice *s, const char *prefix, const char *name, uint32_t rows, uint32_t cols)
{
    char scale[NAME_BYTES];
    snprintf(scale, sizeof(scale), "%s_scale_inv", name);
    add(s, prefix, name, &(plan){.dtype = TD_ST_F8_E4M3, .rows = rows, .cols = cols, .random = 1});
    add(s, prefix, scale,
        &(plan){.dtype = TD_ST_F32,
                .rows = (rows + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP,
                .cols = (cols + TD_QUANT_GROUP - 1) / TD_QUANT_GROUP,
                .value = td_slice_e4m3_scale((float)(1 / sqrt((double)cols)))});
}

static void add_mlp(td_slice *s, const char *prefix, uint32_t width)
{
    add_fp8(s, prefix, "gate_proj.weight", width, s->spec.hidden);
    add_fp8(s, prefix, "up_proj.weight", width, s->spec.hidden);
    add_fp8(s, prefix, "down_proj.weight", s->spec.hidden, width);
}

static void add_attention(td_slice *s, const char *layer)
{
    const td_slice_spec *c = &s->spec;
    char p[64];
    snprintf(p, sizeof(p), "%.40sself_attn.", layer);
    add_vector(s, layer, "input_layernorm.weight", c->hidden, 1);
    add_vector(s, layer, "post_attention_layernorm.weight", c->hidden, 1);
    add_fp8(s, p, "q_a_proj.weight", c->q_lora, c->hidden);
    add_vector(s, p, "q_a_layernorm.weight", c->q_lora, 1);
    add_fp8(s, p, "q_b_proj.weight", c->heads * (NOPE + ROPE), c->q_lora);
    add_fp8(s, p, "kv_a_proj_with_mqa.weight", KV_LORA + ROPE, c->hidden);
    add_vector(s, p, "kv_a_layernorm.weight", KV_LORA, 1);
    add_fp8(s, p, "kv_b_proj.weight", c->heads * (NOPE + V_DIM), KV_LORA);
    add_fp8(s, p, "o_proj.weight", c->hidden, c->heads * V_DIM);
    add_fp8(s, p, "indexer.wq_b.weight", c->index_heads * INDEX_DIM, c->q_lora);
    add_fp8(s, p, "indexer.wk.weight", INDEX_DIM, c->hidden);
    add_vector(s, p, "indexer.k_norm.weight", INDEX_DIM, 1);
    add_vector(s, p, "indexer.k_norm.bias", INDEX_DIM, 0);
    add_bf16(s, p, "indexer.weights_proj.weight", c->index_heads, c->hidden);
}

static void add_layer(td_slice *s, uint32_t index, int is_moe)
{
    const td_slice_spec *c = &s->spec;
    char layer[40], p[64];
    snprintf(layer, sizeof(layer), "model.layers.%u.", index);
    add_attention(s, layer);
    snprintf(p, sizeof(p), "model.layers.%u.mlp.", index);
    if (!is_moe) {
        add_mlp(s, p, c->inter);
        return;
    }
    add_bf16(s, p, "gate.weight", c->experts, c->hidden);
    add_vector(s, p, "gate.e_score_correction_bias", c->experts, 0);
    for (uint32_t e = 0; e < c->experts; e++) {
        snprintf(p, sizeof(p), "model.layers.%u.mlp.experts.%u.", index, e);
        add_mlp(s, p, c->moe_inter);
    }
    snprintf(p, sizeof(p), "model.layers.%u.mlp.shared_experts.", index);
    add_mlp(s, p, c->moe_inter);
}

/* As published, the draft layer brings copies of the embedding and the head. */
static void add_draft(td_slice *s)
{
    const td_slice_spec *c = &s->spec;
    char layer[40];
    snprintf(layer, sizeof(layer), "model.layers.%u.", c->layers);
    add_layer(s, c->layers, 1);
    add(s, layer, "embed_tokens.weight",
        &(plan){TD_ST_BF16, c->vocab, c->hidden, 1, 1, "model.embed_tokens.weight"});
    add_vector(s, layer, "enorm.weight", c->hidden, 1);
    add_vector(s, layer, "hnorm.weight", c->hidden, 1);
    add_bf16(s, layer, "eh_proj.weight", c->hidden, 2 * c->hidden);
    add_vector(s, layer, "shared_head.norm.weight", c->hidden, 1);
    add(s, layer, "shared_head.head.weight",
        &(plan){TD_ST_BF16, c->vocab, c->hidden, 1, (float)(1 / sqrt((double)c->hidden)),
                "lm_head.weight"});
}

static void add_all(td_slice *s)
{
    const td_slice_spec *c = &s->spec;
    s->n = 0;
    add(s, "", "model.embed_tokens.weight", &(plan){TD_ST_BF16, c->vocab, c->hidden, 1, 1, NULL});
    for (uint32_t i = 0; i < c->layers; i++)
        add_layer(s, i, i >= c->dense);
    add_vector(s, "", "model.norm.weight", c->hidden, 1);
    add_bf16(s, "", "lm_head.weight", c->vocab, c->hidden);
    if (c->drafts > 0)
        add_draft(s);
}

td_status td_slice_create(const td_slice_spec *spec, td_slice **out, td_err *err)
{
    td_status st = td_slice_check(spec, err);
    if (st < 0)
        return st;
    td_slice *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return td_fail(err, TD_NOMEM, "slice: no memory");
    s->spec = *spec;
    td_slice_codes(s->codes);
    add_all(s);
    size_t n = s->n;
    s->recipes = calloc(n, sizeof(*s->recipes));
    s->names = calloc(n, sizeof(*s->names));
    s->tensors = calloc(n, sizeof(*s->tensors));
    if (s->recipes == NULL || s->names == NULL || s->tensors == NULL) {
        td_slice_destroy(s);
        return td_fail(err, TD_NOMEM, "slice: no memory for %zu tensors", n);
    }
    add_all(s);
    *out = s;
    return TD_OK;
}

void td_slice_destroy(td_slice *slice)
{
    if (slice == NULL)
        return;
    free(slice->tensors);
    free(slice->recipes);
    free(slice->names);
    free(slice);
}

size_t td_slice_count(const td_slice *slice)
{
    return slice->n;
}

const td_tensor *td_slice_at(const td_slice *slice, size_t i)
{
    td_assert(i < slice->n);
    return &slice->tensors[i];
}
