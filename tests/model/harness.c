#include "tests/model/harness.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEADLINE_MS 60000

static void must(td_status st, const td_err *err, const char *what)
{
    if (st == TD_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, err->text);
    abort();
}

uint32_t td_harness_ranks_per_gpu(uint32_t n_ranks)
{
    const char *said = getenv("TANDEM_TEST_GPUS");
    uint32_t n_gpus = said == NULL ? 1 : (uint32_t)strtoul(said, NULL, 10);
    return n_gpus > 1 ? (n_ranks + n_gpus - 1) / n_gpus : n_ranks;
}

td_engine_config td_harness_engine(const td_harness *h, uint32_t rank)
{
    td_comm *comm = h->group == NULL ? NULL : td_comm_group_rank(h->group, rank);
    td_engine_config c = td_rank_engine(&h->ranks[rank], &h->layout, comm);
    if (h->o.ops != NULL)
        c.ops = h->o.ops;
    if (h->o.max_context > 0)
        c.max_context = h->o.max_context;
    c.split = h->o.split;
    c.draft_prenorm = h->o.draft_prenorm;
    c.attn_tile_rows = h->o.tile;
    c.index_scratch_bytes = h->o.index_scratch_bytes;
    return c;
}

void td_harness_open(td_harness *h, const char *dir, const td_harness_options *o)
{
    td_checkpoint *ckpt = NULL;
    td_err err = {0};
    *h = (td_harness){.o = *o};
    must(td_model_config_load(dir, &h->config, &err), &err, "config");
    must(td_checkpoint_open(dir, &ckpt, &err), &err, "checkpoint");
    int draft = !o->without_draft && td_weights_has_draft(ckpt, &h->config);
    must(td_model_kv_layout(&h->config, o->precise, o->kv, draft, &h->layout, &err), &err,
         "layout");
    const uint32_t ranks_per_gpu = td_harness_ranks_per_gpu(o->n_ranks);
    td_rank_options all = {.n_ranks = o->n_ranks,
                           .spin_us = 20,
                           .backend = o->backend,
                           .ranks_per_gpu = ranks_per_gpu};
    if (o->n_ranks > 1)
        must(td_rank_group(&all, TD_COMM_PEER, DEADLINE_MS, &h->group, &err), &err, "group");
    for (uint32_t r = 0; r < o->n_ranks; r++) {
        td_rank_options ro = {.ckpt = ckpt,
                              .config = &h->config,
                              .layout = &h->layout,
                              .precise = o->precise,
                              .moe = o->moe,
                              .rank = r,
                              .n_ranks = o->n_ranks,
                              .n_threads = 1,
                              .n_pages = o->n_pages,
                              .backend = o->backend,
                              .ranks_per_gpu = ranks_per_gpu};
        must(td_rank_open(&h->ranks[r], &ro, &err), &err, "rank");
        td_engine_config config = td_harness_engine(h, r);
        must(td_prefill_create(&config, o->max_tokens, o->max_seqs, &h->prefill[r], &err), &err,
             "prefill");
    }
    td_checkpoint_close(ckpt);
}

void td_harness_close(td_harness *h)
{
    for (uint32_t r = 0; r < h->o.n_ranks; r++) {
        td_prefill_destroy(h->prefill[r]);
        td_rank_close(&h->ranks[r]);
    }
    td_comm_group_destroy(h->group);
}

typedef struct {
    td_harness *h;
    uint32_t rank;
    const td_prefill_batch *batch;
    int32_t *tokens;
    td_status st;
    td_err err;
    pthread_t thread;
} step;

static void *run_rank(void *arg)
{
    step *s = arg;
    s->st = td_device_bind(s->h->ranks[s->rank].device, &s->err);
    if (s->st == TD_OK)
        s->st = td_prefill_run(s->h->prefill[s->rank], s->batch, s->tokens, &s->err);
    if (s->st < 0 && s->h->group != NULL)
        td_comm_group_abort(s->h->group);
    return NULL;
}

td_status td_harness_run(td_harness *h, const td_prefill_batch *batch, int32_t *tokens)
{
    step steps[TD_HARNESS_MAX_RANKS];
    td_status st = TD_OK;
    for (uint32_t r = 0; r < h->o.n_ranks; r++) {
        steps[r] = (step){.h = h, .rank = r, .batch = batch, .tokens = tokens};
        if (r > 0)
            steps[r].tokens = calloc(batch->n_seqs + 1, sizeof(int32_t));
        if (r > 0 && pthread_create(&steps[r].thread, NULL, run_rank, &steps[r]) != 0)
            abort();
    }
    run_rank(&steps[0]);
    for (uint32_t r = 0; r < h->o.n_ranks; r++) {
        if (r > 0) {
            pthread_join(steps[r].thread, NULL);
            free(steps[r].tokens);
        }
        if (steps[r].st < 0 && (st == TD_OK || st == TD_CANCELLED)) {
            st = steps[r].st;
            h->err = steps[r].err;
        }
    }
    return st;
}

int32_t td_harness_prompt(td_harness *h, const td_prefill_seq *whole, int32_t chunk,
                          const td_prefill_dump *dump)
{
    int32_t token = -1;
    size_t v = (size_t)h->config.vocab_size, d = (size_t)h->config.hidden_size;
    for (int32_t at = 0; at < whole->n_tokens;) {
        int32_t n = whole->n_tokens - at;
        n = chunk > 0 && n > chunk ? chunk : n;
        td_prefill_seq part = *whole;
        td_prefill_dump rows = dump == NULL ? (td_prefill_dump){0} : *dump;
        part.start = whole->start + at;
        part.n_tokens = n;
        part.tokens = whole->tokens + at;
        if (at + n < whole->n_tokens)
            part.next_token = whole->tokens[at + n];
        if (rows.logits != NULL)
            rows.logits += (size_t)at * v;
        if (rows.mtp_logits != NULL)
            rows.mtp_logits += (size_t)at * v;
        if (rows.hidden != NULL)
            rows.hidden += (size_t)at * d;
        td_prefill_batch batch = {.seqs = &part, .n_seqs = 1, .dump = &rows};
        must(td_harness_run(h, &batch, &token), &h->err, "step");
        at += n;
    }
    return token;
}
