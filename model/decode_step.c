#include "model/decode_step.h"

#include "model/forward.h"
#include "model/inbox.h"

#include "common/base/clock.h"

#include <stdlib.h>
#include <string.h>

#define MAX_BUCKETS 17 /* 65536 sequences */

typedef struct { /* a sequence between steps */
    int used, done;
    td_decode_seq seq; /* pages and hidden were copied */
    int32_t len;       /* L: positions 0..L-1 are in the target's cache */
    int32_t n_new;     /* tokens after the first one */
    int32_t n_pending; /* tokens that the draft layer has not seen: the last is the root, at
                          position L; the others end before it */
    int32_t pending[TD_DECODE_MAX_DRAFTS + 1];
    int32_t hidden_row; /* in td_decode.hidden: state that goes with pending[0] */
    int32_t n_drafts;   /* of the running step */
    int32_t batch_row;  /* of the last step; -1: took no part */
} sequence;

/* Rows per sequence: N = drafts of the step + 1 in the verify pass, E = the most pending tokens in
 * the extend pass. B sequences, padded. */
struct td_decode {
    td_forward f;
    int32_t max_seqs, max_drafts, max_pages, pad_seqs;
    sequence *seqs;              /* [max_seqs] by slot */
    int32_t *pages;              /* [max_seqs, max_pages] by slot */
    int32_t *batch;              /* [max_seqs] slots that take part */
    int32_t n, B, N, E, max_len; /* of the running step; n sequences, B with padding */
    td_inbox in;
    /* Extend: rows whose tokens were accepted last time, [B * E] */
    td_in_i32 ext_ids, ext_positions, ext_slots, ext_hidden;
    td_in_i32 ext_last; /* [B] the row of each sequence that drafts first */
    /* Draft passes, [k, B]; pass 0 has no slots of its own */
    td_in_i32 draft_positions, draft_seq, draft_len, draft_slots;
    /* Verify, [B * N]; ids hold the roots, the drafts are filled in on the device */
    td_in_i32 ids, positions, seq, len, slots;
    td_in_i32 n_drafts; /* [B] */
    td_in_sampling sampling;
    td_forbid_mask forbid;
    /* Device */
    int32_t *table;        /* [max_seqs, max_pages] by slot */
    unsigned char *hidden; /* [max_rows + max_seqs, D] act: the last verify rows' states, then the
                              states that sequences join with, by slot */
    void *ext_in;          /* [max_rows, D] act */
    float *logits;         /* [max_rows, V] */
    int32_t *drafted;      /* [max_drafts, max_seqs], pass by pass */
    int32_t *drafts;       /* [B, N - 1] */
    int32_t *target;       /* [B, N] */
    int32_t *n_accepted;   /* [B] */
    int32_t *result;       /* host: [max_rows] targets, then [max_seqs] counts */
    /* Recorded steps; none: steps are enqueued operation by operation. */
    td_graph *graphs[MAX_BUCKETS]; /* [n_graphs] for 2^i sequences */
    int32_t n_graphs;
    td_decode_graphs report;
    int64_t waited_ns;
};

