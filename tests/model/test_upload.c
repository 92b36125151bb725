/* Reader threads, buffers that go round, and what happens when a file is not what it was. */
#include "common/base/clock.h"
#include "model/slice.h"
#include "model/upload.h"
#include "model/weights.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/made_model.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

#include <unistd.h>

TD_TEST_MAIN

#define SMALL                                                                                      \
    "slice:layers=2,hidden=256,inter=384,moe-inter=128,experts=24,heads=2,q-lora=128,"             \
    "index-heads=4,topk=64,vocab=1000,positions=1024"

typedef struct {
    td_model_config config;
    td_checkpoint *ckpt;
    td_device *device;
} folder;

static folder open_model(const char *model)
{
    folder f;
    TD_EQ(TD_OK, td_model_config_load(model, &f.config, NULL));
    TD_EQ(TD_OK, td_checkpoint_open(model, &f.ckpt, NULL));
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &f.device, NULL));
    return f;
}

static void close_model(folder *f)
{
    td_checkpoint_close(f->ckpt);
    td_device_close(f->device);
}

static td_weights *load(const folder *f, uint32_t threads, size_t bytes, int precise)
{
    td_weights *w = NULL;
    td_err err = {0};
    td_weights_options o = {
        .n_ranks = 1, .precise = precise, .load_threads = threads, .load_buffer_bytes = bytes};
    td_status st = td_weights_load(f->ckpt, &f->config, &o, f->device, &w, &err);
    if (st < 0)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return w;
}

static void same_linear(const td_linear *a, const td_linear *b)
{
    TD_TRUE(a->N == b->N && a->K == b->K && a->dtype == b->dtype);
    TD_MEM(a->w, b->w, (size_t)a->N * (size_t)a->K * td_dtype_bytes(a->dtype));
    if (a->dtype == TD_E4M3)
        TD_MEM(a->ws, b->ws, (size_t)((a->N + 127) / 128) * (size_t)((a->K + 127) / 128) * 4);
}

static void same_weights(const td_weights *a, const td_weights *b)
{
    const td_model_config *c = &a->config;
    size_t act = td_dtype_bytes(a->act), heads = (size_t)c->n_heads;
    TD_MEM(a->embed, b->embed, (size_t)c->vocab_size * (size_t)c->hidden_size * act);
    same_linear(&a->head, &b->head);
    for (int32_t i = 0; i <= c->n_layers; i++) {
        const td_layer_weights *x = &a->layers[i], *y = &b->layers[i];
        same_linear(&x->q_b, &y->q_b);
        same_linear(&x->kv_a, &y->kv_a);
        same_linear(&x->o, &y->o);
        same_linear(&x->mlp.down, &y->mlp.down);
        TD_MEM(x->w_uk, y->w_uk, heads * 128 * 512 * act);
        TD_MEM(x->w_uv, y->w_uv, heads * 128 * 512 * act);
        if (!x->is_moe)
            continue;
        size_t n = (size_t)(c->n_experts * c->moe_intermediate_size) * (size_t)c->hidden_size;
        same_linear(&x->gate, &y->gate);
        TD_MEM(x->experts.down, y->experts.down, n * td_dtype_bytes(x->experts.dtype));
        if (x->experts.dtype == TD_E4M3)
            TD_MEM(x->experts.up_s, y->experts.up_s, (size_t)c->n_experts * 2 * 4);
    }
}

/* Small buffers: every matrix goes through several, and many pieces end in the middle of one. Large
 * ones: all of it stands in the first, but for the most pieces that one takes. */
TEST(any_number_of_readers_and_any_buffer_gives_the_same_weights)
{
    static const struct {
        uint32_t threads;
        size_t bytes;
    } ways[] = {{1, 2048}, {8, 20000}, {2, (size_t)32 << 20}};
    for (int written = TD_SANITIZED; written < 2; written++) {
        const char *dir = td_scratch_path(td_scratch_dir(), "new");
        td_slice_spec spec;
        TD_EQ(TD_OK, td_slice_parse(SMALL, &spec, NULL));
        if (written)
            TD_EQ(TD_OK, td_slice_write(&spec, dir, 1 << 20, 2, NULL));
        folder f = open_model(written ? dir : SMALL);
        for (int precise = 0; precise < 2; precise++) {
            td_weights *want = load(&f, 0, 0, precise);
            for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
                td_weights *got = load(&f, ways[i].threads, ways[i].bytes, precise);
                same_weights(want, got);
                td_weights_destroy(got);
            }
            td_weights_destroy(want);
        }
        close_model(&f);
    }
}

