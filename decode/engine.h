/* engine.h - the thread that decodes: owns device, weights, slab and decoder; requests join and
 * leave between steps. Everything here is the loop thread's. */
#ifndef TD_DECODE_ENGINE_H
#define TD_DECODE_ENGINE_H
#include "common/loop/mailbox.h"
#include "common/serve/serve.h"
#include "decode/conf.h"
#include "decode/messages.h"
#include "model/fingerprint.h"
#include "model/rank.h"

typedef struct td_decode_engine td_decode_engine;

typedef struct {
    td_loop *loop;
    td_serve *serve;
    const td_decode_conf *conf;
    void (*on_ready)(void *user);
    void (*on_result)(void *user, const td_engine_result *result);
    void (*on_left)(void *user, uint32_t slot, uint64_t owner);
    void (*on_fatal)(void *user, const td_err *err);
    void *user;
} td_decode_engine_conf;

/* Reads the checkpoint's headers and starts the thread; on_ready or on_fatal follows. */
td_status td_decode_engine_open(const td_decode_engine_conf *conf, td_decode_engine **out,
                                td_err *err);
/* Blocks until the thread has ended; then the transfer layer, which waits for the device's stream
 * when it gives its memory back, is alone with the device. NULL and twice are fine. */
void td_decode_engine_stop(td_decode_engine *engine);
void td_decode_engine_close(td_decode_engine *engine); /* stops it first; NULL is fine */
/* pages [command->n_pages]. TD_FULL: the thread is far behind, retry. The request's hidden state
 * stands in its blob. */
td_status td_decode_engine_join(td_decode_engine *engine, const td_engine_command *command,
                                const uint32_t *pages);
/* on_left, or a result that ends it, follows. */
td_status td_decode_engine_leave(td_decode_engine *engine, uint32_t slot, uint64_t owner);

const td_model_config *td_decode_engine_config(const td_decode_engine *engine);
const td_kv_layout *td_decode_engine_layout(const td_decode_engine *engine);
const td_fingerprint *td_decode_engine_fingerprint(const td_decode_engine *engine); /* once ready */
td_kv_slab *td_decode_engine_slab(td_decode_engine *engine);                        /* once ready */
td_rank *td_decode_engine_rank(td_decode_engine *engine);                           /* once ready */
unsigned char *
td_decode_engine_blobs(td_decode_engine *engine); /* [max-requests, blob_bytes] by slot */
size_t td_decode_engine_blob_bytes(const td_decode_engine *engine);
uint32_t td_decode_engine_drafts(const td_decode_engine *engine); /* 0 without a draft layer */
#endif
