/* probe.h - a record as a test submits it to the dispatcher of a world, and what became of it.
 * Include in one file of a test program. */
#ifndef TD_TESTS_ROUTER_PROBE_H
#define TD_TESTS_ROUTER_PROBE_H
#include "tests/router/world.h"

typedef struct {
    td_record *r; /* NULL: ended */
    bool show;    /* as a front that shows every token at once */
    uint32_t ids[64], n_ids;
    td_outcome outcome;
    int64_t ended_ns;
} probe;

static inline void probe_tokens(td_record *r, const uint32_t *ids, uint32_t n)
{
    probe *p = r->user;
    memcpy(p->ids + p->n_ids, ids, n * sizeof(*ids));
    p->n_ids += n;
    r->streamed = p->show;
}

static inline void probe_end(td_record *r, const td_outcome *outcome)
{
    probe *p = r->user;
    p->outcome = *outcome;
    p->ended_ns = td_now_ns();
    p->r = NULL;
}

static inline td_status submit(world *w, probe *p, uint32_t n_prompt, uint32_t max_tokens,
                               int64_t deadline_ms, td_err *err)
{
    td_record *r = calloc(1, sizeof(*r));
    memset(p, 0, sizeof(*p));
    p->show = true;
    snprintf(r->id, sizeof(r->id), "req-%u", n_prompt);
    r->prompt = calloc(n_prompt, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_prompt; i++)
        r->prompt[i] = i;
    r->n_prompt = n_prompt;
    r->max_tokens = max_tokens;
    r->sampling = (td_record_sampling){
        .temperature = 0.5f, .top_p = 0.9f, .top_k = 4, .min_tokens = 2, .seed = 99};
    r->arrived_ns = td_now_ns();
    r->deadline_ns = r->arrived_ns + deadline_ms * TD_NS_PER_MS;
    r->on_tokens = probe_tokens;
    r->on_end = probe_end;
    r->user = p;
    td_status st = td_dispatch_submit(w->dispatch, r, err);
    p->r = st == TD_OK ? r : NULL;
    return st;
}

static inline fake_call *started(world *w, uint32_t i)
{
    RUN_UNTIL(w, world_n_calls(w) > i);
    return world_call(w, i);
}

static inline void resize(world *w, fake_worker *f, uint32_t pages)
{
    f->pages = pages;
    RUN_UNTIL(w, td_worker_total_pages(world_registered(w, f)) == pages);
}

static inline bool ended_within(const probe *p, int64_t since_ns, int64_t ms)
{
    return p->r == NULL && p->ended_ns - since_ns < ms * TD_NS_PER_MS;
}
#endif
