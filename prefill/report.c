#include "prefill/report.h"

#include "common/base/clock.h"

#include <string.h>

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

/* A source sees who connected and what it gave out; bytes and rates are the reader's to count. */
uint32_t td_prefill_report_links(void *user, Tandem__V1__Link *rows)
{
    const td_prefill_report *r = user;
    int64_t now = td_now_ns();
    uint32_t n = 0;
    for (int i = 0; i < TD_PREFILL_MAX_PEERS && n < TD_WORKER_MAX_ROWS; i++) {
        const td_decode_peer *peer = &r->service->peers[i];
        if (peer->incarnation[0] == '\0')
            continue;
        rows[n].peer = (char *)peer->address;
        rows[n].peer_incarnation = (char *)peer->incarnation;
        rows[n].role = (char *)"source";
        rows[n].state = (char *)"up";
        rows[n].gets = peer->n_pages;
        rows[n].bytes = peer->n_pages * td_prefill_engine_layout(r->engine)->page_stride;
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

uint32_t td_prefill_report_transfers(void *user, bool live_only, Tandem__V1__Transfer *rows)
{
    const td_prefill_report *r = user;
    int64_t now = td_now_ns();
    uint32_t n = 0;
    (void)live_only; /* a source knows live ones only */
    for (uint32_t i = 0;
         r->prompts != NULL && i < td_prompts_rows(r->prompts) && n < TD_WORKER_MAX_ROWS; i++) {
        const td_prompt *p = td_prompts_row(r->prompts, i);
        if (p->state == TD_PROMPT_FREE)
            continue;
        rows[n].request_id = (char *)p->id;
        rows[n].peer = (char *)p->decode_incarnation;
        rows[n].stage = (char *)stage_of(p);
        rows[n].role = (char *)"source";
        rows[n].age_s = (double)(now - p->since_ns) / 1e9;
        rows[n].pages = (uint32_t)p->n_done / TD_PAGE_TOKENS;
        rows[n].pages_total = p->n_pages;
        rows[n++].bytes_total = p->n_pages * td_prefill_engine_layout(r->engine)->page_stride;
    }
    return n;
}
