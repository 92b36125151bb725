#include "decode/report.h"

#include "common/base/clock.h"
#include "decode/draw.h"

#include <string.h>

void td_decode_report_status(void *user, Tandem__V1__WorkerStatus *status)
{
    const td_decode_report *d = user;
    const td_model_config *config = td_decode_engine_config(d->engine);
    status->model = d->conf->w.model;
    status->max_requests = d->conf->w.max_requests;
    status->page_tokens = TD_KV_PAGE_ROWS;
    status->context_length = (uint32_t)config->max_positions;
    status->vocab_size = (uint32_t)config->vocab_size;
    status->drafts = td_decode_engine_drafts(d->engine);
    status->ranks = 1;
    if (d->requests == NULL)
        return;
    status->requests_active = td_requests_active(d->requests);
    for (uint32_t i = 0; i < td_requests_rows(d->requests); i++) {
        const td_request *r = td_requests_row(d->requests, i);
        if (r->state != TD_REQUEST_FREE)
            status->tokens_active += r->n_prompt + r->n_sent;
    }
    for (int s = 0; s < TD_PAGE_N_STATES; s++) {
        status->pages[s]->state = (char *)td_page_state_name((td_page_state)s);
        status->pages[s]->pages = td_kv_pool_count(td_requests_pool(d->requests), (td_page_state)s);
    }
    status->n_pages = TD_PAGE_N_STATES;
}

static const char *link_state(td_xfer_link_state state)
{
    switch (state) {
    case TD_XFER_LINK_READY: return "up";
    case TD_XFER_LINK_CLOSED: return "closed";
    default: return "connecting";
    }
}

uint32_t td_decode_report_links(void *user, Tandem__V1__Link *rows)
{
    td_decode_report *d = user;
    if (d->xfer == NULL)
        return 0;
    uint32_t n = td_xfer_links(d->xfer, d->links, TD_WORKER_MAX_ROWS);
    int64_t now = td_now_ns();
    for (uint32_t i = 0; i < n; i++) {
        td_xfer_link_info *l = &d->links[i];
        rows[i].peer = l->peer;
        rows[i].peer_incarnation = l->peer_incarnation;
        rows[i].peer_rank = l->peer_rank;
        rows[i].role = (char *)"reader";
        rows[i].transport = l->transport;
        rows[i].state = (char *)link_state(l->state);
        rows[i].bytes = l->n_bytes;
        rows[i].gets = l->n_gets;
        rows[i].failures = l->n_failed_gets;
        rows[i].crc_mismatches = l->n_crc_mismatches;
        rows[i].refetched_pages = l->n_refetches;
        rows[i].rate_bytes_per_s = (double)l->bytes_per_s;
        rows[i].gets_in_flight = l->n_in_flight;
        rows[i].age_s = (double)(now - l->opened_ns) / 1e9;
    }
    return n;
}

static const char *stage_of(const td_request *r)
{
    switch (r->state) {
    case TD_REQUEST_CONNECTING: return "admitted";
    case TD_REQUEST_DRAWING: return r->prefill_done ? "drawing" : "prefill";
    case TD_REQUEST_RUNNING: return "done";
    default: return "ending";
    }
}

static void fill_live(const td_decode_report *d, td_request *r, int64_t now,
                      Tandem__V1__Transfer *row)
{
    row->request_id = r->id;
    row->peer = r->peer != NULL ? r->peer->address : (char *)"";
    row->stage = (char *)stage_of(r);
    row->age_s = (double)(now - r->since_ns) / 1e9;
    row->bytes = r->n_bytes_drawn;
    row->bytes_total = td_draw_bytes(d->requests, r);
    row->pages = (uint32_t)(r->n_prompt_pages * row->bytes / row->bytes_total);
    row->pages_total = r->n_prompt_pages;
    row->role = (char *)"reader";
}

static void fill_recent(const td_recent *e, int64_t now, Tandem__V1__Transfer *row)
{
    row->request_id = (char *)e->id;
    row->peer = (char *)e->peer;
    row->stage = (char *)e->stage;
    row->error = (char *)e->error;
    row->age_s = (double)(now - e->ended_ns) / 1e9;
    row->pages = (uint32_t)(e->n_pages * e->n_bytes / e->n_bytes_total);
    row->pages_total = e->n_pages;
    row->bytes = e->n_bytes;
    row->bytes_total = e->n_bytes_total;
    row->role = (char *)"reader";
}

uint32_t td_decode_report_transfers(void *user, bool live_only, Tandem__V1__Transfer *rows)
{
    const td_decode_report *d = user;
    int64_t now = td_now_ns();
    uint32_t n = 0;
    if (d->requests == NULL)
        return 0;
    for (uint32_t i = 0; i < td_requests_rows(d->requests); i++) {
        td_request *r = td_requests_row(d->requests, i);
        if (r->state == TD_REQUEST_FREE || (live_only && r->state == TD_REQUEST_RUNNING))
            continue;
        if (n < TD_WORKER_MAX_ROWS)
            fill_live(d, r, now, &rows[n]);
        n++;
    }
    for (uint32_t i = 0; !live_only; i++, n++) {
        const td_recent *e = td_requests_recent(d->requests, i);
        if (e == NULL)
            break;
        if (n < TD_WORKER_MAX_ROWS)
            fill_recent(e, now, &rows[n]);
    }
    return n;
}
