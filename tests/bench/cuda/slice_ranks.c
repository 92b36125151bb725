#include "tests/bench/cuda/slice_ranks.h"

#include "common/base/clock.h"
#include "tests/bench/cuda/rank_team.h"

#include <stdio.h>

typedef struct {
    const td_slice_ranks *c;
    int64_t start_ns;
} bench;

/* The context to every sequence's pages. */
static td_status fill(td_team_member *m, const td_slice_ranks *c, void *hidden)
{
    const td_slice_decode *d = &c->steps;
    td_stream *stream = td_device_stream(m->rank.device);
    const uint64_t stride = m->rank.slab.page_stride;
    const uint32_t used = (d->context + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    td_status st = td_stream_write(stream, hidden, c->hidden, c->hidden_bytes);
    for (uint32_t i = 0; i < used && st == TD_OK; i++) {
        unsigned char *first = m->rank.slab.base + d->pages[i] * stride;
        st = td_stream_write(stream, first, c->kv + i * stride, stride);
        for (uint32_t s = 1; s < c->max_batch && st == TD_OK; s++)
            st = td_stream_copy(stream,
                                m->rank.slab.base + d->pages[(size_t)s * d->seq_pages + i] * stride,
                                first, stride);
    }
    return st == TD_OK ? td_stream_sync(stream, &m->err) : st;
}

static td_status time_one(td_team_member *m, const td_slice_ranks *c, const void *hidden,
                          uint32_t batch, uint32_t drafts)
{
    td_slice_decoded recorded = {0}, eager = {0};
    td_slice_decode d = c->steps;
    char title[120];
    const uint32_t max_context = d.engine.max_context;
    d.engine = td_rank_engine(&m->rank, c->options.layout, m->comm);
    d.engine.max_context = max_context;
    d.hidden = hidden;
    d.batch = batch;
    d.drafts = drafts;
    td_status st = d.engine.graphs ? td_slice_decode_run(&d, &recorded, &m->err) : TD_OK;
    d.engine.graphs = 0;
    if (st == TD_OK)
        st = td_slice_decode_run(&d, &eager, &m->err);
    snprintf(title, sizeof(title), "%u ranks: decode of %u with k = %u after %u tokens", c->n_ranks,
             batch, drafts, d.context);
    if (st == TD_OK && m->index == 0)
        td_slice_decode_print(title, &recorded, &eager);
    return st;
}

static td_status work(td_team_member *m, void *arg)
{
    const bench *b = arg;
    const td_slice_ranks *c = b->c;
    void *hidden = NULL;
    td_status st = td_device_alloc(m->rank.device, c->hidden_bytes, &hidden, &m->err);
    if (st == TD_OK)
        st = fill(m, c, hidden);
    if (st == TD_OK && m->index == 0)
        printf("%u ranks: %.2f GB of weights on each, up after %.1f s\n", c->n_ranks,
               (double)m->rank.weights->n_bytes * 1e-9, (double)(td_now_ns() - b->start_ns) * 1e-9);
    for (uint32_t k = 0; k < c->n_drafts && st == TD_OK; k++)
        for (uint32_t i = 0; i < c->n_batches && st == TD_OK; i++)
            st = time_one(m, c, hidden, c->batches[i], c->drafts[k]);
    if (hidden != NULL)
        td_device_free(m->rank.device, hidden);
    return st;
}

td_status td_slice_ranks_run(const td_slice_ranks *c, td_err *err)
{
    bench b = {.c = c, .start_ns = td_now_ns()};
    td_rank_options all = c->options;
    all.n_ranks = c->n_ranks;
    all.tensor = c->n_ranks > 1;
    return td_team_run(&all, c->comm, work, &b, err);
}
