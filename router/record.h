/* record.h - one request as the router knows it, from its arrival to its end. It keeps the prompt
 * and every generated token, so that a stream can go on elsewhere (carrying on in mid-stream comes
 * later). Loop thread. */
#ifndef TD_ROUTER_RECORD_H
#define TD_ROUTER_RECORD_H
#include "common/loop/loop.h"
#include "common/serve/ident.h"
#include "router/registry.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_MAX_STOP_IDS 64

typedef enum {
    TD_RECORD_QUEUED,  /* waits for a pair with room */
    TD_RECORD_RUNNING, /* has a stream to a decode daemon */
    TD_RECORD_ENDED,
} td_record_state;

typedef struct {
    float temperature, top_p;
    uint32_t top_k, min_tokens;
    uint64_t seed;
    uint32_t
        stop_ids[TD_MAX_STOP_IDS]; /* [n_stop_ids], the model's end-of-sequence ids among them */
    uint32_t n_stop_ids;
} td_record_sampling;

/* How a request ended; strings live as long as the record. */
typedef struct {
    td_grpc_status status;
    char message[600];
    const char *finish_reason; /* "stop", "length"; NULL unless status is OK */
} td_outcome;

typedef struct td_record td_record;
struct td_record {
    char id[TD_REQUEST_ID_MAX + 1];
    td_record_state state;
    uint32_t *prompt; /* [n_prompt], owned */
    uint32_t n_prompt;
    uint32_t *generated; /* [n_generated] of [generated_capacity], owned */
    uint32_t n_generated, generated_capacity;
    uint32_t max_tokens;
    td_record_sampling sampling;
    int64_t arrived_ns, deadline_ns;
    int64_t placed_ns, first_token_ns; /* of the last attempt; 0: not yet */
    uint32_t n_attempts;
    bool streamed; /* the client has seen a token: it cannot be started again */
    const td_worker *avoid[TD_N_ROLES];     /* left out of the next attempt */
    td_worker *worker[TD_N_ROLES];          /* of the present attempt */
    const td_worker *served_by[TD_N_ROLES]; /* of the last attempt; NULL: there was none */
    td_claim claim[TD_N_ROLES];
    bool claimed[TD_N_ROLES];  /* prefill's only until the first token */
    td_rpc_request *stream;    /* to decode */
    const char *finish_reason; /* NULL until decode named one */
    uint32_t n_drafted, n_accepted;
    double admission_s, prefill_s, transfer_s; /* decode's account; 0 before the first token */
    char lost_side[16];                        /* from the decode daemon's Failure */
    td_timer timer;                            /* queued: when it is looked at again */
    int64_t unready_ns;                        /* queued: since when no pair is ready; 0: one is */
    td_record *prev, *next;                    /* in the queue */
    /* the owner's (the front's) */
    void (*on_tokens)(td_record *record, const uint32_t *ids, uint32_t n);
    void (*on_end)(td_record *record, const td_outcome *outcome); /* last use */
    void *user;
};
#endif
