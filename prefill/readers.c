#include "prefill/readers.h"

#include "common/base/clock.h"
#include "common/rpc/addr.h"

#include <stdio.h>
#include <string.h>

td_prefill_reader *td_prefill_readers_find(td_prefill_readers *readers, const char *incarnation)
{
    for (int i = 0; i < TD_PREFILL_MAX_READERS; i++)
        if (incarnation[0] != '\0' && strcmp(readers->rows[i].incarnation, incarnation) == 0)
            return &readers->rows[i];
    return NULL;
}

/* A free row was never seen. */
static td_prefill_reader *longest_unseen(td_prefill_readers *readers)
{
    td_prefill_reader *best = NULL;
    for (int i = 0; i < TD_PREFILL_MAX_READERS; i++) {
        td_prefill_reader *r = &readers->rows[i];
        if (r->n_prompts == 0 && (best == NULL || r->seen_ns < best->seen_ns))
            best = r;
    }
    return best;
}

td_status td_prefill_readers_note(td_prefill_readers *readers, const char *incarnation,
                                  const char *address, const char *remote, td_err *err)
{
    td_addr addr;
    if (!td_incarnation_valid(incarnation))
        return td_fail(err, TD_INVALID, "prefill: incarnation must be 16 hex digits");
    td_status st = td_addr_parse(address, &addr, err);
    if (st != TD_OK)
        return st;
    td_prefill_reader *r = td_prefill_readers_find(readers, incarnation);
    if (r == NULL) {
        r = longest_unseen(readers);
        if (r == NULL)
            return td_fail(err, TD_EXHAUSTED, "prefill: %d decode daemons have prompts here",
                           TD_PREFILL_MAX_READERS);
        *r = (td_prefill_reader){0};
        memcpy(r->incarnation, incarnation, sizeof(r->incarnation));
    }
    td_addr_format(&addr, r->address);
    snprintf(r->remote, sizeof(r->remote), "%.79s", remote);
    r->seen_ns = td_now_ns();
    return TD_OK;
}
