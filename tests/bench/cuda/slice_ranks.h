/* slice_ranks.h - times decode steps of a slice on several tensor-parallel ranks. */
#ifndef TD_TESTS_BENCH_SLICE_RANKS_H
#define TD_TESTS_BENCH_SLICE_RANKS_H
#include "model/rank.h"
#include "tests/bench/cuda/slice_decode.h"

typedef struct {
    td_rank_options options; /* rank 0's, but for the cut of the weights */
    td_comm_form comm;
    uint32_t n_ranks;
    td_slice_decode steps;   /* what does not depend on the rank; pages: of all sequences */
    const unsigned char *kv; /* [the context's pages, page stride] host */
    const void *hidden;      /* [hidden_bytes] host */
    size_t hidden_bytes;
    const uint32_t *batches, *drafts;
    uint32_t n_batches, n_drafts, max_batch;
} td_slice_ranks;

/* Makes the ranks, each with its share of the weights and the context in all sequences' pages, and
 * prints a line for each number of drafts and sequences: recorded, where ranks can, and eager. */
td_status td_slice_ranks_run(const td_slice_ranks *ranks, td_err *err);
#endif
