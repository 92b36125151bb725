/* mailbox.h - a td_ring whose reader is an event loop: one other thread pushes, the loop thread
 * gets a callback for each message, in order. Messages are plain values without pointers. The
 * mailbox owns ring and handle. */
#ifndef TD_LOOP_MAILBOX_H
#define TD_LOOP_MAILBOX_H
#include "common/loop/loop.h"

#include <stddef.h>

typedef struct td_mailbox td_mailbox;
/* Loop thread. msg (8-byte aligned) is valid during the call only. May close the mailbox. */
typedef void (*td_mailbox_fn)(void *user, const void *msg, size_t len);

/* capacity_bytes as in ring.h. An open mailbox keeps td_loop_run() running. */
td_status td_mailbox_open(td_loop *loop, size_t capacity_bytes, td_mailbox_fn fn, void *user,
                          td_mailbox **out, td_err *err);
/* The one producer thread. TD_FULL: nothing was written. TD_TOO_LARGE: it can never fit. */
td_status td_mailbox_push(td_mailbox *box, const void *msg, size_t len);
/* Loop thread, when the producer's last push has returned (it was joined, or said so by a message
 * of another way). NULL is fine. No callback after this; messages not yet delivered are dropped. */
void td_mailbox_close(td_mailbox *box);
#endif
