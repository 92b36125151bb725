#include "tools/tandem-logits/run.h"

#include "common/base/clock.h"
#include "model/prefill_step.h"
#include "model/rank.h"
#include "tools/tandem-logits/generate.h"
#include "tools/tandem-logits/ranks.h"

#include <stdlib.h>
#include <string.h>

#define SPIN_US 50

typedef struct {
    const td_logits_options *o;
    const int32_t *ids;
    uint32_t n_ids;
    td_checkpoint *ckpt;
    td_kv_layout layout;
    uint32_t n_pages;
    uint32_t *pages; /* [n_pages] */
    td_comm_group *group;
    td_prefill_dump dump;
    td_logits_result *out;
    int32_t first_token; /* by rank 0 */
    void *hidden;        /* rank 0's device memory */
} job;

typedef struct { /* one rank and its thread; td_rank_thread first */
    td_rank_thread t;
    job *job;
    uint32_t index;
    td_rank rank;
    td_prefill *prefill;
} worker;

td_rank_options td_logits_rank_options(const td_logits_options *o, const td_checkpoint *ckpt,
                                       const td_model_config *config, const td_kv_layout *layout,
                                       uint32_t n_pages)
{
    td_rank_options ranks = {.ckpt = ckpt,
                             .config = config,
                             .layout = layout,
                             .precise = o->precise,
                             .moe = o->moe,
                             .n_ranks = o->n_ranks,
                             .spin_us = SPIN_US,
                             .n_pages = n_pages,
                             .backend = o->backend,
                             .gpu = o->gpu,
                             .ranks_per_gpu = o->ranks_per_gpu};
    td_rank_set_threads(&ranks, o->n_threads);
    return ranks;
}

td_engine_config td_logits_engine(const td_logits_options *o, const td_kv_layout *layout,
                                  uint32_t n_ids, td_rank *rank, td_comm *comm)
{
    if (o->ops != NULL)
        rank->ops = o->ops;
    td_engine_config c = td_rank_engine(rank, layout, comm);
    uint32_t need = n_ids + o->generate;
    c.max_context = need < c.max_context ? need : c.max_context;
    c.split = o->split;
    c.draft_prenorm = o->draft_prenorm;
    c.graphs = c.graphs && !o->no_graphs;
    return c;
}

static uint32_t chunk_of(const job *j)
{
    return j->o->chunk == 0 || j->o->chunk > j->n_ids ? j->n_ids : j->o->chunk;
}

/* The dump's pointers from row `at` on; lists hold [n_layers] pointers each. */
static td_prefill_dump dump_from(const job *j, uint32_t at, float **layer_out, int32_t **selected)
{
    const td_model_config *c = &j->out->config;
    td_prefill_dump d = j->dump;
    size_t row = at;
    if (d.logits != NULL)
        d.logits += row * (size_t)c->vocab_size;
    if (d.mtp_logits != NULL)
        d.mtp_logits += row * (size_t)c->vocab_size;
    if (d.hidden != NULL)
        d.hidden += row * (size_t)c->hidden_size;
    if (d.mtp_hidden != NULL)
        d.mtp_hidden += row * (size_t)c->hidden_size;
    for (int32_t i = 0; i < c->n_layers && d.layer_out != NULL; i++) {
        layer_out[i] = d.layer_out[i] + row * (size_t)c->hidden_size;
        selected[i] = d.selected[i] + row * (size_t)c->index_topk;
    }
    if (d.layer_out != NULL) {
        d.layer_out = layer_out;
        d.selected = selected;
    }
    return d;
}

static td_status run_chunks(worker *w)
{
    job *j = w->job;
    float *layer_out[TD_MODEL_MAX_LAYERS];
    int32_t *selected[TD_MODEL_MAX_LAYERS], first = -1;
    td_sampling greedy;
    td_sampling_init(&greedy);
    for (uint32_t at = 0; at < j->n_ids;) {
        uint32_t n = j->n_ids - at < chunk_of(j) ? j->n_ids - at : chunk_of(j);
        int last = at + n == j->n_ids;
        td_prefill_dump dump = dump_from(j, at, layer_out, selected);
        td_prefill_seq seq = {.start = (int32_t)at,
                              .n_tokens = (int32_t)n,
                              .tokens = j->ids + at,
                              .next_token = last ? -1 : j->ids[at + n],
                              .pages = j->pages,
                              .n_pages = j->n_pages};
        if (last && j->o->generate > 0) {
            seq.sampling = j->o->sampling != NULL ? j->o->sampling : &greedy;
            seq.hidden_out = j->hidden;
        }
        td_prefill_batch batch = {.seqs = &seq, .n_seqs = 1, .dump = &dump};
        td_status st = td_prefill_run(w->prefill, &batch, &first, &w->t.err);
        if (st < 0)
            return st;
        at += n;
    }
    if (w->index == 0)
        j->first_token = first;
    return TD_OK;
}

