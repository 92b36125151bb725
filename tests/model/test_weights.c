/* What a rank gets of a checkpoint: right numbers, right slices, and refusals that name the tensor.
 */
#include "kernels/numbers.h"
#include "model/weights.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

TD_TEST_MAIN

typedef struct {
    td_model_config config;
    td_checkpoint *ckpt;
    td_device *device;
} folder;

static folder open_made(const td_made_model *m)
{
    folder f;
    const char *dir = td_scratch_dir();
    td_make_model(dir, m);
    TD_EQ(TD_OK, td_model_config_load(dir, &f.config, NULL));
    TD_EQ(TD_OK, td_checkpoint_open(dir, &f.ckpt, NULL));
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &f.device, NULL));
    return f;
}

static void close_made(folder *f)
{
    td_checkpoint_close(f->ckpt);
    td_device_close(f->device);
}

static td_weights *load(const folder *f, td_weights_options o)
{
    td_weights *w = NULL;
    td_err err = {0};
    td_status st = td_weights_load(f->ckpt, &f->config, &o, f->device, &w, &err);
    if (st != TD_OK)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return w;
}

/* Element (row, col) of a checkpoint's matrix, dequantised. */
static float value(const folder *f, const char *name, int64_t row, int64_t col)
{
    char scale_name[256];
    const td_tensor *t = td_checkpoint_find(f->ckpt, name);
    int64_t i = row * t->shape[1] + col;
    snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", name);
    const td_tensor *s = td_checkpoint_find(f->ckpt, scale_name);
    if (s != NULL) {
        float scale;
        memcpy(&scale, s->data + (row / 128 * s->shape[1] + col / 128) * 4, 4);
        return td_e4m3_to_f32(t->data[i]) * scale;
    }
    td_bf16 b;
    memcpy(&b, t->data + i * 2, 2);
    return td_bf16_to_f32(b);
}

/* The same element of a loaded [N, K]. */
static float loaded(const void *w, const float *ws, td_dtype dtype, int64_t K, int64_t n, int64_t k)
{
    int64_t i = n * K + k;
    if (dtype == TD_F32)
        return ((const float *)w)[i];
    if (dtype == TD_BF16)
        return td_bf16_to_f32(((const td_bf16 *)w)[i]);
    return td_e4m3_to_f32(((const uint8_t *)w)[i]) * ws[n / 128 * ((K + 127) / 128) + k / 128];
}

static void same(float want, float got)
{
    TD_MEM(&want, &got, sizeof(want));
}

static void check_linear(const folder *f, const char *name, const td_linear *l, int64_t row_lo,
                         int64_t col_lo)
{
    for (int64_t n = 0; n < l->N; n += 7)
        for (int64_t k = 0; k < l->K; k += 5)
            same(value(f, name, row_lo + n, col_lo + k), loaded(l->w, l->ws, l->dtype, l->K, n, k));
}

/* One rank's slices of layer 0's dense MLP and layer 1's experts. Returns the widths it owns. */
static void check_rank(const folder *f, const td_weights *w, int block)
{
    const td_made_model m = td_made_model_odd();
    const td_layer_weights *dense = &w->layers[0], *moe = &w->layers[1];
    int32_t lo, hi;
    td_cut_width(m.intermediate, block, w->n_ranks, w->rank, &lo, &hi);
    TD_EQ(hi - lo, dense->mlp.gate.N);
    TD_EQ(hi - lo, dense->mlp.down.K);
    check_linear(f, "model.layers.0.mlp.gate_proj.weight", &dense->mlp.gate, lo, 0);
    check_linear(f, "model.layers.0.mlp.up_proj.weight", &dense->mlp.up, lo, 0);
    check_linear(f, "model.layers.0.mlp.down_proj.weight", &dense->mlp.down, 0, lo);
    td_cut_width(m.moe_intermediate, block, w->n_ranks, w->rank, &lo, &hi);
    const td_expert_weights *e = &moe->experts;
    TD_EQ(hi - lo, e->I);
    TD_EQ(0, e->expert_lo);
    TD_EQ(9, e->expert_hi);
    int64_t d = m.hidden, blocks_i = (e->I + 127) / 128, blocks_d = (d + 127) / 128;
    size_t size = td_dtype_bytes(e->dtype);
    for (int x = 0; x < 9 && e->I > 0; x++) {
        char name[128];
        size_t at = (size_t)(x * d * e->I) * size;
        int64_t s = x * blocks_i * blocks_d;
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.up_proj.weight", x);
        same(value(f, name, lo + 3, 150),
             loaded((char *)e->up + at, e->up_s == NULL ? NULL : e->up_s + s, e->dtype, d, 3, 150));
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.down_proj.weight", x);
        same(value(f, name, 199, hi - 1),
             loaded((char *)e->down + at, e->down_s == NULL ? NULL : e->down_s + s, e->dtype, e->I,
                    199, e->I - 1));
    }
    TD_EQ(w->act, w->precise ? TD_F32 : TD_BF16);
}

