#include "tests/bench/cuda/slice_decode.h"

#include "common/base/clock.h"

#include <stdio.h>
#include <stdlib.h>

static td_status join(const td_slice_decode *c, td_decode *decode, td_err *err)
{
    td_status st = TD_OK;
    const int32_t vocab = c->engine.weights->config.vocab_size;
    for (uint32_t i = 0; i < c->batch && st == TD_OK; i++) {
        td_decode_seq seq = {.prompt_len = (int32_t)c->context,
                             .first_token = (c->first_token + (int32_t)i) % vocab,
                             .hidden = c->hidden,
                             .pages = c->pages + (size_t)i * c->seq_pages,
                             .n_pages = c->seq_pages,
                             .max_new_tokens = (int32_t)c->max_new,
                             .max_drafts = c->drafts};
        td_sampling_init(&seq.sampling);
        st = td_decode_join(decode, i, &seq, err);
    }
    return st;
}

/* results [batch] */
static td_status run_steps(td_decode *decode, td_decode_result *results, uint32_t n,
                           uint64_t *n_tokens, td_err *err)
{
    uint32_t n_results = 0;
    for (uint32_t i = 0; i < n; i++) {
        td_status st = td_decode_run(decode, results, &n_results, err);
        if (st < 0)
            return st;
        for (uint32_t r = 0; r < n_results; r++)
            *n_tokens += results[r].n_tokens;
    }
    return TD_OK;
}

static td_status time_steps(const td_slice_decode *c, td_decode *d, td_decode_result *results,
                            td_slice_decoded *out, td_err *err)
{
    uint64_t n_tokens = 0;
    td_status st = run_steps(d, results, TD_SLICE_WARM_STEPS, &n_tokens, err);
    if (st == TD_OK && c->phase != NULL)
        st = td_stream_sync(td_device_stream(c->engine.device), err);
    if (st == TD_OK && c->phase != NULL)
        td_op_times_begin(c->phase);
    if (st < 0)
        return st;
    int64_t waited = td_decode_waited_ns(d), start = td_now_ns();
    n_tokens = 0;
    st = run_steps(d, results, c->steps, &n_tokens, err);
    int64_t took = td_now_ns() - start;
    waited = td_decode_waited_ns(d) - waited;
    out->step_s = (double)took * 1e-9 / c->steps;
    out->host_s = (double)(took - waited) * 1e-9 / c->steps;
    out->tokens = (double)n_tokens / c->steps / c->batch;
    out->graphs = *td_decode_graphs_report(d);
    return st;
}

td_status td_slice_decode_run(const td_slice_decode *c, td_slice_decoded *out, td_err *err)
{
    td_decode *d = NULL;
    td_decode_result *results = calloc(c->batch, sizeof(*results));
    td_status st = results == NULL ? td_fail(err, TD_NOMEM, "no memory for %u sequences", c->batch)
                                   : td_decode_create(&c->engine, c->batch, c->drafts,
                                                      c->engine.graphs ? 0 : c->batch, &d, err);
    if (st == TD_OK)
        st = join(c, d, err);
    if (st == TD_OK)
        st = time_steps(c, d, results, out, err);
    if (st == TD_OK && c->engine.comm != NULL && (st = td_comm_barrier(c->engine.comm)) < 0)
        td_fail(err, st, "another rank failed");
    td_decode_destroy(d);
    free(results);
    return st;
}

void td_slice_decode_print(const char *title, const td_slice_decoded *recorded,
                           const td_slice_decoded *eager)
{
    printf("%s:", title);
    if (recorded->step_s > 0)
        printf(" recorded %.3f ms a step (host %.0f us; %u operations, %u graphs in %.1f MiB, %.2f "
               "s),",
               recorded->step_s * 1e3, recorded->host_s * 1e6, recorded->graphs.n_nodes,
               recorded->graphs.n_graphs, (double)recorded->graphs.n_bytes / 1048576.0,
               (double)recorded->graphs.took_ns * 1e-9);
    printf(" eager %.3f ms (host %.0f us); %.2f tokens of each a step\n", eager->step_s * 1e3,
           eager->host_s * 1e6, eager->tokens);
    fflush(stdout);
}
