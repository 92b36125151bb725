/* bench_slice - prefill and decode of a V3.2-shaped slice (model/slice.h), with weights made as
 * they are loaded: time of a prompt; time of a decode step, recorded and operation by operation,
 * and what of it is the host's own work; time of every operation beside its limit (bytes at the
 * copy rate of the same run, multiply-adds at the nominal rates of an H100 or H200 SXM: 1979
 * TFLOP/s e4m3, 989.5 bf16, 67 f32). The decoded sequences have the KV of a real prefill: each has
 * a copy, in pages of its own, of one prompt's; their first tokens differ. Weights are random, so
 * drafts are hardly ever accepted: with k drafts the time of a step is what counts. */
#include "common/base/clock.h"
#include "common/base/conf.h"
#include "model/rank.h"
#include "tests/bench/cuda/slice_prompt.h"
#include "tests/bench/cuda/slice_ranks.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LIST 16
#define N_TIMED_STEPS 3 /* with operations timed */
#define COPY_BYTES ((size_t)1 << 28)

typedef struct {
    char *model;
    int backend, comm;
    uint32_t ranks, gpu, threads, chunk, tile, context, steps;
    td_conf_list prompts, batches, drafts;
    bool operations;
} options;

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(options, name, member, type, def, min, max, help)
static const td_conf_field fields[] = {
    F("model", model, STR, "slice:layers=4,dense=1,drafts=1", NULL, NULL,
      "a checkpoint folder, or a slice that is made (model/slice.h)"),
    F("backend", backend, ENUM, "cuda", "cpu|cuda", NULL, "what computes"),
    F("gpu", gpu, U32, "0", "0", "63", "which of the visible GPUs"),
    F("threads", threads, U32, "0", "0", "1024", "backend cpu: threads; 0: one per CPU"),
    F("prompts", prompts, LIST, "4096,16384", "0", "16", "prefill: lengths of prompts, in tokens"),
    F("chunk", chunk, U32, "4096", "64", "1048576", "prefill: tokens of a step"),
    F("tile", tile, U32, "0", "0", "65536",
      "rows that attention works on at a time; 0: the engine's default"),
    F("context", context, U32, "4096", "1", "1048576", "decode: tokens before the first step"),
    F("batches", batches, LIST, "1,8,32", "0", "16", "decode: numbers of sequences"),
    F("drafts", drafts, LIST, "0,3", "0", "16", "decode: drafts of a step"),
    F("ranks", ranks, U32, "1", "1", "64",
      "also decode on so many tensor-parallel ranks, on GPUs gpu, gpu + 1, .."),
    F("comm", comm, ENUM, "peer", "peer|nccl", NULL, "how ranks on GPUs reach each other"),
    F("steps", steps, U32, "20", "1", "100000", "decode: steps that are timed"),
    F("operations", operations, BOOL, "true", NULL, NULL, "also time every operation"),
};
static const td_conf_spec spec = {
    .program = "bench_slice",
    .about = "times prefill and decode of a V3.2-shaped slice",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};

typedef struct {
    options o;
    uint32_t prompts[MAX_LIST], batches[MAX_LIST], drafts[MAX_LIST];
    uint32_t longest, max_batch, max_drafts, max_new;
    td_model_config config;
    td_checkpoint *ckpt;
    int has_draft;
    td_kv_layout layout;
    td_rank rank;
    const td_ops *timed_ops;
    double copy_rate;
    uint32_t prompt_pages, seq_pages;
    uint32_t *pages; /* [prompt_pages] of the prompts, then [max_batch, seq_pages] */
    int32_t *tokens; /* [longest] */
    void *hidden;    /* device */
    td_rank_options rank_options;
    unsigned char *kv, *state; /* for ranks: the context's pages and the state behind it, host */
    int32_t first_token;
} bench;

static td_status read_options(bench *b, td_err *err)
{
    const options *o = &b->o;
    td_status st =
        td_slice_numbers(&o->prompts, "prompts", 1, 1 << 20, b->prompts, &b->longest, err);
    if (st == TD_OK)
        st = td_slice_numbers(&o->batches, "batches", 1, 4096, b->batches, &b->max_batch, err);
    if (st == TD_OK)
        st = td_slice_numbers(&o->drafts, "drafts", 0, TD_DECODE_MAX_DRAFTS, b->drafts,
                              &b->max_drafts, err);
    if (st == TD_OK && o->chunk % TD_KV_PAGE_ROWS != 0)
        st = td_fail(err, TD_CONFIG, "chunk %u: must be a multiple of %d", o->chunk,
                     TD_KV_PAGE_ROWS);
    if (o->context > b->longest)
        b->longest = o->context;
    b->max_new = (TD_SLICE_WARM_STEPS + N_TIMED_STEPS + o->steps + 1) * (b->max_drafts + 1);
    return st;
}