TEST(every_rank_gets_its_slice_of_every_width)
{
    for (int fp8 = 0; fp8 < 2; fp8++) {
        td_made_model m = td_made_model_odd();
        m.fp8 = fp8;
        folder f = open_made(&m);
        for (int precise = 0; precise < 2; precise++)
            for (int32_t p = 1; p <= 5; p++)
                for (int32_t r = 0; r < p; r++) {
                    td_weights *w =
                        load(&f, (td_weights_options){.precise = precise, .rank = r, .n_ranks = p});
                    check_rank(&f, w, fp8 && !precise ? 128 : 8);
                    TD_TRUE(w->has_draft && w->n_bytes > 0);
                    td_weights_destroy(w);
                }
        close_made(&f);
    }
}

TEST(expert_parallel_ranks_own_whole_experts_and_all_of_the_rest)
{
    td_made_model m = td_made_model_odd();
    m.fp8 = 1;
    folder f = open_made(&m);
    for (int32_t r = 0; r < 4; r++) {
        td_weights *w = load(&f, (td_weights_options){.moe = TD_MOE_EP, .rank = r, .n_ranks = 4});
        const td_expert_weights *e = &w->layers[1].experts;
        TD_EQ(r * 9 / 4, e->expert_lo);
        TD_EQ((r + 1) * 9 / 4, e->expert_hi);
        TD_EQ(m.moe_intermediate, e->I);
        TD_EQ(m.moe_intermediate, w->layers[1].mlp.gate.N);
        TD_EQ(m.intermediate, w->layers[0].mlp.gate.N);
        char name[128];
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.gate_proj.weight",
                 e->expert_lo + 1);
        size_t at = (size_t)(m.moe_intermediate * m.hidden);
        same(value(&f, name, 263, 199),
             loaded((char *)e->gate + at, e->gate_s + 3 * 2, TD_E4M3, m.hidden, 263, 199));
        td_weights_destroy(w);
    }
    close_made(&f);
}

/* The rows that travel have the experts' dtype on every rank, or the ranks disagree about sizes. */
TEST(ranks_without_an_expert_know_what_experts_look_like)
{
    for (int fp8 = 0; fp8 < 2; fp8++) {
        td_made_model m = td_made_model_odd();
        m.fp8 = fp8;
        m.experts = 3;
        m.per_token = 2;
        folder f = open_made(&m);
        for (int precise = 0; precise < 2; precise++)
            for (int32_t r = 0; r < 4; r++) {
                td_weights *w =
                    load(&f, (td_weights_options){
                                 .precise = precise, .moe = TD_MOE_EP, .rank = r, .n_ranks = 4});
                const td_expert_weights *e = &w->layers[1].experts;
                TD_EQ(r > 0, e->expert_hi - e->expert_lo);
                TD_EQ(precise ? TD_F32 : fp8 ? TD_E4M3 : TD_BF16, e->dtype);
                TD_EQ(m.moe_intermediate, e->I);
                td_weights_destroy(w);
            }
        close_made(&f);
    }
}

TEST(kv_b_is_taken_apart_and_dequantised)
{
    td_made_model m = td_made_model_odd();
    m.fp8 = 1;
    folder f = open_made(&m);
    for (int precise = 0; precise < 2; precise++) {
        td_weights *w = load(&f, (td_weights_options){.precise = precise, .n_ranks = 1});
        const char *name = "model.layers.1.self_attn.kv_b_proj.weight";
        for (int h = 0; h < m.heads; h++)
            for (int j = 0; j < m.nope + m.v; j += 3)
                for (int c = 0; c < m.kv_lora; c += 7) {
                    float want = value(&f, name, h * (m.nope + m.v) + j, c), got;
                    if (j < m.nope)
                        got = loaded(w->layers[1].w_uk, NULL, w->act, m.nope, h * m.kv_lora + c, j);
                    else
                        got = loaded(w->layers[1].w_uv, NULL, w->act, m.kv_lora,
                                     h * m.v + j - m.nope, c);
                    same(precise ? want : td_bf16_to_f32(td_f32_to_bf16(want)), got);
                }
        td_weights_destroy(w);
    }
    close_made(&f);
}

TEST(norms_are_f32_whatever_the_header_says)
{
    for (int f32 = 0; f32 < 2; f32++) {
        td_made_model m = td_made_model_odd();
        m.f32_norms = f32;
        folder f = open_made(&m);
        td_weights *w = load(&f, (td_weights_options){.n_ranks = 1});
        const td_tensor *t = td_checkpoint_find(f.ckpt, "model.norm.weight");
        TD_EQ(f32 ? TD_ST_F32 : TD_ST_BF16, t->dtype);
        for (int i = 0; i < m.hidden; i++) {
            float want;
            td_bf16 b;
            memcpy(&want, t->data + 4 * i * f32, 4);
            memcpy(&b, t->data + 2 * i, 2);
            same(f32 ? want : td_bf16_to_f32(b), w->final_norm[i]);
        }
        td_weights_destroy(w);
        close_made(&f);
    }
}

