/* bench_cp - prefill on several context-parallel ranks against one: the time of a prompt for every
 * split of tokens and way of experts, with FP8 and bf16 KV, on a V3.2-shaped slice whose weights
 * are made as they are loaded. Every prompt runs twice, in chunks, and the second time counts: from
 * the moment when all ranks are there until the last has its KV and its token. */
#include "common/base/clock.h"
#include "common/base/conf.h"
#include "tests/bench/cuda/rank_team.h"
#include "tests/bench/cuda/slice_prompt.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_LIST 16
#define N_KV 2 /* fp8, bf16 */

typedef struct {
    char *model;
    int backend, comm;
    uint32_t gpu, threads, ranks, chunk;
    td_conf_list prompts;
} options;

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(options, name, member, type, def, min, max, help)
static const td_conf_field fields[] = {
    F("model", model, STR, "slice:layers=3,dense=1,drafts=0,vocab=4096", NULL, NULL,
      "a checkpoint folder, or a slice that is made (model/slice.h)"),
    F("backend", backend, ENUM, "cuda", "cpu|cuda", NULL, "what computes"),
    F("gpu", gpu, U32, "0", "0", "63", "the first of the visible GPUs that is used"),
    F("threads", threads, U32, "0", "0", "1024", "backend cpu: threads; 0: one per CPU"),
    F("ranks", ranks, U32, "2", "2", "64", "so many, on a GPU each, against one"),
    F("comm", comm, ENUM, "nccl", "peer|nccl", NULL, "how ranks on GPUs reach each other"),
    F("prompts", prompts, LIST, "1024,4096,16384,65536", "1", "16", "lengths, in tokens"),
    F("chunk", chunk, U32, "8192", "64", "1048576", "tokens of a step, of all ranks together"),
};
static const td_conf_spec spec = {
    .program = "bench_cp",
    .about = "times context-parallel prefill against one rank",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};

typedef struct {
    options o;
    td_model_config config;
    td_checkpoint *ckpt;
    uint32_t prompts[MAX_LIST], longest, n_pages;
    uint32_t *pages; /* [n_pages] */
    int32_t *tokens; /* [longest] */
    double alone[N_KV][MAX_LIST];
    /* what is timed now */
    const td_kv_layout *layout;
    td_cp_split split;
    int kv;
    const char *moe;
} bench;

static const char *const kv_names[N_KV] = {"fp8", "bf16"};
static const td_kv_dtype kv_dtypes[N_KV] = {TD_KV_FP8, TD_KV_BF16};

