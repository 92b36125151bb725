/* prompt.h - the prompts of a prefill daemon: waiting for pages, computing, then serving their
 * pages until Release, cancellation or the end of the lease. A table of fixed size; every page,
 * blob and row dies with its prompt. Loop thread. */
#ifndef TD_PREFILL_PROMPT_H
#define TD_PREFILL_PROMPT_H
#include "common/base/metrics.h"
#include "common/kv/pool.h"
#include "common/rpc/server.h"
#include "prefill/engine.h"
#include "prefill/readers.h"

typedef enum {
    TD_PROMPT_FREE,
    TD_PROMPT_WAITING,   /* for pages */
    TD_PROMPT_COMPUTING, /* has all its pages; some chunks may be done */
    TD_PROMPT_SERVED,    /* finished; its pages wait for their reader */
    TD_PROMPT_N_STATES,
} td_prompt_state;

typedef struct {
    td_prompt_state state;
    uint64_t owner;  /* of its pages; this process's own number */
    uint64_t number; /* the decode process's */
    td_prefill_reader *reader;
    char id[TD_REQUEST_ID_MAX + 1];
    td_rpc_call *call; /* NULL once the stream has ended */
    int32_t *tokens;   /* [n_tokens], owned */
    int32_t n_tokens, n_done;
    td_sampling sampling;
    bool want_draft;
    bool in_step;   /* a chunk of it is being computed: its pages cannot be given back yet */
    bool cancelled; /* in_step only: give back when the step is over */
    uint32_t *pages, *generations; /* [n_pages], owned */
    uint32_t n_pages;
    int32_t blob_slot; /* -1: none */
    uint32_t blob_generation;
    int64_t arrived_ns, began_ns, since_ns /* in this state */, lease_ns /* SERVED: its end */;
    uint64_t order; /* of arrival */
} td_prompt;

typedef struct td_prompts td_prompts;

typedef struct {
    td_loop *loop;
    td_prefill_engine *engine;
    td_metrics *metrics;
    const td_prefill_conf *conf;
    const char *incarnation; /* ours, in every event */
} td_prompts_conf;

td_status td_prompts_create(const td_prompts_conf *conf, td_prompts **out, td_err *err);
void td_prompts_destroy(td_prompts *prompts); /* NULL is fine */

typedef struct {
    const char *id;
    td_prefill_reader *reader;
    uint64_t number;
    td_rpc_call *call;
    const uint32_t *tokens;
    size_t n_tokens;
    const td_sampling *sampling;
    bool want_draft;
} td_prompt_args;

/* Takes a prompt in and starts computing when there is room. TD_EXHAUSTED: no row, or too many
 * wait; TD_TOO_LARGE: it can never fit (with numbers); TD_INVALID: its number is known already. */
td_status td_prompts_add(td_prompts *prompts, const td_prompt_args *args, td_err *err);
/* The reader has what it needs, or gave up. Unknown: nothing. */
void td_prompts_release(td_prompts *prompts, const char *decode_incarnation, uint64_t number);
/* False: not held here. */
bool td_prompts_renew(td_prompts *prompts, const char *decode_incarnation, uint64_t number);
/* The stream is over: unless it is served already, the prompt ends. */
void td_prompts_call_gone(td_prompts *prompts, td_rpc_call *call, td_grpc_status why);

/* From the engine. */
void td_prompts_on_group(td_prompts *prompts, uint32_t first_layer, uint32_t last_layer,
                         const uint32_t *crc, uint32_t n);
void td_prompts_on_done(td_prompts *prompts, const td_step_result *results, uint32_t n);

uint32_t td_prompts_count(const td_prompts *prompts, td_prompt_state state);
uint32_t td_prompts_active(const td_prompts *prompts); /* all but FREE */
uint64_t td_prompts_tokens_left(const td_prompts *prompts);
const td_kv_pool *td_prompts_pool(const td_prompts *prompts);
/* Nothing computes. debug-poison: how many free pages were written to; each is logged. */
uint32_t td_prompts_check_free(td_prompts *prompts);
uint32_t td_prompts_rows(const td_prompts *prompts);
const td_prompt *td_prompts_row(const td_prompts *prompts, uint32_t row);
#endif
