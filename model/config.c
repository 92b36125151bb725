#include "model/config.h"

#include "model/model_file.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM_MAX (1 << 20)
#define POSITIONS_MAX (1 << 24)
#define REQUIRED NAN

/* Numbers and booleans of the file's top level. */
typedef struct {
    const char *key;
    size_t offset;
    enum { INT, REAL, BOOLEAN } kind;
    double min, max, absent; /* absent: value of a missing key, REQUIRED if there is none */
} field;

#define F(key, member, kind, min, max, absent)                                                     \
    {                                                                                              \
        key, offsetof(td_model_config, member), kind, min, max, absent                             \
    }
static const field fields[] = {
    F("vocab_size", vocab_size, INT, 1, DIM_MAX, REQUIRED),
    F("hidden_size", hidden_size, INT, 8, DIM_MAX, REQUIRED),
    F("intermediate_size", intermediate_size, INT, 8, DIM_MAX, REQUIRED),
    F("moe_intermediate_size", moe_intermediate_size, INT, 8, DIM_MAX, REQUIRED),
    F("num_hidden_layers", n_layers, INT, 1, TD_MODEL_MAX_LAYERS - 1, REQUIRED),
    F("num_nextn_predict_layers", n_draft_layers, INT, 0, TD_MODEL_MAX_LAYERS, 0),
    F("num_attention_heads", n_heads, INT, 1, 4096, REQUIRED),
    F("n_routed_experts", n_experts, INT, 1, 65536, REQUIRED),
    F("n_shared_experts", n_shared_experts, INT, 0, 64, REQUIRED),
    F("num_experts_per_tok", experts_per_token, INT, 1, 1024, REQUIRED),
    F("n_group", n_group, INT, 1, 65536, REQUIRED),
    F("topk_group", topk_group, INT, 1, 65536, REQUIRED),
    F("routed_scaling_factor", routed_scaling_factor, REAL, 0, 1e6, REQUIRED),
    F("norm_topk_prob", norm_topk_prob, BOOLEAN, 0, 1, 1),
    F("kv_lora_rank", kv_lora_rank, INT, 128, 65536, REQUIRED),
    F("q_lora_rank", q_lora_rank, INT, 1, DIM_MAX, REQUIRED),
    F("qk_nope_head_dim", qk_nope_dim, INT, 1, 65536, REQUIRED),
    F("qk_rope_head_dim", qk_rope_dim, INT, 2, 65536, REQUIRED),
    F("v_head_dim", v_dim, INT, 1, 65536, REQUIRED),
    F("index_n_heads", index_n_heads, INT, 1, 4096, REQUIRED),
    F("index_head_dim", index_dim, INT, 2, 65536, REQUIRED),
    F("index_topk", index_topk, INT, 1, DIM_MAX, REQUIRED),
    F("max_position_embeddings", max_positions, INT, 1, POSITIONS_MAX, REQUIRED),
    F("rms_norm_eps", rms_norm_eps, REAL, 1e-30, 1, REQUIRED),
    F("tie_word_embeddings", tie_embeddings, BOOLEAN, 0, 1, 0),
    F("indexer_rope_interleave", rope.indexer_interleaved, BOOLEAN, 0, 1, 0),
};
#undef F

/* Keys that must have this value, if they stand there: everything else computes something that we
 * do not. */
static const struct {
    const char *key, *text; /* text NULL: the number or boolean below */
    double value;
} constants[] = {
    {"hidden_act", "silu", 0},   {"scoring_func", "sigmoid", 0}, {"topk_method", "noaux_tc", 0},
    {"moe_layer_freq", NULL, 1}, {"attention_bias", NULL, 0},    {"use_mla", NULL, 1},
};

/* Keys read by code of their own. */
static const char *const others[] = {
    "model_type", "num_key_value_heads", "first_k_dense_replace", "mlp_layer_types",
    "rope_theta", "rope_scaling",        "rope_parameters",       "quantization_config"};

static int is_known(const char *key)
{
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
        if (strcmp(fields[i].key, key) == 0)
            return 1;
    for (size_t i = 0; i < sizeof(constants) / sizeof(*constants); i++)
        if (strcmp(constants[i].key, key) == 0)
            return 1;
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
        if (strcmp(others[i], key) == 0)
            return 1;
    return 0;
}

/* NULL and JSON's null are both "not there"; so is everything in what is not an object, whose items
 * have no names. */
