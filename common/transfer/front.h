/* front.h - the half of a td_xfer that belongs to its owner's thread. Only for front.c and stats.c.
 */
#ifndef TD_TRANSFER_FRONT_H
#define TD_TRANSFER_FRONT_H
#include "common/transfer/internal.h"

typedef struct {
    uint32_t generation; /* of the current or last user */
    int live, closing;   /* until its DOWN event is taken; closing: close() was called */
    uint64_t tag;
    int64_t opened_ns;
    int same_host;
    char peer[TD_XFER_PEER_BYTES];
    char transport[TD_XFER_TRANSPORT_BYTES];
    td_xfer_desc desc;
    uint32_t n_jobs;
} td_front_link;

typedef struct {
    uint32_t generation;
    int live, cancelled;
    td_xfer_job_info info; /* what tables show, less what the engine counts */
} td_front_job;

struct td_xfer {
    td_engine engine;
    pthread_t thread;
    int has_thread;
    unsigned char desc[TD_XFER_MAX_DESC_BYTES];
    size_t n_desc_bytes;
    unsigned char host_id[TD_XFER_HOST_ID_BYTES];

    td_front_link *links;          /* [max_links] */
    td_front_job *jobs;            /* [max_jobs] */
    uint32_t *free_jobs;           /* stack; the first n_free_jobs are valid */
    uint32_t n_free_jobs, n_pages; /* n_pages: in live jobs */
    td_cmd_get *get;               /* room for the largest job */
    int shown;                     /* an event's message is still in the ring */

    td_xfer_job_info recent[TD_XFER_N_RECENT]; /* ring */
    uint32_t n_recent, next_recent;
    uint64_t n_ended, n_failed; /* jobs, ever */
};

/* address.c */
void td_read_host_id(unsigned char id[TD_XFER_HOST_ID_BYTES]);
/* Fills engine->listen and the descriptor's address from the configuration; loopback implies device
 * lo. */
td_status td_choose_addresses(td_engine *engine, td_xfer_desc *desc, td_err *err);
#endif
