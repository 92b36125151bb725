/* rank_thread.h - one context-parallel rank: a thread that owns its device, its weights' share and
 * its KV slab, takes steps from a ring and tells the loop through a mailbox what is finished. */
#ifndef TD_PREFILL_RANK_THREAD_H
#define TD_PREFILL_RANK_THREAD_H
#include "common/base/ring.h"
#include "common/comm/comm.h"
#include "common/loop/mailbox.h"
#include "common/serve/serve.h"
#include "model/fingerprint.h"
#include "model/prefill_step.h"
#include "model/rank.h"
#include "prefill/messages.h"

#include <pthread.h>

typedef struct {
    /* set by the engine before the thread starts */
    uint32_t rank;
    td_rank_options options;
    const char *model_dir;
    td_cp_split split;
    int draft_prenorm;
    uint32_t chunk, max_batch, layer_group;
    int64_t spin_ns;
    unsigned char *blobs; /* [n_blobs, blob_bytes] rank 0's states, as readers draw them */
    uint32_t n_blobs;
    size_t blob_bytes;
    td_comm_group *comm; /* NULL: one rank */
    td_ring *steps;      /* loop to here */
    td_mailbox *events;  /* here to loop */
    td_progress *progress;
    td_fingerprint *fingerprint; /* rank 0 fills the model's fields before it is ready */
    pthread_t thread;
    /* the thread's own until it is ready; then the slab is read by the transfer thread, too */
    td_rank self;
    td_prefill *prefill;
    unsigned char *states; /* [n_blobs, blob_bytes] device; the blobs themselves on the CPU */
    int32_t *page_ids;     /* device, [max pages of a step] */
    uint32_t *page_crc;
    uint64_t step; /* of the hook */
    const td_step_head *head;
    uint32_t group_first;
    td_rank_event *event; /* [event_bytes] scratch */
    size_t event_bytes;
    td_status hook_status;
    td_err hook_err;
} td_rank_thread;

/* Most pages that the chunks of one step can finish. */
uint32_t td_step_max_pages(uint32_t chunk, uint32_t max_batch);
size_t td_rank_event_bytes(uint32_t chunk, uint32_t max_batch);
td_status td_rank_thread_start(td_rank_thread *t, td_err *err);
#endif