static td_status open_rank(worker *w)
{
    job *j = w->job;
    td_rank_options o =
        td_logits_rank_options(j->o, j->ckpt, &j->out->config, &j->layout, j->n_pages);
    o.rank = w->index;
    td_status st = td_rank_open(&w->rank, &o, &w->t.err);
    if (st < 0)
        return st;
    td_comm *comm = j->group == NULL ? NULL : td_comm_group_rank(j->group, w->index);
    td_engine_config config = td_logits_engine(j->o, &j->layout, j->n_ids, &w->rank, comm);
    st = td_prefill_create(&config, chunk_of(j), 1, &w->prefill, &w->t.err);
    if (st == TD_OK && w->index == 0)
        st = td_device_alloc(w->rank.device, td_model_hidden_bytes(&j->out->config, j->o->precise),
                             &j->hidden, &w->t.err);
    return st;
}

static void *work(void *arg)
{
    worker *w = arg;
    job *j = w->job;
    int64_t start = td_now_ns();
    w->t.st = open_rank(w);
    if (w->t.st == TD_OK && j->group != NULL) {
        w->t.st = td_comm_barrier(td_comm_group_rank(j->group, w->index));
        if (w->t.st < 0)
            td_fail(&w->t.err, w->t.st, "rank %u: another rank failed", w->index);
    }
    int64_t loaded = td_now_ns();
    if (w->t.st == TD_OK)
        w->t.st = run_chunks(w);
    if (w->t.st < 0 && j->group != NULL)
        td_comm_group_abort(j->group);
    if (w->index == 0) {
        j->out->load_s = (double)(loaded - start) / TD_NS_PER_S;
        j->out->prefill_s = (double)(td_now_ns() - loaded) / TD_NS_PER_S;
    }
    return NULL;
}

static td_status generate(const job *j, td_rank *rank, td_err *err)
{
    td_continuation c = {.o = j->o,
                         .ckpt = j->ckpt,
                         .layout = &j->layout,
                         .pages = j->pages,
                         .n_pages = j->n_pages,
                         .n_ids = j->n_ids,
                         .first_token = j->first_token,
                         .prompt = rank,
                         .hidden = j->hidden};
    return td_logits_generate(&c, j->out, err);
}

static td_status alloc_result(job *j, td_err *err)
{
    td_logits_result *out = j->out;
    const td_model_config *c = &out->config;
    size_t n = j->n_ids, v = (size_t)c->vocab_size, d = (size_t)c->hidden_size;
    size_t layers = (size_t)c->n_layers, k = (size_t)c->index_topk;
    int ok = (out->generated = calloc(j->o->generate + 1, sizeof(int32_t))) != NULL;
    if (!j->o->no_logits) {
        ok = ok && (out->logits = calloc(n * v, sizeof(float))) != NULL;
        ok = ok && (out->hidden = calloc(n * d, sizeof(float))) != NULL;
        if (out->has_draft) {
            ok = ok && (out->mtp_logits = calloc(n * v, sizeof(float))) != NULL;
            ok = ok && (out->mtp_hidden = calloc(n * d, sizeof(float))) != NULL;
        }
    }
    if (j->o->dump_layers) {
        ok = ok && (out->layer_out = calloc(layers, sizeof(*out->layer_out))) != NULL;
        ok = ok && (out->selected = calloc(layers, sizeof(*out->selected))) != NULL;
        for (size_t i = 0; i < layers && ok; i++)
            ok = (out->layer_out[i] = calloc(n * d, sizeof(float))) != NULL &&
                 (out->selected[i] = calloc(n * k, sizeof(int32_t))) != NULL;
    }
    j->dump = (td_prefill_dump){.logits = out->logits,
                                .mtp_logits = out->mtp_logits,
                                .hidden = out->hidden,
                                .mtp_hidden = out->mtp_hidden,
                                .layer_out = out->layer_out,
                                .selected = out->selected};
    return ok ? TD_OK : td_fail(err, TD_NOMEM, "no memory for the logits of %zu tokens", n);
}