uint32_t td_decode_pages(int32_t prompt_len, int32_t max_new_tokens, uint32_t max_drafts)
{
    int64_t n = (int64_t)prompt_len + max_new_tokens + max_drafts;
    return (uint32_t)((n + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS);
}

static int32_t round_up(int32_t n, int32_t step)
{
    return step > 1 ? (n + step - 1) / step * step : n;
}

/* The smallest b with 2^b >= n. */
static int32_t bucket_of(int32_t n)
{
    int32_t b = 0;
    while (1 << b < n)
        b++;
    return b;
}

static void carve(td_decode *d)
{
    int64_t rows = d->f.max_rows, seqs = round_up(d->max_seqs, d->pad_seqs);
    int64_t drafts = (int64_t)d->max_drafts * seqs;
    td_in_i32 *per_row[] = {&d->ext_ids,    &d->ext_positions, &d->ext_slots,
                            &d->ext_hidden, &d->ids,           &d->positions,
                            &d->seq,        &d->len,           &d->slots};
    td_in_i32 *per_draft[] = {&d->draft_positions, &d->draft_seq, &d->draft_len, &d->draft_slots};
    for (size_t i = 0; i < sizeof(per_row) / sizeof(*per_row); i++)
        *per_row[i] = td_inbox_i32(&d->in, rows);
    for (size_t i = 0; i < sizeof(per_draft) / sizeof(*per_draft); i++)
        *per_draft[i] = td_inbox_i32(&d->in, drafts);
    d->ext_last = td_inbox_i32(&d->in, seqs);
    d->n_drafts = td_inbox_i32(&d->in, seqs);
    d->sampling = td_inbox_sampling(&d->in, rows);
}

static td_status alloc_all(td_decode *d, td_err *err)
{
    td_forward *f = &d->f;
    size_t rows = (size_t)f->max_rows, seqs = (size_t)round_up(d->max_seqs, d->pad_seqs);
    size_t vocab = (size_t)f->w->config.vocab_size, i32 = sizeof(int32_t);
    size_t state = (size_t)f->w->config.hidden_size * f->act_bytes;
    void *result = NULL;
    td_status st;
    carve(d);
    if ((st = td_inbox_alloc(&d->in, &f->pool, err)) < 0)
        return st;
    carve(d);
    st = td_forbid_mask_alloc(&d->forbid, f->max_rows, (int32_t)vocab, &f->pool, err);
    if (st < 0)
        return st;
    d->table = td_device_pool_alloc(&f->pool, seqs * (size_t)d->max_pages * i32, err);
    d->logits = td_device_pool_alloc(&f->pool, rows * vocab * sizeof(float), err);
    d->target = td_device_pool_alloc(&f->pool, rows * i32, err);
    d->n_accepted = td_device_pool_alloc(&f->pool, seqs * i32, err);
    if (d->max_drafts > 0) {
        d->hidden = td_device_pool_alloc(&f->pool, (rows + seqs) * state, err);
        d->ext_in = td_device_pool_alloc(&f->pool, rows * state, err);
        d->drafted = td_device_pool_alloc(&f->pool, (size_t)d->max_drafts * seqs * i32, err);
        d->drafts = td_device_pool_alloc(&f->pool, (size_t)d->max_drafts * seqs * i32, err);
    }
    if (f->pool.st < 0)
        return f->pool.st;
    d->seqs = calloc((size_t)d->max_seqs, sizeof(*d->seqs));
    d->batch = calloc((size_t)d->max_seqs, sizeof(*d->batch));
    d->pages = calloc((size_t)d->max_seqs * (size_t)d->max_pages, sizeof(*d->pages));
    st = td_device_alloc_host(f->device, (rows + seqs) * sizeof(*d->result), &result, err);
    if (st < 0)
        return st;
    d->result = result;
    if (d->seqs == NULL || d->batch == NULL || d->pages == NULL)
        return td_fail(err, TD_NOMEM, "decode: no memory for %d sequences", d->max_seqs);
    return TD_OK;
}

static td_status record_all(td_decode *d, td_err *err);

td_status td_decode_create(const td_engine_config *config, uint32_t max_seqs, uint32_t max_drafts,
                           uint32_t pad_seqs, td_decode **out, td_err *err)
{
    if (max_seqs == 0 || max_seqs > 65536 || max_drafts > TD_DECODE_MAX_DRAFTS || pad_seqs > 65536)
        return td_fail(err, TD_CONFIG, "decode: %u sequences with %u drafts: at most %d drafts",
                       max_seqs, max_drafts, TD_DECODE_MAX_DRAFTS);
    if (config->weights->n_ranks != 1 && !config->weights->tensor)
        return td_fail(err, TD_CONFIG, "decode: weights of one context-parallel rank of %d",
                       config->weights->n_ranks);
    if (config->graphs && config->comm != NULL && td_comm_unrecordable(config->comm) != NULL)
        return td_fail(err, TD_CONFIG, "decode: steps of %d ranks cannot be recorded: %s",
                       config->weights->n_ranks, td_comm_unrecordable(config->comm));
    if (max_drafts > 0 && config->layout->draft_layer < 0)
        return td_fail(err, TD_CONFIG, "decode: %u drafts, but there is no draft layer",
                       max_drafts);
    td_decode *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return td_fail(err, TD_NOMEM, "decode: no memory");
    d->max_seqs = (int32_t)max_seqs;
    d->max_drafts = (int32_t)max_drafts;
    d->pad_seqs = config->graphs ? 1 << bucket_of((int32_t)max_seqs) : (int32_t)pad_seqs;
    d->max_pages = (int32_t)((config->max_context + TD_KV_PAGE_ROWS - 1) / TD_KV_PAGE_ROWS);
    int32_t rows = round_up(d->max_seqs, d->pad_seqs) * (d->max_drafts + 1);
    td_status st = td_forward_init(&d->f, config, rows, err);
    if (st == TD_OK)
        st = alloc_all(d, err);
    if (st == TD_OK && config->graphs)
        st = record_all(d, err);
    if (st == TD_OK)
        *out = d;
    else
        td_decode_destroy(d);
    return st;
}

void td_decode_destroy(td_decode *decode)
{
    if (decode == NULL)
        return;
    td_inbox_free(&decode->in);
    td_forbid_mask_free(&decode->forbid);
    free(decode->seqs);
    free(decode->batch);
    free(decode->pages);
    for (int32_t i = 0; i < MAX_BUCKETS; i++)
        td_graph_destroy(decode->graphs[i], decode->f.stream);
    if (decode->result != NULL)
        td_device_free_host(decode->f.device, decode->result);
    td_forward_fini(&decode->f);
    free(decode);
}

int64_t td_decode_waited_ns(const td_decode *decode)
{
    return decode->waited_ns;
}

uint32_t td_decode_active(const td_decode *decode)
{
    uint32_t n = 0;
    for (int32_t s = 0; s < decode->max_seqs; s++)
        n += decode->seqs[s].used && !decode->seqs[s].done;
    return n;
}

static td_status check_seq(const td_decode *d, const td_decode_seq *s, td_err *err)
{
    int32_t vocab = d->f.w->config.vocab_size;
    if (s->prompt_len < 1 || s->max_new_tokens < 0 ||
        (int64_t)s->prompt_len + s->max_new_tokens > (int64_t)d->f.max_context)
        return td_fail(err, TD_INVALID,
                       "prompt of %d tokens and %d more: a context has %u positions", s->prompt_len,
                       s->max_new_tokens, d->f.max_context);
    if (s->first_token < 0 || s->first_token >= vocab)
        return td_fail(err, TD_INVALID, "first token %d: the vocabulary has %d", s->first_token,
                       vocab);
    if (s->max_drafts > (uint32_t)d->max_drafts)
        return td_fail(err, TD_INVALID, "%u drafts: the decoder was made for %d", s->max_drafts,
                       d->max_drafts);
    if (d->max_drafts > 0 && s->hidden == NULL)
        return td_fail(err, TD_INVALID, "no hidden state of the prompt's last position");
    uint32_t need = td_decode_pages(s->prompt_len, s->max_new_tokens, 0);
    if (s->n_pages < need)
        return td_fail(err, TD_INVALID, "%u pages, %u are needed", s->n_pages, need);
    for (uint32_t i = 0; i < need; i++)
        if (s->pages[i] >= d->f.n_pages)
            return td_fail(err, TD_INVALID, "page %u of a pool of %u", s->pages[i], d->f.n_pages);
    return td_sampling_check(&s->sampling, vocab, err);
}

td_status td_decode_join(td_decode *decode, uint32_t slot, const td_decode_seq *seq, td_err *err)
{
    td_forward *f = &decode->f;
    size_t state = (size_t)f->w->config.hidden_size * f->act_bytes;
    if (slot >= (uint32_t)decode->max_seqs || decode->seqs[slot].used)
        return td_fail(err, TD_INVALID, "slot %u of %d is not free", slot, decode->max_seqs);
    td_status st = check_seq(decode, seq, err);
    if (st < 0)
        return st;
    sequence *s = &decode->seqs[slot];
    uint32_t n = td_decode_pages(seq->prompt_len, seq->max_new_tokens, 0);
    size_t at = (size_t)slot * (size_t)decode->max_pages;
    memcpy(decode->pages + at, seq->pages, n * sizeof(int32_t));
    st = td_stream_write(f->stream, decode->table + at, decode->pages + at, n * sizeof(int32_t));
    if (st == TD_OK && decode->max_drafts > 0)
        st = td_stream_copy(f->stream, decode->hidden + ((size_t)f->max_rows + slot) * state,
                            seq->hidden, state);
    if (st == TD_OK)
        st = td_stream_sync(f->stream, err);
    if (st < 0)
        return st;
    *s = (sequence){.used = 1,
                    .done = seq->max_new_tokens == 0,
                    .seq = *seq,
                    .len = seq->prompt_len,
                    .n_pending = 1,
                    .pending = {seq->first_token},
                    .hidden_row = f->max_rows + (int32_t)slot,
                    .batch_row = -1};
    return TD_OK;
}

void td_decode_leave(td_decode *decode, uint32_t slot)
{
    td_assert(slot < (uint32_t)decode->max_seqs);
    decode->seqs[slot].used = 0;
}

static int32_t slot_of(const td_decode *d, int32_t seq, int32_t position)
{
    const int32_t *pages = d->pages + (size_t)seq * (size_t)d->max_pages;
    return pages[position / TD_KV_PAGE_ROWS] * TD_KV_PAGE_ROWS + position % TD_KV_PAGE_ROWS;
}

/* Shapes that do not depend on what takes part. */
static void set_fixed_shape(td_decode *d)
{
    d->N = d->max_drafts + 1;
    d->E = d->max_drafts > 0 ? d->N : 0;
    if (d->forbid.fixed)
        d->max_len = (int32_t)d->f.max_context;
}

/* Which sequences take part, and the shapes of the step. */
static void choose(td_decode *d)
{
    d->n = d->N = d->E = d->max_len = 0;
    for (int32_t slot = 0; slot < d->max_seqs; slot++) {
        sequence *s = &d->seqs[slot];
        s->batch_row = -1;
        if (!s->used || s->done)
            continue;
        int32_t left = s->seq.max_new_tokens - s->n_new, most = (int32_t)s->seq.max_drafts;
        s->n_drafts = left - 1 < most ? left - 1 : most;
        s->batch_row = d->n;
        d->batch[d->n++] = slot;
        int32_t end = s->len + s->n_drafts + 1;
        d->max_len = end > d->max_len ? end : d->max_len;
        d->N = s->n_drafts + 1 > d->N ? s->n_drafts + 1 : d->N;
        if (s->n_drafts > 0 && s->n_pending > d->E)
            d->E = s->n_pending;
    }
    d->B = d->n_graphs > 0 ? 1 << bucket_of(d->n) : round_up(d->n, d->pad_seqs);
    if (d->pad_seqs > 1 || d->n_graphs > 0)
        set_fixed_shape(d);
}

/* Every row is padding until fill_sequence() says otherwise. */
static void fill_padding(td_decode *d)
{
    for (int32_t i = 0; i < d->B * d->E; i++)
        d->ext_ids.host[i] = d->ext_positions.host[i] = d->ext_slots.host[i] =
            d->ext_hidden.host[i] = -1;
    for (int32_t i = 0; i < d->B * (d->N - 1); i++) {
        d->draft_positions.host[i] = d->draft_seq.host[i] = d->draft_slots.host[i] = -1;
        d->draft_len.host[i] = 0;
    }
    for (int32_t i = 0; i < d->B * d->N; i++) {
        d->ids.host[i] = d->positions.host[i] = d->seq.host[i] = d->slots.host[i] = -1;
        d->len.host[i] = 0;
        td_in_sampling_set(&d->sampling, i, NULL, 0);
    }
    for (int32_t b = 0; b < d->B; b++) {
        d->ext_last.host[b] = -1;
        d->n_drafts.host[b] = 0;
    }
    td_forbid_mask_clear(&d->forbid);
}

static void fill_sequence(td_decode *d, int32_t b)
{
    int32_t slot = d->batch[b];
    const sequence *s = &d->seqs[slot];
    int32_t first = s->len - s->n_pending; /* position of the first row to extend */
    for (int32_t e = 0; e < s->n_pending && s->n_drafts > 0; e++) {
        int32_t i = b * d->E + e;
        d->ext_ids.host[i] = s->pending[e];
        d->ext_positions.host[i] = first + e;
        d->ext_slots.host[i] = slot_of(d, slot, first + e);
        d->ext_hidden.host[i] = s->hidden_row + e;
        d->ext_last.host[b] = i;
    }
    for (int32_t j = 0; j < s->n_drafts; j++) {
        int32_t i = j * d->B + b;
        d->draft_positions.host[i] = s->len - 1 + j;
        d->draft_seq.host[i] = slot;
        d->draft_len.host[i] = s->len + j;
        d->draft_slots.host[i] = slot_of(d, slot, s->len - 1 + j);
    }
    for (int32_t j = 0; j <= s->n_drafts; j++) {
        int32_t i = b * d->N + j;
        d->ids.host[i] = s->pending[s->n_pending - 1]; /* the root; drafts come on the device */
        d->positions.host[i] = s->len + j;
        d->seq.host[i] = slot;
        d->len.host[i] = s->len + j + 1;
        d->slots.host[i] = slot_of(d, slot, s->len + j);
        td_in_sampling_set(&d->sampling, i, &s->seq.sampling, s->len + j + 1);
        td_forbid_mask_set(&d->forbid, i, &s->seq.sampling, 1 + s->n_new + j);
    }
    d->n_drafts.host[b] = s->n_drafts;
}

/* The draft layer's cache for the tokens accepted last time; leaves the input of each sequence's
 * last row in f->x and f->res, [B, D]. */
static td_status extend(td_decode *d)
{
    td_forward *f = &d->f;
    int32_t layer = f->w->n_layers, n = d->B * d->E;
    size_t state = (size_t)f->w->config.hidden_size * f->act_bytes;
    td_rows rows = {.n = n, .positions = d->ext_positions.dev, .slots = d->ext_slots.dev};
    TD_TRY(td_forward_pick(f, d->hidden, d->ext_hidden.dev, n, d->ext_in));
    TD_TRY(td_forward_draft_input(f, d->ext_ids.dev, d->ext_in, n));
    TD_TRY(td_forward_kv(f, layer, &rows));
    TD_TRY(td_forward_pick(f, f->res, d->ext_last.dev, d->B, f->h));
    TD_TRY(td_stream_copy(f->stream, f->res, f->h, (size_t)d->B * state));
    return td_forward_norm(f, d->B, f->w->layers[layer].input_norm, 1, 1);
}

/* One token per sequence from the draft layer, its input in f->x and f->res. */
static td_status draft_token(td_decode *d, int32_t pass)
{
    td_forward *f = &d->f;
    int32_t layer = f->w->n_layers, at = pass * d->B, vocab = f->w->config.vocab_size;
    td_rows rows = {.n = d->B,
                    .positions = d->draft_positions.dev + at,
                    .seq = d->draft_seq.dev + at,
                    .len = d->draft_len.dev + at,
                    .slots = d->draft_slots.dev + at,
                    .block_table = d->table,
                    .max_pages = d->max_pages,
                    .max_len = d->max_len};
    if (pass > 0) { /* chained: the previous draft and the state that gave it */
        const int32_t *ids = d->drafted + (at - d->B);
        TD_TRY(td_forward_draft_input(f, ids, f->draft_prenorm ? f->res : f->x, d->B));
        TD_TRY(td_forward_kv(f, layer, &rows));
    }
    TD_TRY(td_forward_rest(f, layer, &rows, NULL));
    TD_TRY(td_forward_norm(f, d->B, f->w->layers[layer].head_norm, 0, 0));
    TD_TRY(td_forward_head(f, f->x, d->B, d->logits));
    TD_OP(f, argmax, .logits = d->logits, .ids = d->drafted + at, .T = d->B, .V = vocab,
          .stride = vocab);
    return TD_OK;
}

/* Column j of dst [B, width] = the tokens of draft pass `pass`. */
static td_status place_drafts(td_decode *d, int32_t pass, int32_t *dst, int32_t j, int32_t width)
{
    td_forward *f = &d->f;
    int64_t size = sizeof(int32_t);
    TD_OP(f, gather_rows, .x = d->drafted + (int64_t)pass * d->B, .rows = f->iota, .y = dst + j,
          .T = d->B, .row_bytes = size, .x_stride_bytes = size, .y_stride_bytes = width * size);
    return TD_OK;
}

static td_status verify(td_decode *d)
{
    td_forward *f = &d->f;
    int32_t n = d->B * d->N, n_layers = f->w->n_layers;
    td_rows rows = {.n = n,
                    .positions = d->positions.dev,
                    .seq = d->seq.dev,
                    .len = d->len.dev,
                    .slots = d->slots.dev,
                    .block_table = d->table,
                    .max_pages = d->max_pages,
                    .max_len = d->max_len};
    TD_TRY(td_forward_embed(f, d->ids.dev, n));
    for (int32_t layer = 0; layer < n_layers; layer++) {
        int is_final = layer + 1 == n_layers;
        TD_TRY(td_forward_kv(f, layer, &rows));
        TD_TRY(td_forward_rest(f, layer, &rows, NULL));
        TD_TRY(td_forward_norm(
            f, n, is_final ? f->w->final_norm : f->w->layers[layer + 1].input_norm, 0, !is_final));
    }
    if (d->max_drafts > 0)
        TD_TRY(td_stream_copy(f->stream, d->hidden, f->draft_prenorm ? f->res : f->x,
                              (size_t)n * (size_t)f->w->config.hidden_size * f->act_bytes));
    return td_forward_head(f, f->x, n, d->logits);
}

static td_status judge(td_decode *d)
{
    td_forward *f = &d->f;
    const td_in_sampling *s = &d->sampling;
    int32_t n = d->B * d->N, vocab = f->w->config.vocab_size;
    TD_OP(f, sample, .logits = d->logits, .temperature = s->temperature.dev, .top_p = s->top_p.dev,
          .top_k = s->top_k.dev, .seed = s->seed.dev, .position = s->position.dev,
          .forbid_ids_mask = td_forbid_mask_get(&d->forbid), .token = d->target, .T = n, .V = vocab,
          .stride = vocab);
    TD_OP(f, accept, .target = d->target, .draft = d->drafts, .n_drafts = d->n_drafts.dev,
          .n_accepted = d->n_accepted, .B = d->B, .N = d->N);
    return TD_OK;
}

/* What a step computes, from the inbox to d->target and d->n_accepted. */
static td_status compute(td_decode *d)
{
    if (d->N > 1)
        TD_TRY(extend(d));
    for (int32_t j = 0; j < d->N - 1; j++) {
        TD_TRY(draft_token(d, j));
        TD_TRY(place_drafts(d, j, d->ids.dev, j + 1, d->N));
        TD_TRY(place_drafts(d, j, d->drafts, j, d->N - 1));
    }
    TD_TRY(verify(d));
    return judge(d);
}

static td_status enqueue(td_decode *d)
{
    td_forward *f = &d->f;
    int32_t *counts = d->result + f->max_rows;
    TD_TRY(td_inbox_send(&d->in, f->stream));
    TD_TRY(td_forbid_mask_send(&d->forbid, f->stream));
    if (d->n_graphs > 0)
        TD_TRY(td_graph_launch(d->graphs[bucket_of(d->n)], f->stream));
    else
        TD_TRY(compute(d));
    TD_TRY(
        td_stream_read(f->stream, d->result, d->target, (size_t)(d->B * d->N) * sizeof(int32_t)));
    TD_TRY(td_stream_read(f->stream, counts, d->n_accepted, (size_t)d->B * sizeof(int32_t)));
    const int64_t start = td_now_ns();
    td_status st = td_stream_sync(f->stream, f->err);
    d->waited_ns += td_now_ns() - start;
    return st;
}

/* A step of 2^bucket sequences that is all padding: once to let scratch grow, once recorded. */
static td_status record(td_decode *d, int32_t bucket)
{
    td_forward *f = &d->f;
    size_t n_nodes = 0;
    d->B = 1 << bucket;
    fill_padding(d);
    TD_TRY(td_inbox_send(&d->in, f->stream));
    TD_TRY(compute(d));
    TD_TRY(td_stream_sync(f->stream, f->err));
    TD_TRY(td_graph_begin(f->stream, f->err));
    td_status st = compute(d),
              ended = td_graph_end(f->stream, &d->graphs[bucket], &n_nodes, f->err);
    if (d->report.n_graphs == 0) /* the largest comes first */
        d->report.n_nodes = (uint32_t)n_nodes;
    d->report.n_graphs += ended == TD_OK;
    return st < 0 ? st : ended;
}

/* Steps for 1, 2, 4, .. sequences, up to max_seqs; all ranks at the same time. No rank waits in a
 * step on its device before all others have taken what memory theirs need for recorded steps. */
static td_status record_all(td_decode *d, td_err *err)
{
    td_err local;
    const int64_t start = td_now_ns();
    const uint64_t free_before = td_device_free_bytes(d->f.device);
    d->f.err = err == NULL ? &local : err;
    d->f.err->status = TD_OK;
    d->forbid.fixed = 1;
    set_fixed_shape(d);
    const int32_t n = bucket_of(d->max_seqs) + 1;
    td_status st = TD_OK;
    for (int32_t bucket = n - 1; bucket >= 0 && st == TD_OK; bucket--)
        st = record(d, bucket); /* the largest need for scratch first */
    if (st == TD_OK)
        st = td_stream_sync(d->f.stream, d->f.err);
    if (st == TD_OK && d->f.comm != NULL)
        st = td_comm_barrier(d->f.comm);
    if (st < 0) {
        td_forward_abandon(&d->f); /* the others would wait for this rank */
        return d->f.err->status < 0 ? st : td_forward_failed(&d->f, "recording", st);
    }
    d->n_graphs = n;
    const uint64_t free_after = td_device_free_bytes(d->f.device);
    d->report.n_bytes = free_before > free_after ? free_before - free_after : 0;
    d->report.took_ns = td_now_ns() - start;
    return TD_OK;
}

const td_decode_graphs *td_decode_graphs_report(const td_decode *decode)
{
    return &decode->report;
}

/* Takes over what was accepted of batch row b. */
static void conclude(td_decode *d, int32_t b, td_decode_result *out)
{
    sequence *s = &d->seqs[d->batch[b]];
    int32_t n = d->result[d->f.max_rows + b] + 1;
    td_assert(n >= 1 && n <= s->n_drafts + 1);
    memcpy(s->pending, d->result + b * d->N, (size_t)n * sizeof(int32_t));
    s->n_pending = n;
    s->hidden_row = b * d->N;
    s->len += n;
    s->n_new += n;
    s->done = s->n_new >= s->seq.max_new_tokens;
    *out = (td_decode_result){.slot = (uint32_t)d->batch[b],
                              .n_tokens = (uint32_t)n,
                              .n_drafted = (uint32_t)s->n_drafts,
                              .n_accepted = (uint32_t)(n - 1),
                              .done = s->done};
    memcpy(out->tokens, s->pending, (size_t)n * sizeof(int32_t));
}

td_status td_decode_run(td_decode *decode, td_decode_result *results, uint32_t *n_results,
                        td_err *err)
{
    td_forward *f = &decode->f;
    td_err local;
    f->err = err == NULL ? &local : err;
    choose(decode);
    *n_results = 0;
    if (decode->n == 0)
        return TD_OK;
    fill_padding(decode);
    for (int32_t b = 0; b < decode->n; b++)
        fill_sequence(decode, b);
    f->err->status = TD_OK;
    td_status st = enqueue(decode);
    if (st < 0) {
        td_forward_abandon(f);
        return f->err->status < 0 ? st : td_forward_failed(f, "copy", st);
    }
    for (int32_t b = 0; b < decode->n; b++)
        conclude(decode, b, &results[b]);
    *n_results = (uint32_t)decode->n;
    return TD_OK;
}

td_status td_decode_read_logits(td_decode *decode, uint32_t slot, float *logits, td_err *err)
{
    td_forward *f = &decode->f;
    if (slot >= (uint32_t)decode->max_seqs || decode->seqs[slot].batch_row < 0)
        return td_fail(err, TD_INVALID, "slot %u took no part in the last step", slot);
    size_t vocab = (size_t)f->w->config.vocab_size;
    size_t first = (size_t)(decode->seqs[slot].batch_row * decode->N);
    size_t n = (size_t)decode->seqs[slot].n_drafts + 1;
    td_status st = td_stream_read(f->stream, logits, decode->logits + first * vocab,
                                  n * vocab * sizeof(*logits));
    return st == TD_OK ? td_stream_sync(f->stream, err) : st;
}
