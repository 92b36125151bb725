/* golden_set.h - a golden checkpoint with its references, and what a run of it must keep to
 * (tests/golden/README.md), on any backend. */
#ifndef TD_TESTS_MODEL_GOLDEN_SET_H
#define TD_TESTS_MODEL_GOLDEN_SET_H
#include "model/safetensors.h"
#include "tests/model/compare.h"
#include "tests/td_test.h"
#include "tools/tandem-logits/run.h"

#define TD_GOLDEN_PRECISE_BOUND 2e-3
#define TD_GOLDEN_N_GREEDY 32

typedef struct {
    char dir[1024];
    td_safetensors *golden, *quantised;
    const int32_t *ids;
    uint32_t n_ids;
    size_t vocab, hidden;
} td_golden_set;

td_golden_set td_golden_open(const char *name);
void td_golden_close(td_golden_set *s);
const float *td_golden_floats(const td_safetensors *file, const char *name);
/* The set's prompt with these options; n_ranks 0 is 1. */
td_logits_result td_golden_run(const td_golden_set *s, td_logits_options o);
td_logits_options td_golden_precise(void);
void td_golden_check_precise(const td_golden_set *s, const td_logits_result *r, const char *what);
/* What the golden file says of the last row, layer by layer; needs dump_layers. */
void td_golden_check_last_row(const td_golden_set *s, const td_logits_result *r);
/* min_rows: so many rows of logits and mtp_logits, from the first on, are equal to 1e-3. */
void td_golden_check_quantised(const td_golden_set *s, const td_logits_result *r, size_t min_rows);
#endif