static td_status check(const job *j, td_err *err)
{
    const td_logits_options *o = j->o;
    const td_model_config *c = &j->out->config;
    if (j->n_ids == 0)
        return td_fail(err, TD_INVALID, "the prompt is empty");
    if ((uint64_t)j->n_ids + o->generate > (uint64_t)c->max_positions)
        return td_fail(err, TD_INVALID, "%u tokens and %u to generate: the model's context is %d",
                       j->n_ids, o->generate, c->max_positions);
    for (uint32_t i = 0; i < j->n_ids; i++)
        if (j->ids[i] < 0 || j->ids[i] >= c->vocab_size)
            return td_fail(err, TD_INVALID, "token id %d at position %u: the vocabulary has %d",
                           j->ids[i], i, c->vocab_size);
    if (o->n_ranks < 1 || o->n_ranks > 64)
        return td_fail(err, TD_INVALID, "%u ranks: 1 to 64", o->n_ranks);
    if (o->tensor > 64)
        return td_fail(err, TD_INVALID, "%u tensor-parallel ranks: 1 to 64", o->tensor);
    if (o->chunk % TD_KV_PAGE_ROWS != 0)
        return td_fail(err, TD_INVALID, "chunk %u: not a multiple of %d", o->chunk,
                       TD_KV_PAGE_ROWS);
    if (o->drafts > 0 && !j->out->has_draft)
        return td_fail(err, TD_INVALID, "%u drafts: the checkpoint has no draft layer", o->drafts);
    if (o->drafts > TD_DECODE_MAX_DRAFTS)
        return td_fail(err, TD_INVALID, "%u drafts: at most %d", o->drafts, TD_DECODE_MAX_DRAFTS);
    return TD_OK;
}

static td_status prepare(job *j, td_err *err)
{
    const td_logits_options *o = j->o;
    td_logits_result *out = j->out;
    td_status st = td_model_config_load(o->model, &out->config, err);
    if (st < 0 || (st = td_checkpoint_open(o->model, &j->ckpt, err)) < 0)
        return st;
    out->has_draft = td_weights_has_draft(j->ckpt, &out->config);
    out->n_ids = j->n_ids;
    if ((st = check(j, err)) < 0)
        return st;
    st = td_model_kv_layout(&out->config, o->precise, o->kv, out->has_draft, &j->layout, err);
    if (st < 0 || (st = alloc_result(j, err)) < 0)
        return st;
    j->n_pages = td_decode_pages((int32_t)j->n_ids, (int32_t)o->generate, o->drafts);
    j->pages = calloc(j->n_pages, sizeof(*j->pages));
    if (j->pages == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %u pages", j->n_pages);
    for (uint32_t i = 0; i < j->n_pages; i++) /* any order will do; not the natural one */
        j->pages[i] = j->n_pages - 1 - i;
    if (o->n_ranks > 1) {
        td_rank_options all =
            td_logits_rank_options(o, j->ckpt, &out->config, &j->layout, j->n_pages);
        st = td_rank_group(&all, o->comm, TD_LOGITS_DEADLINE_MS, &j->group, err);
    }
    return st;
}

td_status td_logits_run(const td_logits_options *options, const int32_t *ids, uint32_t n_ids,
                        td_logits_result *out, td_err *err)
{
    job j = {.o = options, .ids = ids, .n_ids = n_ids, .out = out};
    worker *workers = NULL;
    memset(out, 0, sizeof(*out));
    td_status st = prepare(&j, err);
    uint32_t n = st == TD_OK ? options->n_ranks : 0;
    if (st == TD_OK && (workers = calloc(n, sizeof(*workers))) == NULL) {
        st = td_fail(err, TD_NOMEM, "no memory for %u ranks", n);
        n = 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        workers[i].job = &j;
        workers[i].index = i;
    }
    if (st == TD_OK)
        st = td_logits_run_ranks(workers, sizeof(*workers), n, work, j.group, err);
    for (uint32_t i = 0; i < n; i++)
        td_prefill_destroy(workers[i].prefill);
    if (st == TD_OK && options->generate > 0)
        st = generate(&j, &workers[0].rank, err);
    if (n > 0 && j.hidden != NULL)
        td_device_free(workers[0].rank.device, j.hidden);
    for (uint32_t i = 0; i < n; i++)
        td_rank_close(&workers[i].rank);
    free(workers);
    td_comm_group_destroy(j.group);
    td_checkpoint_close(j.ckpt);
    free(j.pages);
    return st;
}

void td_logits_free(td_logits_result *result)
{
    free(result->logits);
    free(result->mtp_logits);
    free(result->hidden);
    free(result->mtp_hidden);
    free(result->generated);
    for (int32_t i = 0; i < result->config.n_layers; i++) {
        if (result->layer_out != NULL)
            free(result->layer_out[i]);
        if (result->selected != NULL)
            free(result->selected[i]);
    }
    free(result->layer_out);
    free(result->selected);
    memset(result, 0, sizeof(*result));
}
