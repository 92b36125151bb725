#include "model/prefill_step.h"

#include "kernels/numbers.h"
#include "model/forward.h"
#include "model/inbox.h"

#include <stdlib.h>
#include <string.h>

typedef struct { /* rows of a layer's step */
    td_in_i32 ids, positions, seq, len, slots;
} row_arrays;

struct td_prefill {
    td_forward f;
    int32_t max_tokens, max_seqs, max_pages;
    td_inbox in;
    row_arrays main, draft;
    td_in_i32 table;            /* [max_seqs, max_pages] */
    td_in_i32 last_local, pick; /* [max_seqs] the prompts' last rows, see pick_last() */
    td_in_sampling sampling;    /* [max_seqs] */
    td_forbid_mask forbid;      /* [max_seqs, ..] */
    td_cp_split split;
    /* Device */
    float *logits;           /* [tile, V] */
    void *mine, *all, *last; /* [max_seqs, D], [P, max_seqs, D], [max_seqs, D] act */
    int32_t *tokens;         /* [max_seqs] */
    int32_t *selected;       /* [max_rows, index_topk]; made by the first step that dumps it */
    /* Host */
    int32_t *lengths;            /* [max_seqs] */
    int32_t *map;                /* [P * max_rows] flat index of each row */
    int32_t *flat_seq;           /* [max_tokens] */
    int32_t *ended;              /* [max_seqs] the requests whose prompt ends in this step */
    int32_t n, n_ended, max_len; /* of the running step */
    void *staged;                /* for dumps: [tile, widest row]; made when first needed */
};

static void carve(td_prefill *p)
{
    int64_t n = p->f.max_rows, all = n * p->f.n_ranks;
    row_arrays *both[2] = {&p->main, &p->draft};
    for (int i = 0; i < 2; i++) {
        both[i]->ids = td_inbox_i32(&p->in, n);
        both[i]->positions = td_inbox_i32(&p->in, n);
        both[i]->seq = td_inbox_i32(&p->in, n);
        both[i]->len = td_inbox_i32(&p->in, n);
        both[i]->slots = td_inbox_i32(&p->in, all);
    }
    p->table = td_inbox_i32(&p->in, (int64_t)p->max_seqs * p->max_pages);
    p->last_local = td_inbox_i32(&p->in, p->max_seqs);
    p->pick = td_inbox_i32(&p->in, p->max_seqs);
    p->sampling = td_inbox_sampling(&p->in, p->max_seqs);
}

static td_status alloc_all(td_prefill *p, td_err *err)
{
    td_forward *f = &p->f;
    int32_t vocab = f->w->config.vocab_size;
    size_t row = (size_t)f->w->config.hidden_size * f->act_bytes, seqs = (size_t)p->max_seqs;
    td_status st;
    carve(p);
    if ((st = td_inbox_alloc(&p->in, &f->pool, err)) < 0)
        return st;
    carve(p);
    if ((st = td_forbid_mask_alloc(&p->forbid, p->max_seqs, vocab, &f->pool, err)) < 0)
        return st;
    p->logits =
        td_device_pool_alloc(&f->pool, (size_t)f->tile * (size_t)vocab * sizeof(float), err);
    p->mine = td_device_pool_alloc(&f->pool, seqs * row, err);
    p->all = td_device_pool_alloc(&f->pool, (size_t)f->n_ranks * seqs * row, err);
    p->last = td_device_pool_alloc(&f->pool, seqs * row, err);
    p->tokens = td_device_pool_alloc(&f->pool, seqs * sizeof(int32_t), err);
    if (f->pool.st < 0)
        return f->pool.st;
    p->lengths = calloc(seqs, sizeof(*p->lengths));
    p->ended = calloc(seqs, sizeof(*p->ended));
    p->map = calloc((size_t)f->max_rows * (size_t)f->n_ranks, sizeof(*p->map));
    p->flat_seq = calloc((size_t)p->max_tokens, sizeof(*p->flat_seq));
    if (p->lengths == NULL || p->ended == NULL || p->map == NULL || p->flat_seq == NULL)
        return td_fail(err, TD_NOMEM, "prefill: no memory for %d tokens", p->max_tokens);
    return TD_OK;
}