static const cJSON *get(const cJSON *object, const char *key)
{
    const cJSON *item;
    if (!cJSON_IsObject(object))
        return NULL;
    cJSON_ArrayForEach(item, object) if (strcmp(item->string, key) == 0) return cJSON_IsNull(item)
        ? NULL
        : item;
    return NULL;
}

static int is_text(const cJSON *item, const char *text)
{
    return cJSON_IsString(item) && strcmp(item->valuestring, text) == 0;
}

static td_status check_keys(const cJSON *root, td_err *err)
{
    const cJSON *item, *later;
    cJSON_ArrayForEach(item, root)
    {
        if (strncmp(item->string, "dspark_", 7) == 0)
            return td_fail(err, TD_UNSUPPORTED, "%.64s: DSpark draft layers are not supported",
                           item->string);
        if (!is_known(item->string))
            continue;
        for (later = item->next; later != NULL; later = later->next)
            if (strcmp(item->string, later->string) == 0)
                return td_fail(err, TD_CONFIG, "%s stands twice", item->string);
    }
    item = get(root, "model_type");
    if (!cJSON_IsString(item))
        return td_fail(err, TD_CONFIG, "model_type: missing or not a string");
    if (!is_text(item, "deepseek_v32"))
        return td_fail(err, TD_UNSUPPORTED, "model_type '%.64s': only deepseek_v32 is supported",
                       item->valuestring);
    return TD_OK;
}

static td_status read_real(const cJSON *item, const char *key, double min, double max, double *out,
                           td_err *err)
{
    if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble))
        return td_fail(err, TD_CONFIG, "%s: missing or not a number", key);
    if (item->valuedouble < min || item->valuedouble > max)
        return td_fail(err, TD_CONFIG, "%s %g: must be %g to %g", key, item->valuedouble, min, max);
    *out = item->valuedouble;
    return TD_OK;
}

static td_status read_int(const cJSON *item, const char *key, double min, double max, int32_t *out,
                          td_err *err)
{
    double v = 0;
    td_status st = read_real(item, key, min, max, &v, err);
    if (st < 0)
        return st;
    if (v != floor(v))
        return td_fail(err, TD_CONFIG, "%s %g: must be a whole number", key, v);
    *out = (int32_t)v;
    return TD_OK;
}

static td_status read_fields(const cJSON *root, td_model_config *c, td_err *err)
{
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
        const field *f = &fields[i];
        void *member = (char *)c + f->offset;
        const cJSON *item = get(root, f->key);
        td_status st = TD_OK;
        if (item == NULL && isnan(f->absent))
            return td_fail(err, TD_CONFIG, "%s: missing", f->key);
        if (f->kind == REAL && item == NULL)
            *(double *)member = f->absent;
        else if (item == NULL)
            *(int32_t *)member = (int32_t)f->absent;
        else if (f->kind == REAL)
            st = read_real(item, f->key, f->min, f->max, member, err);
        else if (f->kind == INT)
            st = read_int(item, f->key, f->min, f->max, member, err);
        else if (cJSON_IsBool(item))
            *(int *)member = cJSON_IsTrue(item);
        else
            st = td_fail(err, TD_CONFIG, "%s: not true or false", f->key);
        if (st < 0)
            return st;
    }
    return TD_OK;
}

static td_status check_constants(const cJSON *root, td_err *err)
{
    for (size_t i = 0; i < sizeof(constants) / sizeof(*constants); i++) {
        const cJSON *item = get(root, constants[i].key);
        const char *text = constants[i].text;
        if (item == NULL)
            continue;
        if (text != NULL && !is_text(item, text))
            return td_fail(err, TD_UNSUPPORTED, "%s '%.64s': only '%s' is supported",
                           constants[i].key, cJSON_IsString(item) ? item->valuestring : "?", text);
        if (text == NULL && !cJSON_IsBool(item) && !cJSON_IsNumber(item))
            return td_fail(err, TD_CONFIG, "%s: neither a number nor true or false",
                           constants[i].key);
        double v = cJSON_IsBool(item) ? cJSON_IsTrue(item) : item->valuedouble;
        if (text == NULL && v != constants[i].value)
            return td_fail(err, TD_UNSUPPORTED, "%s: only %g is supported", constants[i].key,
                           constants[i].value);
    }
    return TD_OK;
}

/* Theta may stand in three places; where it does, it must be the same. *theta is 0 before the
 * first. */
