/* slice_prompt.h - a prompt of a slice, made and run in chunks. */
#ifndef TD_TESTS_BENCH_SLICE_PROMPT_H
#define TD_TESTS_BENCH_SLICE_PROMPT_H
#include "common/base/conf.h"
#include "model/prefill_step.h"

typedef struct {
    const int32_t *tokens;
    const uint32_t *pages; /* [n_pages] */
    uint32_t n_pages;
    uint32_t chunk; /* tokens of a step */
    void *hidden;   /* device: the state of the last position; NULL: not wanted */
} td_slice_prompt;

/* The list's numbers, each from min to max, to out; *largest becomes the largest of them if it was
 * smaller. TD_CONFIG. */
td_status td_slice_numbers(const td_conf_list *list, const char *name, uint32_t min, uint32_t max,
                           uint32_t *out, uint32_t *largest, td_err *err);
/* Some token of a vocabulary for each of n places. */
void td_slice_tokens(int32_t *tokens, uint32_t n, int vocab_size);
/* Pages n - 1 .. 0: no two neighbours of a sequence side by side. */
void td_slice_pages(uint32_t *pages, uint32_t n);
/* The prompt's first n_tokens; on every rank. *first: the token behind them (rank 0). */
td_status td_slice_prompt_run(td_prefill *prefill, const td_slice_prompt *prompt, uint32_t n_tokens,
                              int32_t *first, td_err *err);
#endif
