/* slice_decode.h - times decode steps of sequences that all have a copy of one prompt's KV: for one
 * rank, or for one of several, each on its thread. */
#ifndef TD_TESTS_BENCH_SLICE_DECODE_H
#define TD_TESTS_BENCH_SLICE_DECODE_H
#include "model/decode_step.h"
#include "tests/bench/cuda/op_times.h"

#define TD_SLICE_WARM_STEPS 3

typedef struct {
    td_engine_config engine; /* graphs: the steps are recorded; else enqueued, as many rows */
    uint32_t context, max_new, seq_pages, steps;
    const uint32_t *pages; /* [batch, seq_pages], with the prompt's KV in them */
    const void *hidden;    /* device: the state of the prompt's last position */
    int32_t first_token;   /* of the first sequence; the others' differ */
    uint32_t batch, drafts;
    const td_op_phase *phase; /* operations are timed, unless NULL; engine.ops are the timed ones */
} td_slice_decode;

typedef struct {
    double step_s, host_s, tokens; /* of a step; tokens: of a sequence */
    td_decode_graphs graphs;
} td_slice_decoded;

/* All ranks with the same batch, drafts and steps; returns when no rank's stream needs the others'
 * memory any more. */
td_status td_slice_decode_run(const td_slice_decode *decode, td_slice_decoded *out, td_err *err);
/* A line; recorded->step_s 0: no steps were recorded. */
void td_slice_decode_print(const char *title, const td_slice_decoded *recorded,
                           const td_slice_decoded *eager);
#endif
