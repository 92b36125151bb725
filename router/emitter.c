#include "router/emitter.h"

#include <stdlib.h>
#include <string.h>

void td_emitter_init(td_emitter *e, const td_tokenizer *tokenizer, uint32_t min_tokens)
{
    memset(e, 0, sizeof(*e));
    e->tokenizer = tokenizer;
    e->min_tokens = min_tokens;
    if (tokenizer != NULL)
        td_detok_init(&e->detok, tokenizer, TD_DECODE_SKIP_SPECIAL);
}

void td_emitter_fini(td_emitter *e)
{
    free(e->text);
    free(e->ids);
    free(e->ends);
    e->text = NULL;
    e->ids = NULL;
    e->ends = NULL;
}

void td_emitter_restart(td_emitter *e)
{
    if (e->tokenizer != NULL)
        td_detok_init(&e->detok, e->tokenizer, TD_DECODE_SKIP_SPECIAL);
    e->n_seen = e->n_ids = 0;
    e->n_text = e->n_ready = 0;
    e->stopped = false;
}

static td_status reserve_id(td_emitter *e)
{
    if (e->n_ids < e->ids_capacity)
        return TD_OK;
    uint32_t capacity = e->ids_capacity == 0 ? 16 : e->ids_capacity * 2;
    uint32_t *ids = realloc(e->ids, capacity * sizeof(*ids));
    if (ids == NULL)
        return TD_NOMEM;
    e->ids = ids;
    size_t *ends = realloc(e->ends, capacity * sizeof(*ends));
    if (ends == NULL)
        return TD_NOMEM;
    e->ends = ends;
    e->ids_capacity = capacity;
    return TD_OK;
}

static td_status reserve_text(td_emitter *e, size_t more)
{
    if (e->n_text + more <= e->text_capacity)
        return TD_OK;
    size_t capacity = 2 * (e->n_text + more);
    char *text = realloc(e->text, capacity);
    if (text == NULL)
        return TD_NOMEM;
    e->text = text;
    e->text_capacity = capacity;
    return TD_OK;
}

/* Earliest place at or after `from` where a stop string stands whole; e->n_text when none does. */
static size_t find_stop(const td_emitter *e, size_t from)
{
    size_t best = e->n_text;
    for (uint32_t i = 0; i < e->n_stops; i++) {
        const td_stop_string *s = &e->stops[i];
        if (from >= e->n_text || e->n_text - from < s->n_bytes)
            continue;
        const char *hit = memmem(e->text + from, e->n_text - from, s->bytes, s->n_bytes);
        if (hit != NULL && (size_t)(hit - e->text) < best)
            best = (size_t)(hit - e->text);
    }
    return best;
}

/* How many bytes at the end of the text may be the start of a stop string. */
static size_t held_back(const td_emitter *e)
{
    size_t most = 0;
    for (uint32_t i = 0; i < e->n_stops; i++) {
        const td_stop_string *s = &e->stops[i];
        size_t n = s->n_bytes - 1 < e->n_text ? s->n_bytes - 1 : e->n_text;
        for (; n > most; n--)
            if (memcmp(e->text + e->n_text - n, s->bytes, n) == 0)
                most = n;
    }
    return most;
}

static void look_for_stops(td_emitter *e, size_t n_new)
{
    if (e->n_seen < e->min_tokens || e->n_stops == 0) {
        e->n_ready = e->n_text;
        return;
    }
    size_t overlap = n_new + TD_EMITTER_MAX_STOP_BYTES;
    size_t from = e->n_text > overlap ? e->n_text - overlap : 0;
    if (from < e->n_ready)
        from = e->n_ready; /* already promised: shown text cannot become part of a stop string */
    size_t stop = find_stop(e, from);
    if (stop < e->n_text) {
        e->stopped = true;
        e->n_text = e->n_ready = stop;
        while (e->n_ids > 0 && e->ends[e->n_ids - 1] > stop)
            e->n_ids--;
        return;
    }
    size_t ready = e->n_text - held_back(e);
    if (ready > e->n_ready)
        e->n_ready = ready;
}

td_status td_emitter_push(td_emitter *e, uint32_t id)
{
    if (e->stopped)
        return TD_OK;
    if (reserve_id(e) != TD_OK)
        return TD_NOMEM;
    size_t n_new = 0;
    if (e->tokenizer != NULL) {
        size_t room = td_tokenizer_describe(e->tokenizer)->max_text_bytes;
        if (reserve_text(e, room) != TD_OK)
            return TD_NOMEM;
        td_status st = td_detok_push(&e->detok, (int32_t)id, e->text + e->n_text, room, &n_new);
        if (st != TD_OK)
            return st;
    }
    e->n_text += n_new;
    e->n_seen++;
    e->ids[e->n_ids] = id;
    /* The first bytes of a character: the text they belong to is still to come. */
    e->ends[e->n_ids++] = e->n_text + (e->detok.n_held > 0);
    look_for_stops(e, n_new);
    return TD_OK;
}

td_status td_emitter_finish(td_emitter *e)
{
    if (e->stopped)
        return TD_OK;
    if (e->tokenizer != NULL) {
        if (reserve_text(e, TD_DETOK_TAIL_BYTES) != TD_OK)
            return TD_NOMEM;
        size_t n_new = td_detok_finish(&e->detok, e->text + e->n_text);
        e->n_text += n_new;
        look_for_stops(e, n_new);
    }
    e->n_ready = e->n_text;
    return TD_OK;
}

void td_emitter_ready(const td_emitter *e, const char **text, size_t *n_text, const uint32_t **ids,
                      uint32_t *n_ids)
{
    uint32_t n = 0;
    while (n < e->n_ids && e->ends[n] <= e->n_ready)
        n++;
    *text = e->text;
    *n_text = e->n_ready;
    *ids = e->ids;
    *n_ids = n;
}

void td_emitter_shown(td_emitter *e)
{
    uint32_t n = 0;
    while (n < e->n_ids && e->ends[n] <= e->n_ready)
        n++;
    e->n_ids -= n;
    if (e->n_ids > 0) {
        memmove(e->ids, e->ids + n, e->n_ids * sizeof(*e->ids));
        memmove(e->ends, e->ends + n, e->n_ids * sizeof(*e->ends));
    }
    for (uint32_t i = 0; i < e->n_ids; i++)
        e->ends[i] -= e->n_ready;
    e->n_text -= e->n_ready;
    if (e->n_text > 0)
        memmove(e->text, e->text + e->n_ready, e->n_text);
    e->n_ready = 0;
}