static void refuse(const td_made_model *m, td_weights_options o, td_status want, const char *text)
{
    td_weights *w = NULL;
    td_err err = {0};
    folder f = open_made(m);
    o.n_ranks = 1;
    td_status st = td_weights_load(f.ckpt, &f.config, &o, f.device, &w, &err);
    if (st != want || strstr(err.text, text) == NULL)
        fprintf(stderr, "'%s', not '%s'\n", err.text, text);
    TD_EQ(want, st);
    TD_TRUE(strstr(err.text, text) != NULL);
    close_made(&f);
}

TEST(missing_tensors_are_named)
{
    static const char *const names[] = {"model.embed_tokens.weight",
                                        "model.norm.weight",
                                        "lm_head.weight",
                                        "model.layers.0.self_attn.kv_b_proj.weight",
                                        "model.layers.0.self_attn.indexer.k_norm.bias",
                                        "model.layers.1.mlp.gate.e_score_correction_bias",
                                        "model.layers.1.mlp.experts.8.down_proj.weight",
                                        "model.layers.2.eh_proj.weight",
                                        "model.layers.0.self_attn.q_b_proj.weight_scale_inv"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char text[200];
        td_made_model m = td_made_model_odd();
        m.fp8 = 1;
        m.leave_out = names[i];
        snprintf(text, sizeof(text), "tensor %s is missing", names[i]);
        refuse(&m, (td_weights_options){0}, TD_CONFIG, text);
    }
}

TEST(wrong_shapes_are_named_with_what_was_found_and_expected)
{
    td_made_model m = td_made_model_odd();
    m.reshape = "model.layers.1.self_attn.o_proj.weight";
    refuse(&m, (td_weights_options){0}, TD_CONFIG,
           "tensor model.layers.1.self_attn.o_proj.weight has shape [200, 145], config.json asks "
           "for [200, 144]");
    m.reshape = "model.layers.0.input_layernorm.weight";
    refuse(&m, (td_weights_options){0}, TD_CONFIG, "has shape [201], config.json asks for [200]");
    m.fp8 = 1;
    m.reshape = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv";
    refuse(&m, (td_weights_options){0}, TD_CONFIG, "has shape [2, 3], config.json asks for [2, 2]");
}

TEST(a_draft_layer_is_optional_but_not_half_of_one)
{
    td_made_model m = td_made_model_odd();
    m.draft_copies = 1;
    folder f = open_made(&m);
    td_weights *w = load(&f, (td_weights_options){.n_ranks = 1});
    TD_TRUE(w->has_draft);
    td_weights_destroy(w);
    f.config.n_draft_layers = 0;
    w = load(&f, (td_weights_options){.n_ranks = 1});
    TD_TRUE(!w->has_draft);
    td_weights_destroy(w);
    close_made(&f);
    m.draft = 0; /* config.json says 0, the loader is told 1 */
    f = open_made(&m);
    f.config.n_draft_layers = 1;
    w = load(&f, (td_weights_options){.n_ranks = 1});
    TD_TRUE(!w->has_draft);
    td_weights_destroy(w);
    close_made(&f);
}

TEST(what_is_used_as_f32_stays_f32)
{
    td_made_model m = td_made_model_odd();
    m.f32_gates = 1;
    folder f = open_made(&m);
    td_weights *w = load(&f, (td_weights_options){.n_ranks = 1});
    const td_tensor *gate = td_checkpoint_find(f.ckpt, "model.layers.1.mlp.gate.weight");
    TD_TRUE(w->head.dtype == TD_F32 && w->layers[0].index_w.dtype == TD_F32);
    TD_EQ(TD_F32, w->layers[1].gate.dtype);
    TD_MEM(gate->data, w->layers[1].gate.w, gate->n_bytes);
    td_weights_destroy(w);
    close_made(&f);
}

TEST(e4m3_weights_need_a_quantization_config)
{
    td_weights *w = NULL;
    td_err err;
    td_made_model m = td_made_model_odd();
    m.fp8 = 1;
    folder f = open_made(&m);
    f.config.fp8 = 0;
    td_weights_options o = {.n_ranks = 1};
    TD_EQ(TD_CONFIG, td_weights_load(f.ckpt, &f.config, &o, f.device, &w, &err));
    TD_TRUE(strstr(err.text, "quantization_config") != NULL);
    close_made(&f);
}

TEST(tied_embeddings_share_their_memory)
{
    td_made_model m = td_made_model_odd();
    m.leave_out = "lm_head.weight";
    folder f = open_made(&m);
    f.config.tie_embeddings = 1;
    td_weights *w = load(&f, (td_weights_options){.n_ranks = 1});
    TD_TRUE(w->head.w == w->embed);
    td_weights_destroy(w);
    close_made(&f);
    td_weights_destroy(NULL);
}

TEST(every_failed_allocation_is_reported)
{
    td_weights *w = NULL;
    td_made_model m = td_made_model_odd();
    m.layers = 1;
    m.dense_layers = 0;
    m.draft = 0;
    m.fp8 = 1;
    folder f = open_made(&m);
    td_weights_options o = {.n_ranks = 1};
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_weights_load(f.ckpt, &f.config, &o, f.device, &w, NULL),
                        td_weights_destroy(w));
    close_made(&f);
}
