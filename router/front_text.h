/* front_text.h - text to ids and back for the front: the Tokenize and Detokenize methods, and
 * Generate's prompt. Loop thread; the work on long texts happens on libuv's thread pool. */
#ifndef TD_ROUTER_FRONT_TEXT_H
#define TD_ROUTER_FRONT_TEXT_H
#include "common/rpc/server.h"
#include "router/model_info.h"

typedef struct td_tokenising td_tokenising;

typedef struct {
    const td_model_info *model;
    td_loop *loop;
    size_t *pooled_bytes; /* the service's */
    const char *text;     /* [n_bytes], copied */
    size_t n_bytes;
    unsigned flags; /* TD_ENCODE_* */
    /* ids: malloc'ed, the callee's when st is TD_OK. May come from inside td_text_tokenise(). */
    void (*done)(void *user, td_status st, int32_t *ids, size_t n, const td_err *why);
    void *user;
} td_text_job;

/* TD_OK: done comes once, unless td_text_cancel() is called before; *out is NULL if it came
 * already. Refused (done does not come): empty, not UTF-8, more text than a context's tokens can
 * hold, or a model without tokenizer; TD_EXHAUSTED: too many long texts are being worked on. */
td_status td_text_tokenise(const td_text_job *job, td_tokenising **out, td_err *err);
void td_text_cancel(td_tokenising *t); /* NULL is fine */

typedef struct {
    td_loop *loop;
    const td_model_info *model;
    size_t pooled_bytes; /* of texts on the thread pool, Generate's among them */
} td_text_service;

/* Two rows: Tokenize, Detokenize. service outlives the server. */
void td_text_methods(td_text_service *service, td_rpc_method *rows);
#endif