static td_status read_theta(const cJSON *object, double *theta, td_err *err)
{
    const cJSON *item = get(object, "rope_theta");
    double v = 0;
    if (item == NULL)
        return TD_OK;
    td_status st = read_real(item, "rope_theta", 1.000001, 1e12, &v, err);
    if (st < 0)
        return st;
    if (*theta > 0 && *theta != v)
        return td_fail(err, TD_CONFIG, "rope_theta %g: elsewhere %g", v, *theta);
    *theta = v;
    return TD_OK;
}

static td_status read_yarn(const cJSON *o, td_rope_config *r, td_err *err)
{
    double mscale = 1.0, original = 0;
    r->yarn = 1;
    r->beta_fast = 32;
    r->beta_slow = 1;
    r->mscale_all_dim = 1;
    const struct {
        const char *key;
        double min, max, *out;
        int required;
    } reals[] = {{"factor", 1, 1e6, &r->factor, 1},
                 {"beta_fast", 1e-6, 1e6, &r->beta_fast, 0},
                 {"beta_slow", 1e-6, 1e6, &r->beta_slow, 0},
                 {"mscale", 0, 1e3, &mscale, 0},
                 {"mscale_all_dim", 0, 1e3, &r->mscale_all_dim, 0},
                 {"original_max_position_embeddings", 1, POSITIONS_MAX, &original, 1}};
    for (size_t i = 0; i < sizeof(reals) / sizeof(*reals); i++) {
        const cJSON *item = get(o, reals[i].key);
        if (item == NULL && !reals[i].required)
            continue;
        td_status st = read_real(item, reals[i].key, reals[i].min, reals[i].max, reals[i].out, err);
        if (st < 0)
            return st;
    }
    if (mscale != r->mscale_all_dim)
        return td_fail(err, TD_UNSUPPORTED, "mscale %g differs from mscale_all_dim %g", mscale,
                       r->mscale_all_dim);
    if (original != floor(original))
        return td_fail(err, TD_CONFIG, "original_max_position_embeddings %g", original);
    r->original_max_positions = (int32_t)original;
    return TD_OK;
}

/* Whatever stands in the object is understood: other keys mean another rotation. */
static td_status check_rope_keys(const cJSON *o, int has_type, td_err *err)
{
    static const char *const plain[] = {"type", "rope_type", "rope_theta"};
    static const char *const yarn[] = {"factor",         "beta_fast",
                                       "beta_slow",      "mscale",
                                       "mscale_all_dim", "original_max_position_embeddings"};
    const cJSON *item;
    cJSON_ArrayForEach(item, o)
    {
        int is_plain = 0, is_yarn = 0;
        for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++)
            is_plain |= strcmp(item->string, plain[i]) == 0;
        for (size_t i = 0; i < sizeof(yarn) / sizeof(*yarn); i++)
            is_yarn |= strcmp(item->string, yarn[i]) == 0;
        if (is_plain || (is_yarn && has_type) || cJSON_IsNull(item))
            continue;
        if (is_yarn)
            return td_fail(err, TD_CONFIG, "%s without a type", item->string);
        return td_fail(err, TD_UNSUPPORTED, "unknown key '%.64s'", item->string);
    }
    return TD_OK;
}

/* rope_scaling, or the newer rope_parameters. */
static td_status read_rope_object(const cJSON *o, td_rope_config *r, td_err *err)
{
    const cJSON *type = get(o, "rope_type"), *old = get(o, "type");
    td_status st;
    if (!cJSON_IsObject(o))
        return td_fail(err, TD_CONFIG, "not an object");
    if (type != NULL && old != NULL && !cJSON_Compare(type, old, 1))
        return td_fail(err, TD_CONFIG, "type and rope_type differ");
    if (type == NULL)
        type = old;
    if ((st = check_rope_keys(o, type != NULL, err)) < 0 ||
        (st = read_theta(o, &r->theta, err)) < 0)
        return st;
    if (type == NULL || is_text(type, "default"))
        return TD_OK;
    if (!is_text(type, "yarn"))
        return td_fail(err, TD_UNSUPPORTED, "type '%.32s': only yarn and default",
                       cJSON_IsString(type) ? type->valuestring : "?");
    return read_yarn(o, r, err);
}

static int same_rope(const td_rope_config *a, const td_rope_config *b)
{
    return a->yarn == b->yarn && a->factor == b->factor && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->mscale_all_dim == b->mscale_all_dim &&
           a->original_max_positions == b->original_max_positions;
}