TEST(rows_wider_than_a_buffer_are_refused_by_name)
{
    td_weights *w = NULL;
    td_err err = {0};
    folder f = open_model(SMALL);
    td_weights_options o = {.n_ranks = 1, .load_buffer_bytes = 128};
    TD_EQ(TD_UNSUPPORTED, td_weights_load(f.ckpt, &f.config, &o, f.device, &w, &err));
    TD_TRUE(strstr(err.text, "tensor model.embed_tokens.weight: rows of 512 bytes") != NULL);
    close_model(&f);
}

/* The file shrinks after it was opened and checked: no signal, no hang, an error that says where.
 */
TEST(a_file_that_ends_early_ends_the_load_with_the_tensors_name)
{
    const char *dir = td_scratch_dir();
    td_made_model m = td_made_model_odd();
    td_weights *w = NULL;
    td_err err = {0};
    m.fp8 = 1;
    td_make_model(dir, &m);
    folder f = open_model(dir);
    const td_tensor *t = td_checkpoint_find(f.ckpt, "model.layers.1.self_attn.o_proj.weight");
    TD_EQ(0, truncate(td_scratch_path(dir, "model.safetensors"), (off_t)t->file_offset + 10));
    for (uint32_t threads = 1; threads <= 4; threads++) {
        td_weights_options o = {.n_ranks = 1, .load_threads = threads, .load_buffer_bytes = 8192};
        TD_EQ(TD_IO, td_weights_load(f.ckpt, &f.config, &o, f.device, &w, &err));
        TD_TRUE(strstr(err.text, "tensor ") != NULL);
        TD_TRUE(strstr(err.text, "the file has become shorter") != NULL);
    }
    close_model(&f);
}

static void make_places(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes, void *dst)
{
    (void)tensor;
    const uint64_t first = offset / sizeof(float);
    for (uint64_t i = 0; i < n_bytes / sizeof(float); i++)
        ((float *)dst)[i] = (float)(first + i);
}

/* A row to a batch: fewer, as many and more than are written down ahead. */
TEST(any_number_of_batches_arrives)
{
    static const int32_t rows[] = {0, 1, 255, 256, 257, 511, 512, 1000};
    static float dst[1000 * 16];
    td_device *device = NULL;
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    for (size_t k = 0; k < sizeof(rows) / sizeof(*rows); k++) {
        td_upload *upload = NULL;
        td_tensor t = {.name = "rows.weight",
                       .dtype = TD_ST_F32,
                       .n_dims = 2,
                       .shape = {rows[k], 16},
                       .n_bytes = (uint64_t)rows[k] * 64,
                       .make = make_places};
        td_upload_part part = {
            {&t, NULL, rows[k], 16}, {0, rows[k], 0, 16}, TD_F32, 0, (unsigned char *)dst};
        td_upload_options o = {.n_threads = 3, .buffer_bytes = 64};
        memset(dst, 0xff, sizeof(dst));
        TD_EQ(TD_OK, td_upload_create(device, &o, &upload, NULL));
        TD_EQ(TD_OK, td_upload_add(upload, &part, NULL));
        TD_EQ(TD_OK, td_upload_finish(upload, NULL));
        td_upload_destroy(upload);
        for (int32_t i = 0; i < rows[k] * 16; i++)
            TD_TRUE(dst[i] == (float)i);
    }
    td_device_close(device);
}

/* Rows of a tensor whose elements are their places, to where dst says. */
static td_upload_part rows_of(const td_tensor *t, int32_t lo, int32_t hi, float *dst)
{
    return (td_upload_part){{t, NULL, (int32_t)t->shape[0], (int32_t)t->shape[1]},
                            {lo, hi, 0, (int32_t)t->shape[1]},
                            TD_F32,
                            0,
                            (unsigned char *)dst};
}

