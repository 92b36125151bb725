#include "tests/bench/cuda/slice_ranks.h"

#include "common/base/clock.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define DEADLINE_MS 60000
#define MAX_RANKS 64

typedef struct { /* a rank and its thread */
    const td_slice_ranks *c;
    td_comm_group *group;
    uint32_t index;
    td_rank rank;
    void *hidden; /* device */
    td_status st;
    td_err err;
    pthread_t thread;
} worker;

static td_status open_rank(worker *w)
{
    td_rank_options o = w->c->options;
    o.tensor = w->c->n_ranks > 1;
    o.rank = w->index;
    o.n_ranks = w->c->n_ranks;
    o.n_threads = td_rank_threads(o.n_threads, o.n_ranks);
    td_status st = td_rank_open(&w->rank, &o, &w->err);
    return st == TD_OK ? td_device_alloc(w->rank.device, w->c->hidden_bytes, &w->hidden, &w->err)
                       : st;
}

/* The context to every sequence's pages. */
static td_status fill(worker *w)
{
    const td_slice_decode *d = &w->c->steps;
    td_stream *stream = td_device_stream(w->rank.device);
    const uint64_t stride = w->rank.slab.page_stride;
    const uint32_t used = (d->context + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    td_status st = td_stream_write(stream, w->hidden, w->c->hidden, w->c->hidden_bytes);
    for (uint32_t i = 0; i < used && st == TD_OK; i++) {
        unsigned char *first = w->rank.slab.base + d->pages[i] * stride;
        st = td_stream_write(stream, first, w->c->kv + i * stride, stride);
        for (uint32_t s = 1; s < w->c->max_batch && st == TD_OK; s++)
            st = td_stream_copy(stream,
                                w->rank.slab.base + d->pages[(size_t)s * d->seq_pages + i] * stride,
                                first, stride);
    }
    return st == TD_OK ? td_stream_sync(stream, &w->err) : st;
}

static td_status time_one(worker *w, uint32_t batch, uint32_t drafts)
{
    td_comm *comm = td_comm_group_rank(w->group, w->index);
    td_slice_decoded recorded = {0}, eager = {0};
    td_slice_decode d = w->c->steps;
    char title[120];
    const uint32_t max_context = d.engine.max_context;
    d.engine = td_rank_engine(&w->rank, w->c->options.layout, comm);
    d.engine.max_context = max_context;
    d.hidden = w->hidden;
    d.batch = batch;
    d.drafts = drafts;
    td_status st = d.engine.graphs ? td_slice_decode_run(&d, &recorded, &w->err) : TD_OK;
    d.engine.graphs = 0;
    if (st == TD_OK)
        st = td_slice_decode_run(&d, &eager, &w->err);
    snprintf(title, sizeof(title), "%u ranks: decode of %u with k = %u after %u tokens",
             w->c->n_ranks, batch, drafts, d.context);
    if (st == TD_OK && w->index == 0)
        td_slice_decode_print(title, &recorded, &eager);
    return st;
}

static void *work(void *arg)
{
    worker *w = arg;
    const int64_t start = td_now_ns();
    w->st = open_rank(w);
    if (w->st == TD_OK)
        w->st = fill(w);
    if (w->st == TD_OK && w->index == 0)
        printf("%u ranks: %.2f GB of weights on each, up after %.1f s\n", w->c->n_ranks,
               (double)w->rank.weights->n_bytes * 1e-9, (double)(td_now_ns() - start) * 1e-9);
    if (w->st == TD_OK && (w->st = td_comm_barrier(td_comm_group_rank(w->group, w->index))) < 0)
        td_fail(&w->err, w->st, "another rank failed");
    for (uint32_t k = 0; k < w->c->n_drafts && w->st == TD_OK; k++)
        for (uint32_t i = 0; i < w->c->n_batches && w->st == TD_OK; i++)
            w->st = time_one(w, w->c->batches[i], w->c->drafts[k]);
    if (w->st < 0)
        td_comm_group_abort(w->group);
    return NULL;
}

/* The rank that failed by itself, rather than one that was told. */
static td_status verdict(const worker *workers, uint32_t n, td_err *err)
{
    for (int told = 0; told < 2; told++)
        for (uint32_t i = 0; i < n; i++)
            if (workers[i].st < 0 && (told || workers[i].st != TD_CANCELLED))
                return td_fail(err, workers[i].st, "rank %u: %s", i, workers[i].err.text);
    return TD_OK;
}

td_status td_slice_ranks_run(const td_slice_ranks *c, td_err *err)
{
    static worker workers[MAX_RANKS];
    td_comm_group *group = NULL;
    td_rank_options all = c->options;
    uint32_t n_started = 0;
    all.n_ranks = c->n_ranks;
    td_status st = td_rank_group(&all, c->comm, DEADLINE_MS, &group, err);
    if (st < 0)
        return st;
    for (; n_started < c->n_ranks && st == TD_OK; n_started += st == TD_OK) {
        worker *w = &workers[n_started];
        *w = (worker){.c = c, .group = group, .index = n_started};
        if (pthread_create(&w->thread, NULL, work, w) != 0)
            st = td_fail(err, TD_NOMEM, "cannot start a thread for rank %u", n_started);
    }
    if (st < 0)
        td_comm_group_abort(group);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(workers[i].thread, NULL);
    if (st == TD_OK)
        st = verdict(workers, c->n_ranks, err);
    for (uint32_t i = 0; i < n_started; i++) {
        if (workers[i].rank.device != NULL)
            td_device_free(workers[i].rank.device, workers[i].hidden);
        td_rank_close(&workers[i].rank);
    }
    td_comm_group_destroy(group);
    return st;
}
