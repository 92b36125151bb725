/* sampling.h - how a request wants its tokens drawn: plain values that travel between threads and
 * daemons. The draw itself is kernels/sample, keyed by (seed, absolute position). */
#ifndef TD_MODEL_SAMPLING_H
#define TD_MODEL_SAMPLING_H
#include "common/base/status.h"

#include <stdint.h>

#define TD_SAMPLING_MAX_FORBID 64

typedef struct {
    float temperature; /* 0: greedy */
    float top_p;       /* (0, 1]; 1: off */
    int32_t top_k;     /* 0: off */
    uint64_t seed;
    int32_t min_tokens;                     /* before so many tokens none of forbid[] is drawn */
    int32_t n_forbid;                       /* end-of-sequence and stop ids */
    int32_t forbid[TD_SAMPLING_MAX_FORBID]; /* [n_forbid] */
} td_sampling;

/* Greedy, nothing forbidden. */
void td_sampling_init(td_sampling *sampling);
/* TD_INVALID says which value is out of bounds (NaN included). Ids past the vocabulary count as out
 * of bounds. */
td_status td_sampling_check(const td_sampling *sampling, int32_t vocab_size, td_err *err);
#endif
