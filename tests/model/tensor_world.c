#include "tests/model/tensor_world.h"

#include "tests/common/base/td_hard.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(td_status st, const td_err *err)
{
    if (st == TD_OK)
        return;
    fprintf(stderr, "%s\n", err->text);
    abort();
}

static void must_be(int claim, const char *what)
{
    if (claim)
        return;
    fprintf(stderr, "not true: %s\n", what);
    abort();
}

void td_tensor_world_open(td_tensor_world *w, const char *dir, td_backend_kind backend, int precise,
                          uint32_t n_ranks)
{
    td_checkpoint *ckpt = NULL;
    td_err err = {0};
    const uint32_t n_pages = TD_TENSOR_MAX_SEQS * TD_TENSOR_PAGES_EACH;
    td_harness_options o = {.precise = precise,
                            .kv = precise ? TD_KV_F32 : TD_KV_FP8,
                            .n_ranks = 1,
                            .max_tokens = 300,
                            .max_seqs = 1,
                            .n_pages = n_pages,
                            .max_context = 512,
                            .backend = backend};
    memset(w, 0, sizeof(*w));
    td_harness_open(&w->h, dir, &o);
    must(td_device_alloc(w->h.ranks[0].device, td_model_hidden_bytes(&w->h.config, precise),
                         &w->state, &err),
         &err);
    must(td_checkpoint_open(dir, &ckpt, &err), &err);
    td_rank_options ro = {.ckpt = ckpt,
                          .config = &w->h.config,
                          .layout = &w->h.layout,
                          .precise = precise,
                          .tensor = 1,
                          .n_ranks = n_ranks,
                          .n_threads = 1,
                          .spin_us = 20,
                          .n_pages = n_pages,
                          .backend = backend,
                          .ranks_per_gpu = td_harness_ranks_per_gpu(n_ranks)};
    w->n_ranks = n_ranks;
    must(td_rank_group(&ro, TD_COMM_PEER, 60000, &w->group, &err), &err);
    for (ro.rank = 0; ro.rank < n_ranks; ro.rank++)
        must(td_rank_open(&w->ranks[ro.rank], &ro, &err), &err);
    td_checkpoint_close(ckpt);
}

static void free_states(td_tensor_world *w, td_tensor_request *r)
{
    for (uint32_t rank = 0; rank < w->n_ranks; rank++)
        td_device_free(w->ranks[rank].device, r->hidden[rank]);
    memset(r->hidden, 0, sizeof(r->hidden));
}

void td_tensor_world_close(td_tensor_world *w)
{
    for (int i = 0; i < TD_TENSOR_MAX_SEQS; i++)
        free_states(w, &w->r[i]);
    td_device_free(w->h.ranks[0].device, w->state);
    for (uint32_t r = 0; r < w->n_ranks; r++)
        td_rank_close(&w->ranks[r]);
    td_comm_group_destroy(w->group);
    td_harness_close(&w->h);
}

/* Request i: its own prompt and pages, a third greedy, the others sampled. */
static void make_up(td_tensor_world *w, td_tensor_request *r, int i)
{
    uint64_t seed = (uint64_t)i * 31 + 7;
    memset(r, 0, sizeof(*r));
    r->n_prompt = 3 + (i * 47) % 180;
    for (int k = 0; k < r->n_prompt; k++)
        r->prompt[k] = (int32_t)(td_random(&seed) % (uint64_t)w->h.config.vocab_size);
    for (int k = 0; k < TD_TENSOR_PAGES_EACH; k++)
        r->pages[k] = (uint32_t)(i * TD_TENSOR_PAGES_EACH + (k * 3) % TD_TENSOR_PAGES_EACH);
    td_sampling_init(&r->seq.sampling);
    if (i % 3 != 0) {
        r->seq.sampling.temperature = 0.8f;
        r->seq.sampling.top_p = i % 2 == 0 ? 0.9f : 1.0f;
        r->seq.sampling.top_k = i % 5;
        r->seq.sampling.seed = (uint64_t)i * 1234567;
    }
    r->seq.prompt_len = r->n_prompt;
    r->seq.pages = r->pages;
    r->seq.n_pages = TD_TENSOR_PAGES_EACH;
    r->seq.max_new_tokens = TD_TENSOR_MAX_NEW - i % 8 * 2;
}

