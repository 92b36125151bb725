/* frame.h - gRPC's message framing (a flag byte, a big-endian length, the message), both ways.
 * Knows no sockets; for the files of this folder. */
#ifndef TD_RPC_FRAME_H
#define TD_RPC_FRAME_H
#include "common/rpc/grpc_status.h"

#include <stdbool.h>
#include <stddef.h>

enum { TD_FRAME_HEAD_BYTES = 5 };

/* A bound that many deframers, or many send queues, share. What is taken of it is taken of `whole`,
 * too: a connection's share of a server's bound. */
typedef struct td_budget {
    size_t used, max;
    struct td_budget *whole; /* NULL: it is nobody's share */
} td_budget;

/* In: pieces of DATA in, messages out. Zeroed, then init. */
typedef struct {
    td_budget *budget;
    uint32_t max_message_bytes;
    bool whole; /* keep a complete message in buf instead of showing it from the input */
    uint8_t n_head;
    uint8_t head[TD_FRAME_HEAD_BYTES];
    uint32_t want; /* the message's length, once n_head is 5 */
    uint32_t len, cap;
    uint8_t *buf;
} td_deframer;

void td_deframer_init(td_deframer *in, td_budget *budget, size_t max_message_bytes, bool whole);
void td_deframer_fini(td_deframer *in);
/* Takes the next message out of *data, *len, which are moved forward. TD_OK: *msg is valid until
 * the next call with the same deframer, and no longer than the input. TD_EMPTY: all input was
 * taken, more is needed. Otherwise *code and *why (a constant) say what to answer, and the deframer
 * is of no more use. */
td_status td_deframer_next(td_deframer *in, const uint8_t **data, size_t *len, const uint8_t **msg,
                           size_t *msg_len, td_grpc_status *code, const char **why);
bool td_deframer_mid_message(const td_deframer *in);

/* Out: whole messages in, any number of bytes out. Zeroed is empty. */
typedef struct {
    td_budget *budget; /* of bytes waiting; NULL: none */
    uint8_t *buf;
    size_t off, end, cap;   /* buf[off .. end) waits */
    size_t left_in_message; /* of a message whose first bytes have been taken */
} td_sendq;

void td_sendq_fini(td_sendq *q);
size_t td_sendq_bytes(const td_sendq *q);
/* TD_FULL: over the budget. TD_NOMEM. Either way nothing has changed. */
td_status td_sendq_push(td_sendq *q, const void *msg, uint32_t len);
/* The next bytes, at most *len; they stay until drop(). */
const uint8_t *td_sendq_peek(const td_sendq *q, size_t *len);
void td_sendq_drop(td_sendq *q, size_t n);
void td_sendq_clear(td_sendq *q); /* forgets what waits */
#endif