static td_status read_rope(const cJSON *root, td_rope_config *r, td_err *err)
{
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    td_rope_config first = *r;
    int n = 0;
    td_status st = read_theta(root, &r->theta, err);
    if (st < 0)
        return st;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        const cJSON *o = get(root, names[i]);
        td_rope_config c = {.theta = r->theta, .indexer_interleaved = r->indexer_interleaved};
        if (o == NULL)
            continue;
        if (read_rope_object(o, &c, err) < 0)
            return td_fail_prefix(err, "%s", names[i]);
        if (n++ > 0 && !same_rope(&first, &c))
            return td_fail(err, TD_CONFIG, "rope_scaling and rope_parameters differ");
        *r = first = c;
    }
    return r->theta > 0 ? TD_OK : td_fail(err, TD_CONFIG, "rope_theta: missing");
}

static td_status read_quantisation(const cJSON *root, td_model_config *c, td_err *err)
{
    const cJSON *q = get(root, "quantization_config"), *block, *format;
    if (q == NULL)
        return TD_OK;
    if (!cJSON_IsObject(q))
        return td_fail(err, TD_CONFIG, "quantization_config: not an object");
    if (!is_text(get(q, "quant_method"), "fp8"))
        return td_fail(err, TD_UNSUPPORTED, "quantization_config: quant_method is not 'fp8'");
    if (get(q, "fmt") != NULL && !is_text(get(q, "fmt"), "e4m3"))
        return td_fail(err, TD_UNSUPPORTED, "quantization_config: fmt is not 'e4m3'");
    if (get(q, "activation_scheme") != NULL && !is_text(get(q, "activation_scheme"), "dynamic"))
        return td_fail(err, TD_UNSUPPORTED,
                       "quantization_config: activation_scheme is not 'dynamic'");
    block = get(q, "weight_block_size");
    if (!cJSON_IsArray(block) || cJSON_GetArraySize(block) != 2 || !cJSON_IsNumber(block->child) ||
        block->child->valuedouble != 128 || !cJSON_IsNumber(block->child->next) ||
        block->child->next->valuedouble != 128)
        return td_fail(err, TD_UNSUPPORTED,
                       "quantization_config: weight_block_size is not [128, 128]");
    format = get(q, "scale_fmt");
    if (format != NULL && !is_text(format, "ue8m0") && !is_text(format, "float"))
        return td_fail(err, TD_UNSUPPORTED, "quantization_config: scale_fmt is not 'ue8m0'");
    c->fp8 = 1;
    c->ue8m0 = is_text(format, "ue8m0");
    return TD_OK;
}

/* Which layers have experts: mlp_layer_types, or all from first_k_dense_replace on. */
static td_status read_layer_kinds(const cJSON *root, td_model_config *c, td_err *err)
{
    const cJSON *types = get(root, "mlp_layer_types"), *dense = get(root, "first_k_dense_replace"),
                *item;
    int32_t n_dense = 0, n = 0;
    td_status st;
    if (c->n_draft_layers > 1)
        return td_fail(err, TD_UNSUPPORTED,
                       "num_nextn_predict_layers %d: at most one draft layer is supported",
                       c->n_draft_layers);
    if (types == NULL) {
        st = read_int(dense, "first_k_dense_replace", 0, c->n_layers, &n_dense, err);
        if (st < 0)
            return st;
        for (int32_t i = 0; i < c->n_layers; i++)
            c->layer_is_moe[i] = i >= n_dense;
    } else {
        if (!cJSON_IsArray(types) || cJSON_GetArraySize(types) != c->n_layers)
            return td_fail(err, TD_CONFIG, "mlp_layer_types: not an array of %d", c->n_layers);
        cJSON_ArrayForEach(item, types)
        {
            if (!is_text(item, "dense") && !is_text(item, "sparse"))
                return td_fail(err, TD_CONFIG, "mlp_layer_types[%d]: neither dense nor sparse", n);
            c->layer_is_moe[n++] = is_text(item, "sparse");
        }
    }
    for (int32_t i = 0; i < c->n_draft_layers; i++)
        c->layer_is_moe[c->n_layers + i] = 1;
    return TD_OK;
}

