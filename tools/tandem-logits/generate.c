#include "tools/tandem-logits/generate.h"

#include "common/base/clock.h"
#include "tools/tandem-logits/ranks.h"

#include <stdlib.h>
#include <string.h>

typedef struct { /* one rank and its thread; td_rank_thread first */
    td_rank_thread t;
    const td_continuation *c;
    const void *state; /* host: the hidden state that the first step starts from */
    td_comm_group *group;
    uint32_t index, n;
    td_rank rank;
    td_decode *decode;    /* goes when all ranks are done: peers read its buffers */
    void *hidden;         /* device */
    td_logits_result out; /* the counts and the tokens alone */
} worker;

static td_status run_decoder(const td_continuation *c, td_rank *rank, td_comm *comm,
                             const void *hidden, td_decode **decode, td_logits_result *out,
                             td_err *err)
{
    const td_logits_options *o = c->o;
    td_decode_result step;
    uint32_t n_steps = 0;
    td_engine_config config = td_logits_engine(o, c->layout, c->n_ids, rank, comm);
    td_status st = td_decode_create(&config, 1, o->drafts, 0, decode, err);
    if (st < 0)
        return st;
    out->graphs = *td_decode_graphs_report(*decode);
    td_decode_seq seq = {.prompt_len = (int32_t)c->n_ids,
                         .first_token = c->first_token,
                         .hidden = hidden,
                         .pages = c->pages,
                         .n_pages = c->n_pages,
                         .max_new_tokens = (int32_t)o->generate - 1,
                         .max_drafts = o->drafts};
    td_sampling_init(&seq.sampling);
    if (o->sampling != NULL)
        seq.sampling = *o->sampling;
    out->generated[out->n_generated++] = c->first_token;
    st = td_decode_join(*decode, 0, &seq, err);
    int64_t start = td_now_ns();
    while (st == TD_OK && out->n_generated < o->generate) {
        st = td_decode_run(*decode, &step, &n_steps, err);
        if (st < 0)
            break;
        memcpy(out->generated + out->n_generated, step.tokens, step.n_tokens * sizeof(int32_t));
        out->n_generated += step.n_tokens;
        out->n_steps++;
        out->n_drafted += step.n_drafted;
        out->n_accepted += step.n_accepted;
    }
    out->decode_s = (double)(td_now_ns() - start) / TD_NS_PER_S;
    return st;
}

static td_rank_options rank_options(const td_continuation *c, const td_model_config *config,
                                    uint32_t index, uint32_t n)
{
    td_rank_options o = td_logits_rank_options(c->o, c->ckpt, config, c->layout, c->n_pages);
    o.moe = TD_MOE_FUSED;
    o.tensor = n > 1;
    o.rank = index;
    o.n_ranks = n;
    td_rank_set_threads(&o, c->o->n_threads);
    return o;
}

/* The prompt's pages out of the memory of rank 0 of the prefill, and its state. */
static td_status take_over(worker *w)
{
    const td_continuation *c = w->c;
    const td_model_config *config = &w->rank.weights->config;
    size_t n_bytes = td_model_hidden_bytes(config, c->o->precise);
    td_stream *stream = td_device_stream(w->rank.device);
    td_status st = td_device_alloc(w->rank.device, n_bytes, &w->hidden, &w->t.err);
    for (uint32_t i = 0; i < c->n_pages && st == TD_OK; i++)
        st = td_rank_take_page(&w->rank, c->prompt, c->pages[i]);
    if (st == TD_OK)
        st = td_stream_write(stream, w->hidden, w->state, n_bytes);
    return st == TD_OK ? td_stream_sync(stream, &w->t.err) : st;
}

static void *work(void *arg)
{
    worker *w = arg;
    td_comm *comm = w->group == NULL ? NULL : td_comm_group_rank(w->group, w->index);
    td_rank_options o = rank_options(w->c, &w->c->prompt->weights->config, w->index, w->n);
    w->t.st = td_rank_open(&w->rank, &o, &w->t.err);
    if (w->t.st == TD_OK)
        w->t.st = take_over(w);
    if (w->t.st == TD_OK && comm != NULL && (w->t.st = td_comm_barrier(comm)) < 0)
        td_fail(&w->t.err, w->t.st, "rank %u: another rank failed", w->index);
    if (w->t.st == TD_OK)
        w->t.st = run_decoder(w->c, &w->rank, comm, w->hidden, &w->decode, &w->out, &w->t.err);
    if (w->t.st < 0 && w->group != NULL)
        td_comm_group_abort(w->group);
    return NULL;
}

