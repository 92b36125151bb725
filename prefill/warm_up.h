/* warm_up.h - a prompt of nobody's before the daemon is ready, so that what a step takes on first
 * use (scratch memory, kernels that are loaded when called) is taken, or missed, at start-up and
 * not by the first long prompt. Loop thread. */
#ifndef TD_PREFILL_WARM_UP_H
#define TD_PREFILL_WARM_UP_H
#include "prefill/engine.h"

typedef struct {
    td_prefill_engine *engine;
    uint32_t chunk, n_page_ids;
    int32_t n_tokens;   /* of the whole prompt, drawn from the pages' first on */
    int32_t at, n_step; /* computed; in the step under way */
    uint32_t n_steps;
    int64_t begun_ns;
    int32_t *tokens; /* [chunk] */
    uint32_t *pages; /* [n_page_ids] 0, 1, 2, .. */
    td_sampling sampling;
} td_warm_up;

/* Tokens of a prompt whose whole chunks reach past `topk` positions (where the indexer begins to
 * select) and end a token before its end, as far as n_pages pages and max_positions allow. */
int32_t td_warm_up_tokens(uint32_t chunk, int32_t topk, uint32_t n_pages, int32_t max_positions);

/* The engine is ready, nothing else steps, and the pool has n_pages pages, all free. Begins the
 * first step. TD_NOMEM. */
td_status td_warm_up_begin(td_warm_up *warm, td_prefill_engine *engine, uint32_t chunk,
                           uint32_t n_pages, td_err *err);
/* The step that was begun is over. True: that was the last, its pages are free again, and `warm`
 * holds nothing any more; false: the next one has begun. */
bool td_warm_up_on_done(td_warm_up *warm);
#endif
