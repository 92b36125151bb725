/* world.h - a prefill daemon's service and table of prompts over a made-up engine, with a client,
 * all on one loop. The engine takes steps and finishes them when the test says so. */
#ifndef TD_TESTS_PREFILL_WORLD_H
#define TD_TESTS_PREFILL_WORLD_H
#include "tests/td_loop_test.h"

#include "common/base/clock.h"
#include "common/serve/message.h"
#include "prefill/service.h"
#include "proto/tandem/v1/prefill.pb-c.h"

#define VOCAB 1000
#define CONTEXT 1024
#define N_LAYERS 2 /* and a draft layer behind them */
#define DECODE_A "aaaaaaaaaaaaaaaa"
#define DECODE_B "bbbbbbbbbbbbbbbb"

typedef struct { /* a step that the engine was given */
    uint32_t n;
    uint32_t n_tokens[8], n_pages[8], first_page[8];
    int32_t start[8], next_token[8], blob_slot[8];
    uint32_t pages[8][32];
} made_up_step;

typedef struct {         /* one Prefill, as the decode daemon sees it */
    td_rpc_request *req; /* NULL: over */
    td_grpc_status status;
    char message[300];
    Tandem__V1__PrefillEvent *events[16]; /* [n_events] */
    uint32_t n_events;
} asking;

typedef struct {
    td_loop *loop;
    td_metrics *metrics;
    td_serve *serve;
    td_prefill_conf conf;
    td_prefill_engine *engine;
    td_prompts *prompts;
    td_prefill_service service;
    td_rpc_method methods[TD_PREFILL_N_METHODS];
    td_rpc_server *server;
    td_rpc_client *client;
    td_timer patience;
    uint32_t n_open;
} world;

/* conf: NULL takes 8 pages, 4 rows, a queue of 2, chunks of 128 tokens, leases of 400 ms. Both
 * decode daemons have shaken hands. */
void world_open(world *w, const td_prefill_conf *conf);
td_prefill_conf world_conf(void);
/* Finishes the steps that are left, waits for leases; nothing is held then (checked); closes all.
 */
void world_close(world *w);
void world_turn(world *w); /* about a millisecond */
#define RUN_UNTIL(w, cond)                                                                         \
    do {                                                                                           \
        while (!(cond))                                                                            \
            world_turn(w);                                                                         \
    } while (0)

const made_up_step *world_step(world *w); /* the one under way; waits for it */
uint32_t world_n_steps(const world *w);   /* ever */
void world_finish_step(world *w);         /* announces every layer, then ends it */

typedef struct {
    const char *decode; /* [DECODE_A] */
    uint64_t number;
    uint32_t n_tokens;
    bool want_draft;
    int64_t deadline_ms; /* [10 s]; NO_DEADLINE */
} prompt;
#define NO_DEADLINE (-1)
void ask(world *w, asking *a, const prompt *p);
/* A request made by hand; deadline as above. */
void ask_raw(world *w, asking *a, const Tandem__V1__PrefillRequest *request, int64_t deadline_ms);
void forget(asking *a);                    /* frees the events; cancels it when it runs */
td_grpc_status ended(world *w, asking *a); /* waits for its end */
void release(world *w, const char *decode, uint64_t number);
/* The same, meant for a process of that incarnation; its outcome. */
td_grpc_status release_of(world *w, const char *incarnation, const char *decode, uint64_t number);
/* How many of the numbers are not held there. */
size_t renew(world *w, const char *decode, const uint64_t *numbers, size_t n);
uint32_t pages_in(const world *w, td_page_state state);
/* The generation under which readers may read it; 0: none. */
uint32_t world_published(const world *w, uint32_t page);
uint32_t world_blob_published(const world *w, uint32_t slot);
#endif