static td_status run_ranks(worker *workers, uint32_t n, td_err *err)
{
    td_status st = td_logits_run_ranks(workers, sizeof(*workers), n, work, workers[0].group, err);
    const td_logits_result *first = &workers[0].out;
    for (uint32_t i = 1; i < n && st == TD_OK; i++)
        if (workers[i].out.n_generated != first->n_generated ||
            memcmp(workers[i].out.generated, first->generated,
                   first->n_generated * sizeof(int32_t)) != 0)
            st = td_fail(err, TD_INTERNAL, "rank %u came to other tokens than rank 0", i);
    return st;
}

static td_status init_workers(const td_continuation *c, const void *state, worker *workers,
                              uint32_t n, td_err *err)
{
    td_comm_group *group = NULL;
    if (n > 1) {
        td_rank_options all = rank_options(c, &c->prompt->weights->config, 0, n);
        td_status st = td_rank_group(&all, c->o->comm, TD_LOGITS_DEADLINE_MS, &group, err);
        if (st < 0)
            return st;
    }
    for (uint32_t i = 0; i < n; i++) {
        workers[i] = (worker){.c = c, .state = state, .group = group, .index = i, .n = n};
        workers[i].out.generated = calloc(c->o->generate + 1, sizeof(int32_t));
        if (workers[i].out.generated == NULL)
            return td_fail(err, TD_NOMEM, "no memory for %u tokens", c->o->generate);
    }
    return TD_OK;
}

static void take_result(td_logits_result *out, const td_logits_result *from)
{
    memcpy(out->generated, from->generated, from->n_generated * sizeof(int32_t));
    out->n_generated = from->n_generated;
    out->graphs = from->graphs;
    out->n_steps = from->n_steps;
    out->n_drafted = from->n_drafted;
    out->n_accepted = from->n_accepted;
    out->decode_s = from->decode_s;
}

/* The state that the prefill's rank 0 holds, to the host; its pages are computed by then. */
static td_status fetch(const td_continuation *c, void *state, size_t n_bytes, td_err *err)
{
    td_stream *stream = td_device_stream(c->prompt->device);
    td_status st = td_stream_read(stream, state, c->hidden, n_bytes);
    return st == TD_OK ? td_stream_sync(stream, err) : st;
}

td_status td_logits_generate(const td_continuation *c, td_logits_result *out, td_err *err)
{
    uint32_t n = c->o->tensor > 0 ? c->o->tensor : 1;
    if (n == 1 && c->o->n_ranks == 1) {
        td_decode *decode = NULL;
        td_status alone = run_decoder(c, c->prompt, NULL, c->hidden, &decode, out, err);
        td_decode_destroy(decode);
        return alone;
    }
    size_t n_bytes = td_model_hidden_bytes(&out->config, c->o->precise);
    worker *workers = calloc(n, sizeof(*workers));
    void *state = malloc(n_bytes);
    td_status st = workers == NULL || state == NULL
                       ? td_fail(err, TD_NOMEM, "no memory for %u ranks", n)
                       : fetch(c, state, n_bytes, err);
    if (st == TD_OK)
        st = init_workers(c, state, workers, n, err);
    if (st == TD_OK)
        st = run_ranks(workers, n, err);
    if (st == TD_OK)
        take_result(out, &workers[0].out);
    td_comm_group *group = workers != NULL ? workers[0].group : NULL;
    for (uint32_t i = 0; workers != NULL && i < n; i++) {
        free(workers[i].out.generated);
        td_decode_destroy(workers[i].decode);
        if (workers[i].rank.device != NULL)
            td_device_free(workers[i].rank.device, workers[i].hidden);
        td_rank_close(&workers[i].rank);
    }
    td_comm_group_destroy(group);
    free(workers);
    free(state);
    return st;
}
