#include "prefill/schedule.h"

/* The earliest computing prompt behind `order`; -1: none. */
static int64_t next_by_order(const td_prompt *rows, uint32_t n_rows, uint64_t order)
{
    int64_t best = -1;
    for (uint32_t i = 0; i < n_rows; i++)
        if (rows[i].state == TD_PROMPT_COMPUTING && !rows[i].cancelled && rows[i].order > order &&
            (best < 0 || rows[i].order < rows[best].order))
            best = i;
    return best;
}

void td_schedule_next(const td_prompt *rows, uint32_t n_rows, uint32_t max_tokens,
                      uint32_t max_seqs, td_step_plan *out)
{
    int32_t left = (int32_t)max_tokens;
    uint64_t order = 0;
    out->n = 0;
    while (out->n < max_seqs && left > 0) {
        int64_t row = next_by_order(rows, n_rows, order);
        if (row < 0)
            return;
        int32_t n = rows[row].n_tokens - rows[row].n_done;
        if (n > left)
            n = left / TD_PAGE_TOKENS * TD_PAGE_TOKENS;
        if (n == 0)
            return;
        order = rows[row].order;
        out->rows[out->n] = (uint32_t)row;
        out->n_tokens[out->n++] = n;
        left -= n;
    }
}

void td_schedule_chunk(const td_prompt *p, int32_t n_tokens, td_chunk *out)
{
    int32_t end = p->n_done + n_tokens;
    bool ends = end == p->n_tokens;
    *out = (td_chunk){
        .tokens = p->tokens + p->n_done,
        .pages = p->pages,
        .start = p->n_done,
        .n_tokens = n_tokens,
        .next_token = ends ? -1 : p->tokens[end],
        .n_pages = td_schedule_pages(p, n_tokens).last_page,
        .blob_slot = p->blob_slot,
        .ends = ends,
        .sampling = &p->sampling,
    };
}

td_step_chunk td_schedule_pages(const td_prompt *p, int32_t n_tokens)
{
    td_step_chunk c;
    td_step_pages(p->n_done, n_tokens, &c.first_page, &c.last_page);
    return c;
}