static td_status check_shapes(const cJSON *root, const td_model_config *c, td_err *err)
{
    int32_t kv_heads = c->n_heads;
    td_status st = TD_OK;
    if (get(root, "num_key_value_heads") != NULL)
        st = read_int(get(root, "num_key_value_heads"), "num_key_value_heads", 1, 4096, &kv_heads,
                      err);
    if (st < 0)
        return st;
    if (kv_heads != c->n_heads)
        return td_fail(err, TD_UNSUPPORTED, "num_key_value_heads %d: must equal the %d heads",
                       kv_heads, c->n_heads);
    if (c->n_experts % c->n_group != 0 || c->topk_group > c->n_group)
        return td_fail(err, TD_CONFIG, "%d experts in %d groups, %d of them taken: do not fit",
                       c->n_experts, c->n_group, c->topk_group);
    if (c->experts_per_token > c->n_experts / c->n_group * c->topk_group)
        return td_fail(err, TD_CONFIG, "num_experts_per_tok %d: the chosen groups have %d experts",
                       c->experts_per_token, c->n_experts / c->n_group * c->topk_group);
    if (c->kv_lora_rank % 128 != 0)
        return td_fail(err, TD_UNSUPPORTED, "kv_lora_rank %d: must be a multiple of 128",
                       c->kv_lora_rank);
    if (c->qk_rope_dim % 2 != 0 || c->qk_rope_dim > c->index_dim)
        return td_fail(err, TD_UNSUPPORTED,
                       "qk_rope_head_dim %d: must be even and at most index_head_dim %d",
                       c->qk_rope_dim, c->index_dim);
    if (c->hidden_size % 8 != 0 || c->moe_intermediate_size % 8 != 0 ||
        c->intermediate_size % 8 != 0)
        return td_fail(err, TD_UNSUPPORTED, "hidden and intermediate sizes must be multiples of 8");
    return TD_OK;
}

td_status td_model_config_parse(const char *json, size_t n_bytes, td_model_config *out, td_err *err)
{
    td_model_config c = {0};
    td_err local;
    const char *end = NULL;
    if (err == NULL)
        err = &local; /* texts get prefixes on their way up */
    cJSON *root = cJSON_ParseWithLengthOpts(json, n_bytes, &end, 0);
    td_status st = TD_OK;
    if (root == NULL || !cJSON_IsObject(root))
        st = td_fail(err, TD_CONFIG, "not a JSON object (near byte %zu)",
                     end == NULL ? (size_t)0 : (size_t)(end - json));
    if (st == TD_OK)
        st = check_keys(root, err);
    if (st == TD_OK)
        st = check_constants(root, err);
    if (st == TD_OK)
        st = read_fields(root, &c, err);
    if (st == TD_OK)
        st = read_rope(root, &c.rope, err);
    if (st == TD_OK)
        st = read_quantisation(root, &c, err);
    if (st == TD_OK)
        st = read_layer_kinds(root, &c, err);
    if (st == TD_OK)
        st = check_shapes(root, &c, err);
    cJSON_Delete(root);
    if (st == TD_OK)
        *out = c;
    return st;
}

td_status td_model_config_load(const char *dir, td_model_config *out, td_err *err)
{
    char *text = NULL;
    size_t n_bytes = 0;
    td_err why = {0};
    td_status st =
        td_model_file_read(dir, "config.json", TD_MODEL_CONFIG_MAX_BYTES, &text, &n_bytes, err);
    if (st < 0)
        return st;
    st = td_model_config_parse(text, n_bytes, out, &why);
    free(text);
    return st == TD_OK ? TD_OK : td_fail(err, st, "%s/config.json: %s", dir, why.text);
}

td_status td_model_kv_layout(const td_model_config *config, int precise, td_kv_dtype dtype,
                             int with_draft, td_kv_layout *out, td_err *err)
{
    if (precise != (dtype == TD_KV_F32))
        return td_fail(err, TD_CONFIG,
                       "%s mode with an %s cache: precise mode takes f32, quantised "
                       "mode fp8 or bf16",
                       precise ? "precise" : "quantised", td_kv_dtype_name(dtype));
    return td_kv_layout_init(out, dtype, (uint32_t)config->n_layers, with_draft,
                             (uint32_t)config->kv_lora_rank, (uint32_t)config->qk_rope_dim,
                             (uint32_t)config->index_dim, err);
}

size_t td_model_hidden_bytes(const td_model_config *config, int precise)
{
    return (size_t)config->hidden_size * (precise ? 4 : 2);
}
