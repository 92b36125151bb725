/* engine.h - all ranks of the daemon as the loop sees them: boot, one step at a time, checksums of
 * finished pages merged from the ranks that serve them, and the transfer layer's ends. Loop thread.
 */
#ifndef TD_PREFILL_ENGINE_H
#define TD_PREFILL_ENGINE_H
#include "common/rpc/addr.h"
#include "common/transfer/xfer.h"
#include "prefill/conf.h"
#include "prefill/rank_thread.h"

#define TD_PREFILL_MAX_RANKS 64

typedef struct td_prefill_engine td_prefill_engine;

typedef struct {           /* a chunk of one prompt in a step */
    const int32_t *tokens; /* [n_tokens]; copied */
    const uint32_t *pages; /* [n_pages]; copied */
    int32_t start, n_tokens, next_token;
    uint32_t n_pages;
    int32_t blob_slot; /* -1: none */
    int ends;
    const td_sampling *sampling;
} td_chunk;

typedef struct {
    td_loop *loop;
    td_serve *serve;
    const td_prefill_conf *conf;
    td_addr kv_listen;            /* rank 0's, see td_kv_listen_addr() */
    void (*on_ready)(void *user); /* weights are loaded, transfers are served */
    /* Layers [first, last) of the step's chunks are final on every rank that serves their pages.
     * crc [n]: in order of chunk, then page. */
    void (*on_group)(void *user, uint32_t first_layer, uint32_t last_layer, const uint32_t *crc,
                     uint32_t n);
    void (*on_done)(void *user, const td_step_result *results, uint32_t n); /* the step is over */
    void (*on_fatal)(void *user, const td_err *err); /* a rank failed: the daemon cannot go on */
    void *user;
} td_prefill_engine_conf;

/* Reads the checkpoint's headers and starts the ranks; on_ready or on_fatal follows. */
td_status td_prefill_engine_open(const td_prefill_engine_conf *conf, td_prefill_engine **out,
                                 td_err *err);
/* No step is under way. Ends threads, transfers, memory; blocks for the end of the threads. NULL is
 * fine. */
void td_prefill_engine_close(td_prefill_engine *engine);

bool td_prefill_engine_busy(const td_prefill_engine *engine); /* a step is under way */
/* Chunks [n]: 1..max-batch of together at most `chunk` tokens. Not while busy. */
void td_prefill_engine_step(td_prefill_engine *engine, const td_chunk *chunks, uint32_t n);

const td_model_config *td_prefill_engine_config(const td_prefill_engine *engine);
const td_kv_layout *td_prefill_engine_layout(const td_prefill_engine *engine);
const td_fingerprint *
td_prefill_engine_fingerprint(const td_prefill_engine *engine);            /* once ready */
td_xfer *td_prefill_engine_xfer(td_prefill_engine *engine, uint32_t rank); /* once ready */
uint32_t td_prefill_engine_blobs(const td_prefill_engine *engine);
size_t td_prefill_engine_blob_bytes(const td_prefill_engine *engine);
/* Before they are announced: of these pages, the request's from first_page on, the layers below
 * last_layer may be read under these generations, each on the rank that serves it. */
typedef struct {
    const uint32_t *pages, *generations; /* [n] */
    uint32_t n, first_page, last_layer;
} td_ready_pages;
void td_prefill_engine_publish(td_prefill_engine *engine, const td_ready_pages *ready);
void td_prefill_engine_publish_blob(td_prefill_engine *engine, uint32_t slot, uint32_t generation);
/* Pages and blobs that nobody may read any more, before they are given out again. */
void td_prefill_engine_retire(td_prefill_engine *engine, const uint32_t *pages, uint32_t n);
void td_prefill_engine_retire_blob(td_prefill_engine *engine, uint32_t slot);
/* For debug-poison: TD_DATA_LOSS names rank, page and byte where a free page was written to. */
td_status td_prefill_engine_check_free(td_prefill_engine *engine, uint32_t page, td_err *err);
#endif