/* Small parts, which go together, between large ones, which do not fit one buffer; neighbours on
 * both sides of the border of two allocations; more small parts than a batch takes. */
TEST(parts_of_any_size_arrive_where_they_belong)
{
    enum { WIDTH = 1000, ROWS = 400, SMALL_ROWS = 300 };
    td_device *device = NULL;
    td_upload *upload = NULL;
    td_tensor t = {.name = "places.weight",
                   .dtype = TD_ST_F32,
                   .n_dims = 2,
                   .shape = {ROWS + SMALL_ROWS, WIDTH},
                   .n_bytes = (uint64_t)(ROWS + SMALL_ROWS) * WIDTH * sizeof(float),
                   .make = make_places};
    float *dst = malloc(t.n_bytes);
    TD_TRUE(dst != NULL);
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    for (uint32_t threads = 1; threads <= 4; threads += 3) {
        td_upload_options o = {.n_threads = threads, .buffer_bytes = (size_t)300 << 10};
        memset(dst, 0xff, t.n_bytes);
        TD_EQ(TD_OK, td_upload_create(device, &o, &upload, NULL));
        TD_EQ(TD_OK, td_upload_allocated(upload, dst, NULL));
        TD_EQ(TD_OK, td_upload_allocated(upload, dst + 200 * WIDTH, NULL));
        for (int32_t i = 0; i < SMALL_ROWS; i++) {
            if (i % 75 == 0) { /* a quarter of the large rows, 400 KB */
                td_upload_part large = rows_of(&t, i / 75 * 100, i / 75 * 100 + 100,
                                               dst + (size_t)(i / 75) * 100 * WIDTH);
                TD_EQ(TD_OK, td_upload_add(upload, &large, NULL));
            }
            td_upload_part small =
                rows_of(&t, ROWS + i, ROWS + i + 1, dst + (size_t)(ROWS + i) * WIDTH);
            TD_EQ(TD_OK, td_upload_add(upload, &small, NULL));
        }
        TD_EQ(TD_OK, td_upload_finish(upload, NULL));
        td_upload_destroy(upload);
        for (int32_t i = 0; i < (ROWS + SMALL_ROWS) * WIDTH; i++)
            TD_TRUE(dst[i] == (float)i);
    }
    td_device_close(device);
    free(dst);
}

static void make_slowly(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes, void *dst)
{
    (void)tensor;
    (void)offset;
    td_sleep_ms(1000);
    memset(dst, 0, n_bytes);
}

TEST(a_reader_that_takes_too_long_is_not_waited_for)
{
    td_device *device = NULL;
    td_upload *upload = NULL;
    td_err err = {0};
    float dst[4];
    td_tensor t = {.name = "slow.weight",
                   .dtype = TD_ST_F32,
                   .n_dims = 1,
                   .shape = {4},
                   .n_bytes = sizeof(dst),
                   .make = make_slowly};
    td_upload_part part = {{&t, NULL, 1, 4}, {0, 1, 0, 4}, TD_F32, 0, (unsigned char *)dst};
    td_upload_options o = {.n_threads = 2, .patience_ms = 50};
    TD_EQ(TD_OK, td_device_open_cpu(1, 0, &device, NULL));
    TD_EQ(TD_OK, td_upload_create(device, &o, &upload, NULL));
    TD_EQ(TD_OK, td_upload_add(upload, &part, NULL));
    int64_t start = td_now_ns();
    TD_EQ(TD_DEADLINE, td_upload_finish(upload, &err));
    TD_TRUE(td_now_ns() - start < 900 * TD_NS_PER_MS);
    TD_TRUE(strstr(err.text, "tensor slow.weight was not read within") != NULL);
    td_upload_destroy(upload);
    td_device_close(device);
}

TEST(every_failed_allocation_of_a_slice_is_reported)
{
    td_checkpoint *ckpt = NULL;
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_checkpoint_open(SMALL, &ckpt, NULL),
                        td_checkpoint_close(ckpt));
}
