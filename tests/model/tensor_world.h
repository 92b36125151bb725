/* tensor_world.h - a prefill on one rank and tensor-parallel decoders on several, in one process,
 * for tests: requests made up from their number, run alone or in crowds. */
#ifndef TD_TESTS_MODEL_TENSOR_WORLD_H
#define TD_TESTS_MODEL_TENSOR_WORLD_H
#include "tests/model/harness.h"

#define TD_TENSOR_MAX_RANKS 4
#define TD_TENSOR_MAX_SEQS 32
#define TD_TENSOR_PAGES_EACH 4
#define TD_TENSOR_MAX_NEW 30

typedef struct { /* a request as far as prefill brings it, and what every rank made of it */
    int32_t prompt[200], n_prompt;
    uint32_t pages[TD_TENSOR_PAGES_EACH];
    td_decode_seq seq;                 /* without hidden */
    void *hidden[TD_TENSOR_MAX_RANKS]; /* device memory of each rank */
    int32_t tokens[TD_TENSOR_MAX_RANKS][TD_TENSOR_MAX_NEW + 1];
    int n_tokens[TD_TENSOR_MAX_RANKS];
} td_tensor_request;

typedef struct {
    td_harness h;
    void *state; /* in the prefill's memory */
    td_comm_group *group;
    td_rank ranks[TD_TENSOR_MAX_RANKS];
    uint32_t n_ranks;
    int enqueued;      /* steps are not recorded, although they can be */
    uint32_t n_graphs; /* that each rank recorded in the last run */
    td_tensor_request r[TD_TENSOR_MAX_SEQS];
} td_tensor_world;

/* cuda: all on GPU 0, or over the GPUs as td_harness_ranks_per_gpu() says. Aborts when it cannot,
 * as do the others. */
void td_tensor_world_open(td_tensor_world *w, const char *dir, td_backend_kind backend, int precise,
                          uint32_t n_ranks);
void td_tensor_world_close(td_tensor_world *w);
/* Requests first .. first + n - 1 through prefill and decoders, joining two steps apart, leaving
 * when they are done. All ranks must come to the same tokens: request i's are w->r[i].tokens[0]. */
void td_tensor_world_run(td_tensor_world *w, int first, int n, uint32_t drafts);
#endif
