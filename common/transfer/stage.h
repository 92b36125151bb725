/* stage.h - the ring of page-locked host memory through which bytes of device memory travel: a
 * fixed number of slots, each taken, filled, copied and free again. A source copies a piece of a
 * page into a slot when a reader asks for it, and sends it from there; a reader lays down what
 * arrives in a slot and copies it into its page. Copies run on two streams of their own, beside the
 * engine's. Only for common/transfer, and only on the transfer thread. */
#ifndef TD_TRANSFER_STAGE_H
#define TD_TRANSFER_STAGE_H
#include "common/base/status.h"
#include "common/device/device.h"

#define TD_STAGE_BYTES (256U << 10) /* of a slot */
#define TD_STAGE_READER_SLOTS 4U    /* most that one reader of a source has at a time */
#define TD_STAGE_NONE UINT32_MAX

typedef struct {
    unsigned char *bytes; /* [TD_STAGE_BYTES] */
    td_event *copied;     /* behind its copy */
    int copying, is_in;   /* in: towards the device */
    int is_source;        /* taken by td_stage_take_source() */
    uint32_t n_out;       /* messages under way that read it */
    uint32_t n_bytes;     /* that stand in it, or will when its copy is over */
    uint32_t n_sent;      /* source */
    uint64_t get_id;      /* whose bytes they are */
    uint32_t next;        /* in the list that it is in */
} td_stage_slot;

typedef struct {
    td_device *device; /* NULL: there is no ring */
    td_stream *in, *out;
    unsigned char *memory;
    td_stage_slot *slots; /* [n_slots] */
    uint32_t n_slots, n_free, n_source, n_max_source;
    uint32_t free, passing; /* lists; passing: let go, not yet free */
    uint32_t n_copying;
    /* Copies towards the device, begun and known to be over. They end in order: when as many are
     * over as had begun at some moment, those are. */
    uint64_t n_in_begun, n_in_over;
    int failed; /* a copy did: the device is lost */
} td_stage;

/* Zeroed *stage. For this many links that draw, and readers that are served; TD_CONFIG: they need
 * more than n_bytes. */
td_status td_stage_open(td_stage *stage, td_device *device, uint64_t n_bytes, uint32_t n_links,
                        uint32_t n_readers, td_err *err);
void td_stage_close(td_stage *stage); /* waits for copies; zeroed or half-open is fine */

/* TD_STAGE_NONE: none is free now. */
uint32_t td_stage_take_source(td_stage *stage);
/* For a link, which holds one slot that is not being copied. Waits for the end of a copy where none
 * is free: there is one, because sources leave n_links + 1 slots to links. */
uint32_t td_stage_take_reader(td_stage *stage);
/* Begins to copy n_bytes of device memory into the slot. */
void td_stage_read(td_stage *stage, uint32_t slot, const void *from, uint32_t n_bytes);
int td_stage_is_ready(td_stage *stage, uint32_t slot); /* its copy is over */
/* Begins to copy the slot's n_bytes into device memory, and lets the slot go. */
void td_stage_write(td_stage *stage, uint32_t slot, void *to);
/* Lets a slot go: it is free when its copy and its messages are over. */
void td_stage_let_go(td_stage *stage, uint32_t slot);
unsigned td_stage_tend(td_stage *stage);        /* looks who is free by now; returns how many */
void td_stage_forget_messages(td_stage *stage); /* UCX's worker is gone, and they with it */
#endif