/* The prompt through the prefill, its pages and its state to every rank. */
static void prepare(td_tensor_world *w, td_tensor_request *r, int i)
{
    const td_rank *from = &w->h.ranks[0];
    td_stream *stream = td_device_stream(from->device);
    size_t n_bytes = td_model_hidden_bytes(&w->h.config, w->h.o.precise);
    void *state = malloc(n_bytes);
    td_err err = {0};
    free_states(w, r);
    make_up(w, r, i);
    td_prefill_seq seq = {.n_tokens = r->n_prompt,
                          .tokens = r->prompt,
                          .next_token = -1,
                          .pages = r->pages,
                          .n_pages = TD_TENSOR_PAGES_EACH,
                          .sampling = &r->seq.sampling,
                          .hidden_out = w->state};
    r->seq.first_token = td_harness_prompt(&w->h, &seq, 0, NULL);
    must(td_stream_read(stream, state, w->state, n_bytes), &err);
    must(td_stream_sync(stream, &err), &err);
    for (uint32_t rank = 0; rank < w->n_ranks; rank++) {
        td_stream *to = td_device_stream(w->ranks[rank].device);
        for (int k = 0; k < TD_TENSOR_PAGES_EACH; k++)
            must(td_rank_take_page(&w->ranks[rank], from, r->pages[k]), &err);
        must(td_device_alloc(w->ranks[rank].device, n_bytes, &r->hidden[rank], &err), &err);
        must(td_stream_write(to, r->hidden[rank], state, n_bytes), &err);
        must(td_stream_sync(to, &err), &err);
    }
    free(state);
}

typedef struct { /* one rank */
    td_tensor_world *w;
    uint32_t rank, drafts;
    int first, n;
    td_decode *decode;
    pthread_t thread;
} decoder;

static void join(decoder *d, int which, uint32_t slot)
{
    td_err err = {0};
    const td_tensor_request *r = &d->w->r[d->first + which];
    td_decode_seq seq = r->seq;
    seq.hidden = r->hidden[d->rank];
    seq.max_drafts = which == 3 && d->drafts > 0 ? d->drafts - 1 : d->drafts;
    must(td_decode_join(d->decode, slot, &seq, &err), &err);
}

/* The same on every rank. */
static void *run_decoder(void *arg)
{
    decoder *d = arg;
    td_tensor_world *w = d->w;
    td_err err = {0};
    td_decode_result out[TD_TENSOR_MAX_SEQS];
    uint32_t n_out = 0;
    td_engine_config config =
        td_rank_engine(&w->ranks[d->rank], &w->h.layout, td_comm_group_rank(w->group, d->rank));
    config.max_context = 512;
    config.graphs = config.graphs && !w->enqueued;
    must(td_decode_create(&config, TD_TENSOR_MAX_SEQS, d->drafts, 0, &d->decode, &err), &err);
    for (int step = 0, joined = 0, live = 0; joined < d->n || live > 0; step++) {
        if (step % 2 == 0 && joined < d->n) {
            join(d, joined, (uint32_t)(TD_TENSOR_MAX_SEQS - 1 - joined));
            joined++;
            live++;
        }
        must(td_decode_run(d->decode, out, &n_out, &err), &err);
        for (uint32_t j = 0; j < n_out; j++) {
            td_tensor_request *r = &w->r[d->first + TD_TENSOR_MAX_SEQS - 1 - (int)out[j].slot];
            for (uint32_t t = 0; t < out[j].n_tokens; t++)
                r->tokens[d->rank][r->n_tokens[d->rank]++] = out[j].tokens[t];
            if (out[j].done) {
                td_decode_leave(d->decode, out[j].slot);
                live--;
            }
        }
    }
    return NULL;
}

void td_tensor_world_run(td_tensor_world *w, int first, int n, uint32_t drafts)
{
    decoder d[TD_TENSOR_MAX_RANKS];
    for (int i = first; i < first + n; i++)
        prepare(w, &w->r[i], i);
    for (uint32_t r = 0; r < w->n_ranks; r++) {
        d[r] = (decoder){.w = w, .rank = r, .drafts = drafts, .first = first, .n = n};
        must_be(pthread_create(&d[r].thread, NULL, run_decoder, &d[r]) == 0, "there is a thread");
    }
    for (uint32_t r = 0; r < w->n_ranks; r++)
        pthread_join(d[r].thread, NULL);
    w->n_graphs = td_decode_graphs_report(d[0].decode)->n_graphs;
    for (uint32_t r = 0; r < w->n_ranks; r++)
        must_be(td_decode_graphs_report(d[r].decode)->n_graphs == w->n_graphs,
                "all ranks record as much");
    for (uint32_t r = 0; r < w->n_ranks; r++)
        td_decode_destroy(d[r].decode);
    for (int i = first; i < first + n; i++)
        for (uint32_t r = 0; r < w->n_ranks; r++) {
            const td_tensor_request *q = &w->r[i];
            must_be(q->n_tokens[r] == q->seq.max_new_tokens, "all tokens came");
            must_be(memcmp(q->tokens[0], q->tokens[r], (size_t)q->n_tokens[r] * sizeof(int32_t)) ==
                        0,
                    "all ranks come to the same tokens");
        }
}
