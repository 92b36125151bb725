/* schedule.h - which chunks make the next step: prompts in order of arrival share the step's
 * tokens; a chunk that does not end its prompt ends at a page border, so that a page is finished by
 * one chunk. Pure. */
#ifndef TD_PREFILL_SCHEDULE_H
#define TD_PREFILL_SCHEDULE_H
#include "prefill/prompt.h"

typedef struct {
    uint32_t n;
    uint32_t rows[TD_STEP_MAX_SEQS];    /* [n] rows of the table */
    int32_t n_tokens[TD_STEP_MAX_SEQS]; /* [n] of this step */
} td_step_plan;

typedef struct {
    uint32_t first_page, last_page; /* pages that the chunk finishes */
} td_step_chunk;

/* n is 0 when nothing can be computed. */
void td_schedule_next(const td_prompt *rows, uint32_t n_rows, uint32_t max_tokens,
                      uint32_t max_seqs, td_step_plan *out);
/* The next n_tokens of a prompt as the engine takes them; out points into the prompt. */
void td_schedule_chunk(const td_prompt *prompt, int32_t n_tokens, td_chunk *out);
td_step_chunk td_schedule_pages(const td_prompt *prompt, int32_t n_tokens);
#endif
