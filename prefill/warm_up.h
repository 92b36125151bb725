/* warm_up.h - a made-up prompt, computed before the daemon is ready: memory that a whole step
 * allocates on its first use is there or found to be lacking, and most kernels are loaded, before
 * the first real prompt. Nobody is told of its pages. Loop thread. */
#ifndef TD_PREFILL_WARM_UP_H
#define TD_PREFILL_WARM_UP_H
#include "prefill/engine.h"

typedef struct {
    td_prefill_engine *engine;
    uint32_t chunk, n_pages; /* of the prompt: pages 0, 1, 2, .. */
    int32_t n_tokens;        /* of the whole prompt */
    int32_t n_done;          /* tokens computed */
    int32_t n_step;          /* tokens of the step under way */
    uint32_t n_steps;
    int64_t begun_ns;
    int32_t *tokens; /* [chunk] */
    uint32_t *pages; /* [n_pages] */
    td_sampling sampling;
} td_warm_up;

/* Tokens of a prompt of whole chunks that reach past `topk` positions, from where on the indexer
 * selects, and one token more; fewer where n_pages pages or max_positions do not hold them. */
int32_t td_warm_up_tokens(uint32_t chunk, int32_t topk, uint32_t n_pages, int32_t max_positions);

/* The engine is ready, nobody else has it step, and its pool of n_pages pages is free. Begins the
 * first step. TD_NOMEM: nothing has begun. */
td_status td_warm_up_begin(td_warm_up *warm, td_prefill_engine *engine, uint32_t chunk,
                           uint32_t n_pages, td_err *err);
static inline bool td_warm_up_runs(const td_warm_up *warm) /* zeroed: no */
{
    return warm->tokens != NULL;
}
/* The step that was begun is over. True: it was the last, its pages are free again, and `warm`
 * holds nothing any more; false: the next one has begun. */
bool td_warm_up_on_done(td_warm_up *warm);
#endif
