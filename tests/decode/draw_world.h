/* draw_world.h - a decode daemon's table of requests over a made-up engine, a made-up transfer
 * layer and a made-up prefill daemon of two ranks, with routers that ask, all on one loop.
 * Transfers and the prefill's events happen when the test says so. */
#ifndef TD_TESTS_DECODE_DRAW_WORLD_H
#define TD_TESTS_DECODE_DRAW_WORLD_H
#include "tests/td_loop_test.h"

#include "common/base/clock.h"
#include "common/serve/message.h"
#include "decode/draw.h"
#include "proto/tandem/v1/decode.pb-c.h"
#include "proto/tandem/v1/prefill.pb-c.h"

#define VOCAB 1000
#define N_LAYERS 2 /* and a draft layer behind them */
#define BLOB_BYTES 512
#define N_PAGES 16
#define OURS "dddddddddddddddd"
#define THEIRS "1111111111111111"

typedef struct { /* a job that the transfer layer was given */
    td_xfer_job job;
    uint32_t rank;
    td_xfer_get_args args;
    td_xfer_page pages[N_PAGES];
    bool cancelled, over;
} made_up_job;

typedef struct {         /* one Generate, as the router sees it */
    td_rpc_request *req; /* NULL: over */
    td_grpc_status status;
    char message[400], cause[32], side[16];
    uint32_t n_tokens;
} asking;

typedef struct {       /* one Prefill, as the prefill daemon sees it */
    td_rpc_call *call; /* NULL: over */
    uint64_t number;
} stream;

typedef struct {
    td_loop *loop;
    td_metrics *metrics;
    td_decode_conf conf;
    td_decode_engine *engine;
    td_fingerprint fingerprint;
    td_peers *peers;
    td_requests *requests;
    td_rpc_method methods[5];
    td_rpc_server *server; /* the prefill daemon's port and ours */
    td_rpc_client *client;
    char address[32];
    td_timer patience;
    uint32_t n_greetings, n_releases, n_open;
    uint32_t n_refusals; /* of the next so many Prefills: it does not know us */
    stream streams[8];   /* [n_streams], ever */
    uint32_t n_streams;
    made_up_job jobs[64];          /* [n_jobs], ever */
    uint32_t n_jobs, n_live, room; /* room: live jobs at a time */
    uint64_t leaving[8];           /* owners that the engine was told to let go of, by slot */
} world;

void world_open(world *w, uint32_t drafts);
void world_close(world *w); /* nothing is held then: checked */
void world_turn(world *w);  /* about a millisecond */
#define RUN_UNTIL(w, cond)                                                                         \
    do {                                                                                           \
        while (!(cond))                                                                            \
            world_turn(w);                                                                         \
    } while (0)

void ask(world *w, asking *a, uint32_t n_prompt, uint32_t max_tokens);
void give_up(asking *a);
td_grpc_status ended(world *w, asking *a); /* waits for its end */
stream *asked(world *w, uint32_t i);       /* the i-th Prefill; waits for it */
td_request *request_of(world *w, const stream *s);
td_rpc_call *taken(stream *s); /* its call, which the test ends */
/* What the prefill daemon says; settle() waits until the decode daemon has heard it. */
void say(const stream *s, const Tandem__V1__PrefillEvent *event);
void settle(world *w);
Tandem__V1__PrefillEvent pages_event(Tandem__V1__PagesReady *p);
Tandem__V1__PrefillEvent done_event(Tandem__V1__PrefillDone *d);
/* n pages from first_page on: page i stands in slot 40 + i there, generation 7, crc 1000 + i. */
void announce(const stream *s, uint32_t first_layer, uint32_t last_layer, uint32_t first_page,
              uint32_t n);
void finish(const stream *s); /* PrefillDone: token 42, blob 3 of generation 9 */
/* The job ends; those that wait are tried again, as the daemon does. */
void job_ends(world *w, uint32_t job, td_status status, uint64_t n_bytes);
uint64_t job_bytes(const world *w, uint32_t job);
uint32_t pages_in(const world *w, td_page_state state);
uint32_t world_joined(const world *w); /* requests that the engine was given, ever */
#endif
