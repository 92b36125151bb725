#include "prefill/warm_up.h"

#include "common/base/clock.h"
#include "common/base/log.h"

#include <stdlib.h>

int32_t td_warm_up_tokens(uint32_t chunk, int32_t topk, uint32_t n_pages, int32_t max_positions)
{
    int64_t room = (int64_t)n_pages * TD_PAGE_TOKENS;
    int64_t most = room < max_positions ? room : max_positions;
    int64_t want = ((int64_t)topk / chunk + 1) * chunk + 1;
    if (want <= most)
        return (int32_t)want;
    return (int32_t)((most - 1) / TD_PAGE_TOKENS * TD_PAGE_TOKENS + 1); /* chunks end with a page */
}

/* Pages that the first n tokens fill. */
static uint32_t pages_of(int32_t n)
{
    uint32_t first, last;
    td_step_pages(0, n, &first, &last);
    return last;
}

static void begin_step(td_warm_up *w)
{
    const int32_t left = w->n_tokens - w->n_done, chunk = (int32_t)w->chunk;
    w->n_step = left <= 1 ? left : left - 1 < chunk ? left - 1 : chunk;
    const bool ends = w->n_step == left;
    td_chunk step = {
        .tokens = w->tokens,
        .pages = w->pages,
        .start = w->n_done,
        .n_tokens = w->n_step,
        .next_token = ends ? -1 : 0,
        .n_pages = pages_of(w->n_done + w->n_step),
        .blob_slot = -1,
        .ends = ends,
        .sampling = &w->sampling,
    };
    w->n_steps++;
    td_prefill_engine_step(w->engine, &step, 1);
}

static void give_back(td_warm_up *w)
{
    free(w->tokens);
    free(w->pages);
    w->tokens = NULL;
    w->pages = NULL;
}

td_status td_warm_up_begin(td_warm_up *w, td_prefill_engine *engine, uint32_t chunk,
                           uint32_t n_pages, td_err *err)
{
    const td_model_config *config = td_prefill_engine_config(engine);
    *w = (td_warm_up){.engine = engine, .chunk = chunk, .begun_ns = td_now_ns()};
    td_sampling_init(&w->sampling);
    w->n_tokens = td_warm_up_tokens(chunk, config->index_topk, n_pages, config->max_positions);
    w->n_pages = pages_of(w->n_tokens);
    w->tokens = calloc(chunk, sizeof(*w->tokens));
    w->pages = calloc(w->n_pages, sizeof(*w->pages));
    if (w->tokens == NULL || w->pages == NULL) {
        give_back(w);
        return td_fail(err, TD_NOMEM, "warm-up: no memory for a prompt of %d tokens", w->n_tokens);
    }
    for (uint32_t i = 0; i < chunk; i++)
        w->tokens[i] = (int32_t)(i % (uint32_t)config->vocab_size); /* not all to one expert */
    for (uint32_t i = 0; i < w->n_pages; i++)
        w->pages[i] = i;
    begin_step(w);
    return TD_OK;
}

bool td_warm_up_on_done(td_warm_up *w)
{
    w->n_done += w->n_step;
    if (w->n_done < w->n_tokens) {
        begin_step(w);
        return false;
    }
    td_prefill_engine_retire(w->engine, w->pages, w->n_pages);
    td_info("prefill.warm_up", "tokens=%d steps=%u took_ms=%.1f", w->n_tokens, w->n_steps,
            (double)(td_now_ns() - w->begun_ns) / (double)TD_NS_PER_MS);
    give_back(w);
    return true;
}