static td_status open_bench(bench *b, td_err *err)
{
    td_status st = td_model_config_load(b->o.model, &b->config, err);
    if (st == TD_OK)
        st = td_slice_numbers(&b->o.prompts, "prompts", 1, (uint32_t)b->config.max_positions,
                              b->prompts, &b->longest, err);
    if (st == TD_OK && b->o.chunk % TD_KV_PAGE_ROWS != 0)
        return td_fail(err, TD_CONFIG, "chunk %u: must be a multiple of %d", b->o.chunk,
                       TD_KV_PAGE_ROWS);
    if (st == TD_OK)
        st = td_checkpoint_open(b->o.model, &b->ckpt, err);
    if (st < 0)
        return st;
    b->n_pages = (b->longest + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    b->pages = calloc(b->n_pages, sizeof(*b->pages));
    b->tokens = calloc(b->longest, sizeof(*b->tokens));
    if (b->pages == NULL || b->tokens == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %u pages", b->n_pages);
    td_slice_pages(b->pages, b->n_pages);
    td_slice_tokens(b->tokens, b->longest, b->config.vocab_size);
    return TD_OK;
}

/* Rank 0 says how long it took. */
static td_status time_prompt(td_team_member *m, bench *b, uint32_t which, td_err *err)
{
    const uint32_t n = b->prompts[which];
    const td_slice_prompt prompt = {
        .tokens = b->tokens, .pages = b->pages, .n_pages = b->n_pages, .chunk = b->o.chunk};
    int32_t first = -1;
    td_prefill *prefill = NULL;
    td_engine_config c = td_rank_engine(&m->rank, b->layout, m->comm);
    double s = 0;
    c.max_context = b->longest;
    c.graphs = 0;
    c.split = b->split;
    td_status st = td_prefill_create(&c, n < b->o.chunk ? n : b->o.chunk, 1, &prefill, err);
    for (int round = 0; round < 2 && st == TD_OK; round++) {
        if (m->comm != NULL && (st = td_comm_barrier(m->comm)) < 0)
            st = td_fail(err, st, "another rank failed");
        int64_t start = td_now_ns();
        if (st == TD_OK)
            st = td_slice_prompt_run(prefill, &prompt, n, &first, err);
        if (st == TD_OK && m->comm != NULL && (st = td_comm_barrier(m->comm)) < 0)
            st = td_fail(err, st, "another rank failed");
        s = (double)(td_now_ns() - start) * 1e-9;
    }
    td_prefill_destroy(prefill);
    if (st < 0 || m->index > 0)
        return st;
    if (m->comm == NULL)
        b->alone[b->kv][which] = s;
    printf("%u rank%s %-11s %-5s kv %-4s %6u tokens  %9.2f ms  %7.0f tokens/s",
           m->comm ? b->o.ranks : 1, m->comm ? "s" : " ",
           m->comm ? td_cp_split_name(b->split) : "-", m->comm ? b->moe : "-", kv_names[b->kv], n,
           s * 1e3, n / s);
    if (m->comm != NULL)
        printf("  %.2fx", b->alone[b->kv][which] / s);
    printf("\n");
    fflush(stdout);
    return TD_OK;
}

static td_status work(td_team_member *m, void *arg)
{
    bench *b = arg;
    td_status st = TD_OK;
    for (uint32_t i = 0; i < b->o.prompts.n && st == TD_OK; i++)
        st = time_prompt(m, b, i, &m->err);
    return st;
}

static td_status time_ranks(bench *b, uint32_t n_ranks, td_moe_mode moe, td_err *err)
{
    td_kv_layout layout;
    td_status st = td_model_kv_layout(&b->config, 0, kv_dtypes[b->kv], 0, &layout, err);
    if (st < 0)
        return st;
    td_rank_options o = {.ckpt = b->ckpt,
                         .config = &b->config,
                         .layout = &layout,
                         .moe = moe,
                         .n_ranks = n_ranks,
                         .n_threads = b->o.threads,
                         .spin_us = 50,
                         .n_pages = b->n_pages,
                         .backend = b->o.backend == 0 ? TD_BACKEND_CPU : TD_BACKEND_CUDA,
                         .gpu = b->o.gpu};
    b->layout = &layout;
    b->moe = moe == TD_MOE_EP ? "ep" : "fused";
    return td_team_run(&o, (td_comm_form)b->o.comm, work, b, err);
}

static td_status run(bench *b, td_err *err)
{
    static const struct {
        td_cp_split split;
        td_moe_mode moe;
    } ways[] = {{TD_CP_ROUND_ROBIN, TD_MOE_FUSED},
                {TD_CP_ROUND_ROBIN, TD_MOE_EP},
                {TD_CP_IN_SEQ, TD_MOE_EP}};
    td_status st = open_bench(b, err);
    for (b->kv = 0; b->kv < N_KV && st == TD_OK; b->kv++) {
        st = time_ranks(b, 1, TD_MOE_FUSED, err);
        for (size_t i = 0; i < sizeof(ways) / sizeof(*ways) && st == TD_OK; i++) {
            b->split = ways[i].split;
            st = time_ranks(b, b->o.ranks, ways[i].moe, err);
        }
    }
    return st;
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
        fprintf(stderr, "bench_cp: %s\n", err.text);
    td_checkpoint_close(b.ckpt);
    free(b.pages);
    free(b.tokens);
    td_conf_free(&spec, &b.o);
    return st == TD_OK ? 0 : 1;
}
