#include "tests/bench/cuda/slice_prompt.h"

#include <stdlib.h>

td_status td_slice_numbers(const td_conf_list *list, const char *name, uint32_t min, uint32_t max,
                           uint32_t *out, uint32_t *largest, td_err *err)
{
    for (uint32_t i = 0; i < list->n; i++) {
        char *end = NULL;
        unsigned long v = strtoul(list->items[i], &end, 10);
        if (end == list->items[i] || *end != '\0' || v < min || v > max)
            return td_fail(err, TD_CONFIG, "%s: '%s' must be %u to %u", name, list->items[i], min,
                           max);
        out[i] = (uint32_t)v;
        *largest = out[i] > *largest ? out[i] : *largest;
    }
    return TD_OK;
}

void td_slice_tokens(int32_t *tokens, uint32_t n, int vocab_size)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((uint64_t)i * 7919 % (uint64_t)vocab_size);
}

void td_slice_pages(uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        pages[i] = n - 1 - i;
}

td_status td_slice_prompt_run(td_prefill *prefill, const td_slice_prompt *p, uint32_t n_tokens,
                              int32_t *first, td_err *err)
{
    td_sampling greedy;
    td_status st = TD_OK;
    td_sampling_init(&greedy);
    for (uint32_t at = 0, n; at < n_tokens && st == TD_OK; at += n) {
        n = n_tokens - at < p->chunk ? n_tokens - at : p->chunk;
        int last = at + n == n_tokens;
        td_prefill_seq seq = {.start = (int32_t)at,
                              .n_tokens = (int32_t)n,
                              .tokens = p->tokens + at,
                              .next_token = last ? -1 : p->tokens[at + n],
                              .pages = p->pages,
                              .n_pages = p->n_pages,
                              .sampling = last ? &greedy : NULL,
                              .hidden_out = last ? p->hidden : NULL};
        td_prefill_batch batch = {.seqs = &seq, .n_seqs = 1};
        st = td_prefill_run(prefill, &batch, first, err);
    }
    return st;
}