td_status td_prefill_create(const td_engine_config *config, uint32_t max_tokens, uint32_t max_seqs,
                            td_prefill **out, td_err *err)
{
    if (max_tokens == 0 || max_tokens > 1u << 24 || max_seqs == 0 || max_seqs > 65536)
        return td_fail(err, TD_CONFIG, "prefill: steps of %u tokens and %u requests", max_tokens,
                       max_seqs);
    if (config->weights->tensor)
        return td_fail(err, TD_CONFIG, "prefill: weights of a tensor-parallel decoder");
    td_prefill *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return td_fail(err, TD_NOMEM, "prefill: no memory");
    p->max_tokens = (int32_t)max_tokens;
    p->max_seqs = (int32_t)max_seqs;
    p->max_pages = (int32_t)((config->max_context + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS);
    p->split = config->split;
    int32_t max_rows = td_cp_max_rows_per_rank(config->split, config->weights->n_ranks,
                                               p->max_tokens, p->max_seqs);
    td_status st = td_forward_init(&p->f, config, max_rows, err);
    if (st == TD_OK)
        st = alloc_all(p, err);
    if (st == TD_OK)
        *out = p;
    else
        td_prefill_destroy(p);
    return st;
}

void td_prefill_destroy(td_prefill *prefill)
{
    if (prefill == NULL)
        return;
    td_inbox_free(&prefill->in);
    td_forbid_mask_free(&prefill->forbid);
    free(prefill->lengths);
    free(prefill->ended);
    free(prefill->map);
    free(prefill->flat_seq);
    free(prefill->staged);
    td_forward_fini(&prefill->f);
    free(prefill);
}

static td_status check_seq(const td_prefill *p, const td_prefill_seq *s, uint32_t i, td_err *err)
{
    int32_t vocab = p->f.w->config.vocab_size;
    if (s->start < 0 || s->n_tokens < 1 ||
        (int64_t)s->start + s->n_tokens > (int64_t)p->f.max_context)
        return td_fail(err, TD_INVALID,
                       "request %u: %d tokens from position %d, a context has %u positions", i,
                       s->n_tokens, s->start, p->f.max_context);
    for (int32_t j = 0; j < s->n_tokens; j++)
        if (s->tokens[j] < 0 || s->tokens[j] >= vocab)
            return td_fail(err, TD_INVALID,
                           "request %u: token id %d at position %d, the vocabulary has %d", i,
                           s->tokens[j], s->start + j, vocab);
    if (s->next_token < -1 || s->next_token >= vocab)
        return td_fail(err, TD_INVALID, "request %u: next token id %d, the vocabulary has %d", i,
                       s->next_token, vocab);
    uint32_t need = (uint32_t)(s->start + s->n_tokens + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS;
    if (s->n_pages < need)
        return td_fail(err, TD_INVALID, "request %u: %u pages, %u are needed", i, s->n_pages, need);
    for (uint32_t j = 0; j < need; j++)
        if (s->pages[j] >= p->f.n_pages)
            return td_fail(err, TD_INVALID, "request %u: page %u of a pool of %u", i, s->pages[j],
                           p->f.n_pages);
    return s->sampling == NULL ? TD_OK : td_sampling_check(s->sampling, vocab, err);
}

static td_status check_batch(const td_prefill *p, const td_prefill_batch *batch, td_err *err)
{
    int64_t n_tokens = 0;
    if (batch->n_seqs == 0 || batch->n_seqs > (uint32_t)p->max_seqs)
        return td_fail(err, TD_INVALID, "a batch of %u requests: 1 to %d", batch->n_seqs,
                       p->max_seqs);
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        td_status st = check_seq(p, &batch->seqs[i], i, err);
        if (st < 0)
            return st;
        n_tokens += batch->seqs[i].n_tokens;
    }
    if (n_tokens > p->max_tokens)
        return td_fail(err, TD_INVALID, "a batch of %lld tokens: at most %d", (long long)n_tokens,
                       p->max_tokens);
    return TD_OK;
}

/* One row of this rank (local >= 0) or of another one, of which only the slot matters. */
static void set_row(const row_arrays *a, int32_t local, int64_t gathered, const td_prefill_seq *s,
                    int32_t seq, int32_t position, int32_t id)
{
    int there = id >= 0;
    a->slots.host[gathered] =
        there ? (int32_t)s->pages[position / TD_KV_PAGE_ROWS] * TD_KV_PAGE_ROWS +
                    position % TD_KV_PAGE_ROWS
              : -1;
    if (local < 0)
        return;
    a->ids.host[local] = id;
    a->positions.host[local] = there ? position : -1;
    a->seq.host[local] = there ? seq : -1;
    a->len.host[local] = there ? position + 1 : 0;
}

/* Who computes what: fills p->map, both row arrays and where each prompt's last row is. */
static void place_rows(td_prefill *p, const td_prefill_batch *batch)
{
    const td_forward *f = &p->f;
    int32_t own = f->w->rank, flat = 0;
    for (uint32_t b = 0; b < batch->n_seqs; b++) {
        p->lengths[b] = batch->seqs[b].n_tokens;
        for (int32_t i = 0; i < p->lengths[b]; i++)
            p->flat_seq[flat++] = (int32_t)b;
    }
    p->n = td_cp_rows_per_rank(p->split, f->n_ranks, p->lengths, (int32_t)batch->n_seqs);
    td_assert(p->n <= f->max_rows);
    td_cp_map(p->split, f->n_ranks, p->lengths, (int32_t)batch->n_seqs, p->map);
    /* From here on lengths[b] is the flat index of request b's first token. */
    for (int32_t b = (int32_t)batch->n_seqs - 1; b >= 0; b--)
        p->lengths[b] = flat -= p->lengths[b];
    for (int32_t r = 0; r < f->n_ranks; r++) {
        for (int32_t j = 0; j < p->n; j++) {
            int64_t g = (int64_t)r * p->n + j;
            int32_t local = r == own ? j : -1, at = p->map[g];
            if (at < 0) {
                set_row(&p->main, local, g, NULL, -1, -1, -1);
                set_row(&p->draft, local, g, NULL, -1, -1, -1);
                continue;
            }
            int32_t b = p->flat_seq[at], i = at - p->lengths[b];
            const td_prefill_seq *s = &batch->seqs[b];
            int is_last = i == s->n_tokens - 1;
            set_row(&p->main, local, g, s, b, s->start + i, s->tokens[i]);
            set_row(&p->draft, local, g, s, b, s->start + i,
                    is_last ? s->next_token : s->tokens[i + 1]);
            for (int32_t e = 0; is_last && e < p->n_ended; e++) {
                if (p->ended[e] == b) {
                    p->last_local.host[e] = local;
                    p->pick.host[e] = r * p->n_ended + e;
                }
            }
        }
    }
}

static td_status fill_inputs(td_prefill *p, const td_prefill_batch *batch, td_stream *stream)
{
    p->n_ended = p->max_len = 0;
    td_forbid_mask_clear(&p->forbid);
    for (uint32_t b = 0; b < batch->n_seqs; b++) {
        const td_prefill_seq *s = &batch->seqs[b];
        int32_t end = s->start + s->n_tokens;
        p->max_len = end > p->max_len ? end : p->max_len;
        for (int32_t j = 0; j < p->max_pages && j < (int32_t)s->n_pages; j++)
            p->table.host[(int64_t)b * p->max_pages + j] = (int32_t)s->pages[j];
        if (s->next_token >= 0)
            continue;
        td_in_sampling_set(&p->sampling, p->n_ended, s->sampling, end);
        td_forbid_mask_set(&p->forbid, p->n_ended, s->sampling, 0);
        p->ended[p->n_ended++] = (int32_t)b;
    }
    place_rows(p, batch);
    return td_inbox_send(&p->in, stream);
}

static td_rows rows_of(const td_prefill *p, const row_arrays *a)
{
    return (td_rows){.n = p->n,
                     .positions = a->positions.dev,
                     .seq = a->seq.dev,
                     .len = a->len.dev,
                     .slots = a->slots.dev,
                     .block_table = p->table.dev,
                     .max_pages = p->max_pages,
                     .max_len = p->max_len};
}

/* The last rows of the prompts that end here, on every rank: mine has zeros where another rank
 * computed the row. */
static td_status pick_last(td_prefill *p, const void *from, void **out)
{
    td_forward *f = &p->f;
    int32_t n = p->n_ended;
    size_t bytes = (size_t)n * (size_t)f->w->config.hidden_size * f->act_bytes;
    TD_TRY(td_forward_pick(f, from, p->last_local.dev, n, p->mine));
    *out = p->mine;
    if (f->n_ranks == 1)
        return TD_OK;
    td_status st = td_comm_all_gather(f->comm, p->mine, bytes, p->all, f->stream);
    if (st < 0)
        return td_forward_failed(f, "all_gather", st);
    *out = p->last;
    return td_forward_pick(f, p->all, p->pick.dev, n, p->last);
}

/* First tokens of the prompts that end here, by rank 0. */
static td_status draw(td_prefill *p, const void *last)
{
    td_forward *f = &p->f;
    const td_in_sampling *s = &p->sampling;
    int32_t vocab = f->w->config.vocab_size;
    size_t row = (size_t)f->w->config.hidden_size * f->act_bytes;
    const uint8_t *mask = td_forbid_mask_get(&p->forbid);
    TD_TRY(td_forbid_mask_send(&p->forbid, f->stream));
    for (int32_t i = 0; i < p->n_ended; i += f->tile) {
        int32_t n = p->n_ended - i < f->tile ? p->n_ended - i : f->tile;
        TD_TRY(td_forward_head(f, (const char *)last + (size_t)i * row, n, p->logits));
        TD_OP(f, sample, .logits = p->logits, .temperature = s->temperature.dev + i,
              .top_p = s->top_p.dev + i, .top_k = s->top_k.dev + i, .seed = s->seed.dev + i,
              .position = s->position.dev + i,
              .forbid_ids_mask = mask == NULL ? NULL : mask + (size_t)i * p->forbid.row_bytes,
              .token = p->tokens + i, .T = n, .V = vocab, .stride = vocab);
    }
    return TD_OK;
}

static td_status finish_prompts(td_prefill *p, const td_prefill_batch *batch)
{
    td_forward *f = &p->f;
    size_t row = (size_t)f->w->config.hidden_size * f->act_bytes;
    void *last = NULL;
    int wanted = 0, hidden = 0;
    for (int32_t e = 0; e < p->n_ended; e++) {
        wanted |= batch->seqs[p->ended[e]].sampling != NULL;
        hidden |= batch->seqs[p->ended[e]].hidden_out != NULL;
    }
    if (wanted || (hidden && !f->draft_prenorm)) {
        TD_TRY(pick_last(p, f->x, &last));
        if (wanted && f->w->rank == 0)
            TD_TRY(draw(p, last));
    }
    if (hidden && f->draft_prenorm)
        TD_TRY(pick_last(p, f->res, &last));
    for (int32_t e = 0; e < p->n_ended && f->w->rank == 0; e++) {
        void *to = batch->seqs[p->ended[e]].hidden_out;
        if (to != NULL)
            TD_TRY(td_stream_copy(f->stream, to, (char *)last + (size_t)e * row, row));
    }
    return TD_OK;
}

/* Rows [n, width] of this rank to their places in host [T, width], as f32 (or i32, which has the
 * same size and is told by dtype TD_F32 alone). skip: rows whose id is -1 are left out. */
static td_status dump(td_prefill *p, const void *dev, int32_t first, int32_t n, int64_t width,
                      td_dtype dtype, const int32_t *skip, void *host)
{
    size_t row = (size_t)width * td_dtype_bytes(dtype);
    void *staged = realloc(p->staged, (size_t)n * row);
    if (staged == NULL)
        return td_fail(p->f.err, TD_NOMEM, "prefill: no memory to dump %d rows", n);
    p->staged = staged;
    TD_TRY(td_stream_read(p->f.stream, staged, dev, (size_t)n * row));
    TD_TRY(td_stream_sync(p->f.stream, p->f.err));
    for (int32_t j = 0; j < n; j++) {
        int32_t at = p->map[(int64_t)p->f.w->rank * p->n + first + j];
        if (at < 0 || (skip != NULL && skip[first + j] < 0))
            continue;
        const char *from = (char *)staged + (size_t)j * row;
        float *to = (float *)host + (int64_t)at * width;
        if (dtype == TD_F32)
            memcpy(to, from, row);
        else
            for (int64_t k = 0; k < width; k++)
                to[k] = td_bf16_to_f32(((const td_bf16 *)(const void *)from)[k]);
    }
    return TD_OK;
}

/* Logits of all rows of f->x. */
static td_status dump_logits(td_prefill *p, const int32_t *skip, float *host)
{
    td_forward *f = &p->f;
    int32_t vocab = f->w->config.vocab_size, d = f->w->config.hidden_size;
    for (int32_t i = 0; i < p->n; i += f->tile) {
        int32_t n = p->n - i < f->tile ? p->n - i : f->tile;
        TD_TRY(td_forward_head(f, td_at(f->x, i, d, f->act_bytes), n, p->logits));
        TD_TRY(dump(p, p->logits, i, n, vocab, TD_F32, skip, host));
    }
    return TD_OK;
}

static td_status run_layer(td_prefill *p, int32_t layer, const td_rows *rows,
                           const td_prefill_dump *to)
{
    td_forward *f = &p->f;
    const td_model_config *c = &f->w->config;
    int is_final = layer + 1 == c->n_layers;
    int32_t *selected = NULL;
    if (to != NULL && to->selected != NULL) {
        if (p->selected == NULL)
            p->selected = td_device_pool_alloc(
                &f->pool, (size_t)f->max_rows * (size_t)c->index_topk * sizeof(int32_t), f->err);
        if (p->selected == NULL)
            return f->pool.st;
        selected = p->selected;
    }
    TD_TRY(td_forward_kv(f, layer, rows));
    TD_TRY(td_forward_rest(f, layer, rows, selected));
    TD_TRY(td_forward_norm(
        f, p->n, is_final ? f->w->final_norm : f->w->layers[layer + 1].input_norm, 0, !is_final));
    if (selected != NULL)
        TD_TRY(dump(p, selected, 0, p->n, c->index_topk, TD_F32, NULL, to->selected[layer]));
    if (to != NULL && to->layer_out != NULL)
        TD_TRY(dump(p, f->res, 0, p->n, c->hidden_size, f->act, NULL, to->layer_out[layer]));
    return TD_OK;
}

/* The draft layer's cache for the rows whose next token is known; its output only where somebody
 * looks at it. */
static td_status run_draft(td_prefill *p, const td_prefill_dump *to)
{
    td_forward *f = &p->f;
    int32_t layer = f->w->n_layers;
    const int32_t *skip = p->draft.ids.host;
    td_rows rows = rows_of(p, &p->draft);
    TD_TRY(td_forward_draft_input(f, p->draft.ids.dev, f->draft_prenorm ? f->res : f->x, p->n));
    TD_TRY(td_forward_kv(f, layer, &rows));
    if (to == NULL || (to->mtp_logits == NULL && to->mtp_hidden == NULL))
        return TD_OK;
    TD_TRY(td_forward_rest(f, layer, &rows, NULL));
    TD_TRY(td_forward_norm(f, p->n, f->w->layers[layer].head_norm, 0, 0));
    if (to->mtp_hidden != NULL)
        TD_TRY(dump(p, f->x, 0, p->n, f->w->config.hidden_size, f->act, skip, to->mtp_hidden));
    return to->mtp_logits == NULL ? TD_OK : dump_logits(p, skip, to->mtp_logits);
}

static td_status run(td_prefill *p, const td_prefill_batch *batch)
{
    td_forward *f = &p->f;
    const td_prefill_dump *to = batch->dump;
    td_rows rows = rows_of(p, &p->main);
    TD_TRY(td_forward_embed(f, p->main.ids.dev, p->n));
    for (int32_t layer = 0; layer < f->w->n_layers; layer++) {
        TD_TRY(run_layer(p, layer, &rows, to));
        if (batch->on_layer_done != NULL)
            batch->on_layer_done(batch->hook_arg, (uint32_t)layer);
    }
    if (to != NULL && to->hidden != NULL)
        TD_TRY(dump(p, f->x, 0, p->n, f->w->config.hidden_size, f->act, NULL, to->hidden));
    if (to != NULL && to->logits != NULL)
        TD_TRY(dump_logits(p, NULL, to->logits));
    if (p->n_ended > 0)
        TD_TRY(finish_prompts(p, batch));
    if (f->layout->draft_layer >= 0) {
        TD_TRY(run_draft(p, to));
        if (batch->on_layer_done != NULL)
            batch->on_layer_done(batch->hook_arg, (uint32_t)f->w->n_layers);
    }
    return TD_OK;
}

td_status td_prefill_run(td_prefill *prefill, const td_prefill_batch *batch, int32_t *first_tokens,
                         td_err *err)
{
    td_forward *f = &prefill->f;
    td_err local;
    f->err = err == NULL ? &local : err;
    td_status st = check_batch(prefill, batch, f->err);
    if (st < 0)
        return st;
    f->err->status = TD_OK;
    st = fill_inputs(prefill, batch, f->stream);
    if (st == TD_OK)
        st = run(prefill, batch);
    if (st == TD_OK)
        st = td_stream_sync(f->stream, f->err);
    if (st < 0) {
        td_forward_abandon(f);
        return f->err->status < 0 ? st : td_forward_failed(f, "copy", st);
    }
    for (uint32_t b = 0; b < batch->n_seqs; b++)
        first_tokens[b] = -1;
    for (int32_t e = 0; e < prefill->n_ended && f->w->rank == 0; e++)
        if (batch->seqs[prefill->ended[e]].sampling != NULL)
            st = td_stream_read(f->stream, &first_tokens[prefill->ended[e]], prefill->tokens + e,
                                sizeof(int32_t));
    return st == TD_OK ? td_stream_sync(f->stream, f->err) : st;
}
