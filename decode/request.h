/* request.h - the requests of a decode daemon, from admission to the last page given back. A table
 * of fixed size; a request's row is its slot in the decoder and in the blob memory. Loop thread.
 *
 *   free -> connecting -> drawing -> running;    any of them -> ending -> free
 *   drawing -> connecting: its prefill daemon has to be greeted once more
 *
 * `ending`: the client is gone or the request failed, and a get or the engine may still touch its
 * pages; when both have let go, the pages are free. */
#ifndef TD_DECODE_REQUEST_H
#define TD_DECODE_REQUEST_H
#include "common/base/metrics.h"
#include "common/kv/pool.h"
#include "common/rpc/server.h"
#include "decode/engine.h"
#include "decode/peer.h"

typedef enum {
    TD_REQUEST_FREE,
    TD_REQUEST_CONNECTING, /* its prefill daemon is being greeted */
    TD_REQUEST_DRAWING,    /* prefill computes, pages are drawn */
    TD_REQUEST_RUNNING,    /* in the decoder */
    TD_REQUEST_ENDING,
    TD_REQUEST_N_STATES,
} td_request_state;

typedef struct td_pending_get td_pending_get; /* draw.c */

typedef struct td_requests td_requests;

typedef struct td_request {
    td_requests *table;
    td_request_state state;
    uint64_t owner; /* this process's number of it: owner of its pages, tag of its jobs, prefill's
                       `number` */
    uint32_t slot;  /* the row */
    char id[TD_REQUEST_ID_MAX + 1];
    td_rpc_call *call; /* NULL once it has ended */
    uint32_t *prompt;  /* [n_prompt], owned; gone with prefill's first event */
    uint32_t n_prompt, max_tokens;
    td_sampling sampling; /* forbid[]: ids that end it */
    uint32_t *pages;      /* [n_pages], owned; the first n_prompt_pages are drawn */
    uint32_t n_pages, n_prompt_pages;
    td_peer *peer;
    char prefill_incarnation[TD_INCARNATION_BYTES];
    td_rpc_request *stream; /* of Prefill; NULL when it is over */
    bool asked_again;       /* the prefill had forgotten this process */
    bool prefill_done;      /* the last event came; the prefill holds the pages until released */
    bool released;
    int32_t first_token;
    uint32_t *next_layer; /* [n_prompt_pages], owned: layers below it were announced */
    td_xfer_job *jobs;    /* [n_jobs] live, owned */
    uint32_t n_jobs, jobs_capacity;
    td_pending_get *pending, *last_pending; /* gets that found the transfer layer full, in order */
    uint64_t n_bytes_drawn, n_bytes_early;  /* early: before the prompt was computed */
    bool in_engine;
    uint32_t n_sent, n_drafted, n_accepted;
    int64_t arrived_ns, asked_ns, prefilled_ns, drawn_ns, first_sent_ns, since_ns;
    int64_t deadline_ns; /* the router's, always there */
} td_request;

typedef struct { /* one that ended, for tandemctl */
    char id[TD_REQUEST_ID_MAX + 1], peer[272];
    const char *stage; /* "done", "failed", "cancelled" */
    char error[200];
    uint32_t n_pages; /* of the prompt */
    uint64_t n_bytes, n_bytes_total;
    int64_t ended_ns;
} td_recent;

#define TD_N_RECENT 64

typedef struct {
    td_loop *loop;
    td_decode_engine *engine;
    td_metrics *metrics;
    const td_decode_conf *conf;
    const char *incarnation; /* ours */
} td_requests_conf;

td_status td_requests_create(const td_requests_conf *conf, td_requests **out, td_err *err);
void td_requests_destroy(td_requests *requests); /* NULL is fine */
/* Peers and transfers need each other and the table: set once, before the first request. */
void td_requests_set_transport(td_requests *requests, td_peers *peers, td_xfer *xfer);

typedef struct {
    const char *id;
    td_rpc_call *call;
    const uint32_t *prompt;
    size_t n_prompt;
    uint32_t max_tokens;
    const td_sampling *sampling;
    const char *prefill_address, *prefill_incarnation;
} td_request_args;

/* Reserves every page it may need, then goes to its prefill daemon. TD_EXHAUSTED: no room now;
 * TD_TOO_LARGE: it can never fit (with numbers). */
td_status td_requests_admit(td_requests *requests, const td_request_args *args, td_err *err);
void td_requests_call_gone(td_requests *requests, td_rpc_call *call, td_grpc_status why);

/* What happened to a request; each may free it. */
void td_request_fail(td_requests *requests, td_request *r, td_status st, const char *stage,
                     const char *side, const char *why);
void td_request_drawn(td_requests *requests,
                      td_request *r); /* first token and every page are here */
void td_request_let_go(td_requests *requests,
                       td_request *r); /* one job fewer: an ending one may be free now */
/* Its prefill daemon did not know this process: it waits until that has been greeted again. */
void td_request_ask_again(td_requests *requests, td_request *r);

/* From engine and peers. */
void td_requests_on_result(td_requests *requests, const td_engine_result *result);
void td_requests_on_left(td_requests *requests, uint32_t slot, uint64_t owner);
void td_requests_on_peer_up(td_requests *requests, td_peer *peer);
void td_requests_on_peer_down(td_requests *requests, td_peer *peer, const td_err *why);
uint32_t td_requests_held(td_requests *requests, const td_peer *peer, uint64_t *numbers,
                          uint32_t max);
td_request *td_requests_find(td_requests *requests, uint64_t owner); /* NULL: gone */

const td_requests_conf *td_requests_get_conf(const td_requests *requests);
td_xfer *td_requests_xfer(td_requests *requests);
const td_kv_pool *td_requests_pool(const td_requests *requests);
/* No transfer runs any more. debug-poison: how many free pages were written to; each is logged. */
uint32_t td_requests_check_free(const td_requests *requests);
uint32_t td_requests_count(const td_requests *requests, td_request_state state);
uint32_t td_requests_active(const td_requests *requests); /* all but FREE */
uint32_t td_requests_rows(const td_requests *requests);
uint32_t *td_requests_turn(td_requests *requests); /* the row whose gets are posted next */
td_request *td_requests_row(td_requests *requests, uint32_t row);
/* The i-th latest that ended, i < TD_N_RECENT; NULL: there is none. */
const td_recent *td_requests_recent(const td_requests *requests, uint32_t i);
#endif
