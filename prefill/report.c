#include "prefill/report.h"

#include "common/base/clock.h"

#include <string.h>

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

/* Adds a reader's connections to one rank: what they were given, since the oldest was made. */
static uint32_t add_connections(td_prefill_report *r, uint32_t rank, Tandem__V1__Link *row,
                                int64_t now)
{
    td_xfer *xfer = td_prefill_engine_xfer(r->engine, rank);
    uint32_t n = 0;
    uint32_t n_all = xfer != NULL ? td_xfer_readers(xfer, r->connected, TD_PREFILL_MAX_READERS) : 0;
    for (uint32_t i = 0; i < n_all; i++) {
        const td_xfer_reader_info *c = &r->connected[i];
        double age_s = (double)(now - c->since_ns) / 1e9;
        if (strcmp(c->incarnation, row->peer_incarnation) != 0)
            continue;
        row->gets += c->n_pulls;
        row->bytes += c->n_bytes;
        row->age_s = age_s > row->age_s ? age_s : row->age_s;
        n++;
    }
    return n;
}

/* A source sees who is connected and what it gave out; what arrived, and how fast, is the reader's
 * to count. Who has no connection and has not been heard for long is left out. */
uint32_t td_prefill_report_links(void *user, Tandem__V1__Link *rows)
{
    td_prefill_report *r = user;
    int64_t now = td_now_ns();
    uint32_t n = 0;
    for (int i = 0; i < TD_PREFILL_MAX_READERS && n < TD_WORKER_MAX_ROWS; i++) {
        const td_prefill_reader *peer = &r->service->readers.rows[i];
        Tandem__V1__Link *row = &rows[n];
        uint32_t n_connected = 0;
        if (peer->incarnation[0] == '\0')
            continue;
        row->peer = (char *)peer->address;
        row->peer_incarnation = (char *)peer->incarnation;
        row->role = (char *)"source";
        for (uint32_t rank = 0; rank < r->conf->ranks; rank++)
            n_connected += add_connections(r, rank, row, now);
        row->state = (char *)(n_connected > 0 ? "up" : "closed");
        if (n_connected == 0)
            row->age_s = (double)(now - peer->seen_ns) / 1e9;
        if (n_connected > 0 || peer->n_prompts > 0 || now - peer->seen_ns < SHOWN_FOR_NS)
            n++;
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
