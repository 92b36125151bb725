#include "prefill/report.h"

#include "common/base/clock.h"

#define SHOWN_FOR_NS (600 * TD_NS_PER_S)

void td_prefill_report_status(void *user, Tandem__V1__WorkerStatus *status)
{
    const td_prefill_report *r = user;
    const td_model_config *config = td_prefill_engine_config(r->engine);
    status->model = r->conf->w.model;
    status->max_requests = r->conf->w.max_requests;
    status->page_tokens = TD_PAGE_TOKENS;
    status->context_length = (uint32_t)config->max_positions;
    status->vocab_size = (uint32_t)config->vocab_size;
    status->ranks = r->conf->ranks;
    if (r->prompts == NULL)
        return;
    status->requests_active = td_prompts_active(r->prompts);
    status->requests_queued = td_prompts_count(r->prompts, TD_PROMPT_WAITING);
    status->tokens_active = td_prompts_tokens_left(r->prompts);
    for (int s = 0; s < TD_PAGE_N_STATES; s++) {
        status->pages[s]->state = (char *)td_page_state_name((td_page_state)s);
        status->pages[s]->pages = td_kv_pool_count(td_prompts_pool(r->prompts), (td_page_state)s);
    }
    status->n_pages = TD_PAGE_N_STATES;
}

/* A source sees who connected and what it gave out; what arrived, and how fast, is the reader's to
 * count. Who has not been heard for long may be gone, and is left out. */
uint32_t td_prefill_report_links(void *user, Tandem__V1__Link *rows)
{
    const td_prefill_report *r = user;
    int64_t now = td_now_ns();
    uint32_t n = 0;
    for (int i = 0; i < TD_PREFILL_MAX_READERS && n < TD_WORKER_MAX_ROWS; i++) {
        const td_prefill_reader *peer = &r->service->readers.rows[i];
        if (peer->incarnation[0] == '\0' ||
            (peer->n_prompts == 0 && now - peer->seen_ns > SHOWN_FOR_NS))
            continue;
        rows[n].peer = (char *)peer->address;
        rows[n].peer_incarnation = (char *)peer->incarnation;
        rows[n].role = (char *)"source";
        rows[n].state = (char *)"up";
        rows[n].gets = peer->n_pages_served;
        rows[n].bytes = peer->n_pages_served * td_prefill_engine_layout(r->engine)->page_stride;
        rows[n++].age_s = (double)(now - peer->seen_ns) / 1e9;
    }
    return n;
}

static const char *stage_of(const td_prompt *p)
{
    switch (p->state) {
    case TD_PROMPT_WAITING: return "waiting";
    case TD_PROMPT_COMPUTING: return "prefill";
    default: return "served";
    }
}

static void fill_row(const td_prefill_report *r, const td_prompt *p, int64_t now,
                     Tandem__V1__Transfer *row)
{
    row->request_id = (char *)p->id;
    row->peer = (char *)p->reader->address;
    row->stage = (char *)stage_of(p);
    row->role = (char *)"source";
    row->age_s = (double)(now - p->since_ns) / 1e9;
    row->pages = p->n_done == p->n_tokens ? p->n_pages : (uint32_t)p->n_done / TD_PAGE_TOKENS;
    row->pages_total = p->n_pages;
    row->bytes_total = p->n_pages * td_prefill_engine_layout(r->engine)->page_stride;
}

uint32_t td_prefill_report_transfers(void *user, bool live_only, Tandem__V1__Transfer *rows)
{
    const td_prefill_report *r = user;
    int64_t now = td_now_ns();
    uint32_t n = 0;
    (void)live_only; /* a source knows live ones only */
    for (uint32_t i = 0; r->prompts != NULL && i < td_prompts_rows(r->prompts); i++) {
        const td_prompt *p = td_prompts_row(r->prompts, i);
        if (p->state == TD_PROMPT_FREE)
            continue;
        if (n < TD_WORKER_MAX_ROWS)
            fill_row(r, p, now, &rows[n]);
        n++;
    }
    return n;
}
