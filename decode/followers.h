/* followers.h - the tensor-parallel ranks of a decode daemon besides rank 0: a thread each, with
 * its device, its share of the weights and pages of its own, that does after rank 0 what rank 0
 * does. Only rank 0's pages are drawn into; the others copy a prompt's when it joins. Rank 0 is the
 * engine thread, and everything here is for that thread alone. */
#ifndef TD_DECODE_FOLLOWERS_H
#define TD_DECODE_FOLLOWERS_H
#include "common/serve/serve.h"
#include "decode/messages.h"
#include "model/rank.h"

typedef struct td_followers td_followers;

typedef struct {
    td_rank_options options; /* rank 0's */
    td_comm_form comm;       /* how ranks on GPUs reach each other */
    const td_rank *first;    /* rank 0, whose slab the prompts are drawn into; opened by join() */
    const unsigned char *blobs; /* [n_slots, blob_bytes] host: states as they are drawn */
    size_t blob_bytes;
    uint32_t n_slots, drafts;
    int draft_prenorm;
    bool graphs; /* steps are recorded, where ranks can; rank 0's are, too */
    int64_t spin_ns;
    td_progress *progress; /* ticks while the ranks are waited for */
} td_followers_conf;

/* What a JOIN asks of the decoder; hidden: device memory of the rank that asks. */
td_decode_seq td_command_seq(const td_engine_command *join, const void *hidden);

/* Makes the group of options.n_ranks >= 2 and starts the threads. */
td_status td_followers_open(const td_followers_conf *conf, td_followers **out, td_err *err);
/* Ends the group and the threads; after it rank 0's decoder may go. NULL is fine. */
void td_followers_close(td_followers *followers);
td_comm *td_followers_comm(td_followers *followers); /* rank 0's end */
const char *td_followers_form(const td_followers *followers);
/* Rank 0 has its weights: waits until every rank has, however long that takes, so that all make
 * their decoders at the same time. TD_CANCELLED: a rank failed. */
td_status td_followers_opened(td_followers *followers, td_err *err);
/* Waits until every rank has its weights and its decoder. */
td_status td_followers_ready(td_followers *followers, td_err *err);
/* The same command to all others, with its pages; before rank 0 does it itself. */
void td_followers_tell(td_followers *followers, const td_engine_command *command);
/* Before rank 0's step, which they take part in. */
void td_followers_step(td_followers *followers);
/* After rank 0's own join: until all have copied the prompt's pages, which the next step writes to.
 * TD_CANCELLED, TD_DEADLINE: a rank failed. */
td_status td_followers_joined(td_followers *followers, td_err *err);
/* Boot, a step or a join of rank 0 failed with st: if another rank failed by itself, says that
 * instead. */
td_status td_followers_blame(td_followers *followers, td_status st, td_err *err);
#endif