/* ---- boot ---- */

static td_status measure_copy(bench *b, td_err *err)
{
    void *memory = NULL;
    td_stream *stream = td_device_stream(b->rank.device);
    td_status st = td_device_alloc(b->rank.device, 2 * COPY_BYTES, &memory, err);
    for (int i = 0; i < 5 && st == TD_OK; i++) {
        int64_t start = td_now_ns();
        for (int n = 0; n < 4 && st == TD_OK; n++)
            st = td_stream_copy(stream, memory, (char *)memory + COPY_BYTES, COPY_BYTES);
        if (st == TD_OK)
            st = td_stream_sync(stream, err);
        double rate = 8.0 * COPY_BYTES / ((double)(td_now_ns() - start) * 1e-9);
        b->copy_rate = rate > b->copy_rate ? rate : b->copy_rate;
    }
    td_device_free(b->rank.device, memory);
    return st;
}

static td_status open_bench(bench *b, td_err *err)
{
    const options *o = &b->o;
    int64_t start = td_now_ns();
    td_status st = td_model_config_load(o->model, &b->config, err);
    if (st == TD_OK)
        st = td_checkpoint_open(o->model, &b->ckpt, err);
    if (st < 0)
        return st;
    b->has_draft = td_weights_has_draft(b->ckpt, &b->config);
    if (b->max_drafts > 0 && !b->has_draft)
        return td_fail(err, TD_CONFIG, "drafts %u: the model has no draft layer", b->max_drafts);
    uint64_t need = (uint64_t)b->o.context + b->max_new + b->max_drafts;
    if (b->longest > (uint32_t)b->config.max_positions || need > (uint64_t)b->config.max_positions)
        return td_fail(err, TD_CONFIG, "the model's context is %d", b->config.max_positions);
    st = td_model_kv_layout(&b->config, 0, TD_KV_FP8, b->has_draft, &b->layout, err);
    if (st < 0)
        return st;
    b->prompt_pages = (b->longest + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    b->seq_pages = td_decode_pages((int32_t)o->context, (int32_t)b->max_new, b->max_drafts);
    uint32_t n_pages = b->prompt_pages + b->max_batch * b->seq_pages;
    b->rank_options =
        (td_rank_options){.ckpt = b->ckpt,
                          .config = &b->config,
                          .layout = &b->layout,
                          .n_ranks = 1,
                          .n_threads = o->threads,
                          .spin_us = 50,
                          .n_pages = n_pages,
                          .backend = o->backend == 0 ? TD_BACKEND_CPU : TD_BACKEND_CUDA,
                          .gpu = o->gpu};
    st = td_rank_open(&b->rank, &b->rank_options, err);
    if (st < 0)
        return st;
    double s = (double)(td_now_ns() - start) * 1e-9;
    int n_dense = 0;
    for (int32_t i = 0; i < b->config.n_layers; i++)
        n_dense += !b->config.layer_is_moe[i];
    b->pages = calloc(n_pages, sizeof(*b->pages));
    b->tokens = calloc(b->longest, sizeof(*b->tokens));
    if (b->pages == NULL || b->tokens == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %u pages", n_pages);
    td_slice_pages(b->pages, n_pages);
    td_slice_tokens(b->tokens, b->longest, b->config.vocab_size);
    st = td_device_alloc(b->rank.device, td_model_hidden_bytes(&b->config, 0), &b->hidden, err);
    if (st == TD_OK)
        st = measure_copy(b, err);
    printf("%s\n%s: %d layers (%d dense), draft layer: %s; %.2f GB of weights, %u pages of %llu "
           "bytes, up after %.1f s; copy %.0f GB/s read and written\n",
           td_device_name(b->rank.device), o->model, b->config.n_layers, n_dense,
           b->has_draft ? "yes" : "no", (double)b->rank.weights->n_bytes * 1e-9, n_pages,
           (unsigned long long)b->layout.page_stride, s, b->copy_rate * 1e-9);
    fflush(stdout);
    return st;
}

static void close_rank(bench *b)
{
    td_op_times_close();
    if (b->hidden != NULL)
        td_device_free(b->rank.device, b->hidden);
    b->hidden = NULL;
    td_rank_close(&b->rank);
}

static void close_bench(bench *b)
{
    close_rank(b);
    free(b->kv);
    free(b->state);
    td_checkpoint_close(b->ckpt);
    free(b->pages);
    free(b->tokens);
}

static td_engine_config engine(const bench *b, uint32_t max_context, int timed, int graphs)
{
    td_engine_config c = td_rank_engine(&b->rank, &b->layout, NULL);
    c.max_context = max_context;
    c.graphs = graphs;
    c.attn_tile_rows = b->o.tile;
    c.ops = timed ? b->timed_ops : c.ops;
    return c;
}

/* ---- prefill ---- */

static td_status run_prompt(bench *b, td_prefill *prefill, uint32_t n_tokens, td_err *err)
{
    const td_slice_prompt prompt = {.tokens = b->tokens,
                                    .pages = b->pages,
                                    .n_pages = b->prompt_pages,
                                    .chunk = b->o.chunk,
                                    .hidden = b->hidden};
    return td_slice_prompt_run(prefill, &prompt, n_tokens, &b->first_token, err);
}

/* Means over the rows of a prompt of n tokens. */
static td_op_phase prompt_phase(const bench *b, uint32_t n)
{
    td_op_phase p = {.copy_rate = b->o.backend == 0 ? 0 : b->copy_rate, .n_seqs = 1};
    uint32_t k = (uint32_t)b->config.index_topk;
    for (uint32_t i = 1; i <= n; i++) {
        p.mean_len += (double)i / n;
        p.mean_selected += (double)(i < k ? i : k) / n;
        p.mean_scored += i > k ? (double)i / n : 0;
    }
    return p;
}

/* A warm run, a timed one, and one with every operation timed. */
static td_status bench_prompt(bench *b, uint32_t n_tokens, td_err *err)
{
    td_prefill *prefill = NULL;
    double s = 0;
    char title[64];
    for (int timed = 0; timed <= (int)b->o.operations; timed++) {
        td_engine_config c = engine(b, b->longest, timed, 0);
        uint32_t step = n_tokens < b->o.chunk ? n_tokens : b->o.chunk;
        td_status st = td_prefill_create(&c, step, 1, &prefill, err);
        td_op_phase phase = prompt_phase(b, n_tokens);
        if (st == TD_OK && !timed) {
            st = run_prompt(b, prefill, n_tokens, err);
            int64_t start = td_now_ns();
            if (st == TD_OK)
                st = run_prompt(b, prefill, n_tokens, err);
            s = (double)(td_now_ns() - start) * 1e-9;
        } else if (st == TD_OK) {
            td_op_times_begin(&phase);
            st = run_prompt(b, prefill, n_tokens, err);
        }
        td_prefill_destroy(prefill);
        prefill = NULL;
        if (st < 0)
            return st;
        snprintf(title, sizeof(title), "a prompt of %u tokens", n_tokens);
        if (!timed)
            printf("prefill of %u tokens, %u a step: %.2f ms, %.0f tokens/s\n", n_tokens, step,
                   s * 1e3, n_tokens / s);
        else if ((st = td_op_times_report(title, 1, err)) < 0)
            return st;
        fflush(stdout);
    }
    return TD_OK;
}

/* ---- decode ---- */

static const uint32_t *pages_of(const bench *b, uint32_t seq)
{
    return b->pages + b->prompt_pages + (size_t)seq * b->seq_pages;
}

/* The prompt's KV, once in the prompt's pages, then copied to every sequence's own. */
static td_status fill_contexts(bench *b, td_err *err)
{
    td_prefill *prefill = NULL;
    uint32_t step = b->o.context < b->o.chunk ? b->o.context : b->o.chunk;
    td_engine_config c = engine(b, b->longest, 0, 0);
    td_stream *stream = td_device_stream(b->rank.device);
    uint64_t stride = b->layout.page_stride;
    td_status st = td_prefill_create(&c, step, 1, &prefill, err);
    if (st == TD_OK)
        st = run_prompt(b, prefill, b->o.context, err);
    td_prefill_destroy(prefill);
    uint32_t used = (b->o.context + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    for (uint32_t s = 0; s < b->max_batch; s++)
        for (uint32_t i = 0; i < used && st == TD_OK; i++)
            st = td_stream_copy(stream, c.kv_base + pages_of(b, s)[i] * stride,
                                c.kv_base + b->pages[i] * stride, stride);
    return st == TD_OK ? td_stream_sync(stream, err) : st;
}

enum { RECORDED, EAGER, TIMED };

/* What does not depend on the rank. */
static td_slice_decode steps_of(const bench *b)
{
    return (td_slice_decode){.engine.max_context = b->o.context + b->max_new + b->max_drafts,
                             .context = b->o.context,
                             .max_new = b->max_new,
                             .seq_pages = b->seq_pages,
                             .steps = b->o.steps,
                             .pages = pages_of(b, 0),
                             .first_token = b->first_token};
}

static td_status decode(bench *b, uint32_t batch, uint32_t drafts, int how, td_slice_decoded *out,
                        td_err *err)
{
    td_slice_decode d = steps_of(b);
    if (how == TIMED)
        d.steps = N_TIMED_STEPS;
    double len = b->o.context + TD_SLICE_WARM_STEPS + 0.5 * d.steps, k = b->config.index_topk;
    td_op_phase phase = {b->o.backend == 0 ? 0 : b->copy_rate, len, len < k ? len : k,
                         len > k ? len : 0, (int)batch};
    d.engine = engine(b, d.engine.max_context, how == TIMED, how == RECORDED);
    d.hidden = b->hidden;
    d.batch = batch;
    d.drafts = drafts;
    d.phase = how == TIMED ? &phase : NULL;
    return td_slice_decode_run(&d, out, err);
}

static td_status bench_decode(bench *b, uint32_t batch, uint32_t drafts, td_err *err)
{
    td_slice_decoded recorded = {0}, eager = {0}, timed = {0};
    char title[96];
    td_status st = TD_OK;
    snprintf(title, sizeof(title), "decode of %u with k = %u after %u tokens", batch, drafts,
             b->o.context);
    if (td_device_records(b->rank.device))
        st = decode(b, batch, drafts, RECORDED, &recorded, err);
    if (st == TD_OK)
        st = decode(b, batch, drafts, EAGER, &eager, err);
    if (st < 0)
        return st;
    td_slice_decode_print(title, &recorded, &eager);
    if (!b->o.operations)
        return TD_OK;
    st = decode(b, batch, drafts, TIMED, &timed, err);
    return st == TD_OK ? td_op_times_report(title, N_TIMED_STEPS, err) : st;
}

/* ---- ranks ---- */

static td_status keep_context(bench *b, td_err *err)
{
    td_stream *stream = td_device_stream(b->rank.device);
    const uint64_t stride = b->layout.page_stride;
    const uint32_t used = (b->o.context + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    const size_t n_state = td_model_hidden_bytes(&b->config, 0);
    b->kv = malloc(used * stride);
    b->state = malloc(n_state);
    if (b->kv == NULL || b->state == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %u pages", used);
    td_status st = td_stream_read(stream, b->state, b->hidden, n_state);
    for (uint32_t i = 0; i < used && st == TD_OK; i++)
        st = td_stream_read(stream, b->kv + i * stride,
                            b->rank.slab.base + pages_of(b, 0)[i] * stride, stride);
    return st == TD_OK ? td_stream_sync(stream, err) : st;
}

/* The one rank makes room for the ranks. */
static td_status bench_ranks(bench *b, td_err *err)
{
    td_slice_ranks r = {.options = b->rank_options,
                        .comm = (td_comm_form)b->o.comm,
                        .n_ranks = b->o.ranks,
                        .steps = steps_of(b),
                        .hidden_bytes = td_model_hidden_bytes(&b->config, 0),
                        .batches = b->batches,
                        .drafts = b->drafts,
                        .n_batches = b->o.batches.n,
                        .n_drafts = b->o.drafts.n,
                        .max_batch = b->max_batch};
    td_status st = keep_context(b, err);
    close_rank(b);
    r.kv = b->kv;
    r.hidden = b->state;
    return st == TD_OK ? td_slice_ranks_run(&r, err) : st;
}

static td_status run(bench *b, td_err *err)
{
    td_status st = read_options(b, err);
    if (st == TD_OK)
        st = open_bench(b, err);
    if (st == TD_OK)
        st = td_op_times_open(b->rank.device, b->rank.ops, &b->timed_ops, err);
    for (uint32_t i = 0; i < b->o.prompts.n && st == TD_OK; i++)
        st = bench_prompt(b, b->prompts[i], err);
    if (st == TD_OK && b->o.batches.n > 0)
        st = fill_contexts(b, err);
    for (uint32_t k = 0; k < b->o.drafts.n && st == TD_OK; k++)
        for (uint32_t i = 0; i < b->o.batches.n && st == TD_OK; i++)
            st = bench_decode(b, b->batches[i], b->drafts[k], err);
    return st == TD_OK && b->o.ranks > 1 && b->o.batches.n > 0 ? bench_ranks(b, err) : st;
}

int main(int argc, char **argv)
{
    td_err err = {0};
    bench b = {0};
    td_status st = td_conf_load(&spec, argc, argv, &b.o, &err);
    if (st == TD_EMPTY)
        return 0;
    if (st == TD_OK)
        st = run(&b, &err);
    if (st < 0)
        fprintf(stderr, "bench_slice: %s\n", err.text);
    close_bench(&b);
    td_conf_free(&spec, &b.o);
    return st == TD_OK ? 0 : 1;
}
