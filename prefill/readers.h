/* readers.h - the decode daemons that have shaken hands: a table of fixed size. Only they may ask
 * for prompts. A row that prompts belong to stays; otherwise the one unseen for longest makes place
 * for a new one, whose requests then ask for the handshake again. Loop thread. */
#ifndef TD_PREFILL_READERS_H
#define TD_PREFILL_READERS_H
#include "common/serve/ident.h"

#include <stdint.h>

#define TD_PREFILL_MAX_READERS 256

typedef struct {
    char incarnation[TD_INCARNATION_BYTES]; /* "": free */
    char address[272];                      /* its control address, as it says */
    char remote[80];                        /* where its connection really comes from */
    int64_t seen_ns;
    uint32_t n_prompts; /* here now, served ones too */
} td_prefill_reader;

typedef struct {
    td_prefill_reader rows[TD_PREFILL_MAX_READERS];
} td_prefill_readers; /* zeroed is empty */

/* NULL: it has not connected. */
td_prefill_reader *td_prefill_readers_find(td_prefill_readers *readers, const char *incarnation);
/* It connects (again). TD_INVALID: not an incarnation, or not an address; TD_EXHAUSTED: every row
 * has prompts. */
td_status td_prefill_readers_note(td_prefill_readers *readers, const char *incarnation,
                                  const char *address, const char *remote, td_err *err);
#endif
