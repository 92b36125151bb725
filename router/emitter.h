/* emitter.h - a stream of token ids to text that may be shown: whole UTF-8 characters only, and
 * nothing that may be the start of a stop string. A token id is shown when its text is. Loop
 * thread. */
#ifndef TD_ROUTER_EMITTER_H
#define TD_ROUTER_EMITTER_H
#include "common/base/status.h"
#include "model/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_EMITTER_MAX_STOPS 16
#define TD_EMITTER_MAX_STOP_BYTES 256

typedef struct {
    const char *bytes;
    size_t n_bytes; /* 1..TD_EMITTER_MAX_STOP_BYTES */
} td_stop_string;

typedef struct {
    td_stop_string stops[TD_EMITTER_MAX_STOPS]; /* [n_stops]; the owner keeps the bytes */
    uint32_t n_stops;
    uint32_t min_tokens;           /* stop strings count from here on */
    const td_tokenizer *tokenizer; /* NULL: ids only */
    td_detok detok;
    uint32_t n_seen;
    bool stopped;                          /* a stop string came; nothing follows */
    char *text;                            /* [n_text] not shown yet; owned */
    size_t n_text, text_capacity, n_ready; /* the first n_ready bytes may be shown */
    uint32_t *ids;                         /* [n_ids] not shown yet; owned */
    size_t *ends;                          /* [n_ids] where in text each id's text ends */
    uint32_t n_ids, ids_capacity;
} td_emitter;

void td_emitter_init(td_emitter *e, const td_tokenizer *tokenizer, uint32_t min_tokens);
void td_emitter_fini(td_emitter *e); /* zeroed is fine */
/* The same tokens come once more from the first on; nothing has been shown. */
void td_emitter_restart(td_emitter *e);
/* One more token. TD_OK or TD_NOMEM. After a stop string the rest is ignored. */
td_status td_emitter_push(td_emitter *e, uint32_t id);
/* The stream has ended: what is held back may be shown. */
td_status td_emitter_finish(td_emitter *e);
/* What may be shown now; valid until the next call but td_emitter_shown(). */
void td_emitter_ready(const td_emitter *e, const char **text, size_t *n_text, const uint32_t **ids,
                      uint32_t *n_ids);
void td_emitter_shown(td_emitter *e); /* drops what ready() gave */
#endif
