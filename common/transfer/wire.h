/* wire.h - the active messages between a reader and a source, over one UCX endpoint. Only for
 * common/transfer. Host byte order: a HELLO with the wrong magic is refused, so two ends of
 * different order never meet. Messages of one endpoint arrive in order. docs/protocol.md has the
 * state tables. */
#ifndef TD_TRANSFER_WIRE_H
#define TD_TRANSFER_WIRE_H
#include "common/transfer/desc.h"

#include <stdint.h>

#define TD_WIRE_MAGIC 0x31584454U         /* "TDX1" */
#define TD_WIRE_HEADER_BYTES 192U         /* no message's header is longer */
#define TD_WIRE_WINDOW_BYTES (512U << 10) /* sent and not yet acknowledged, for each endpoint */
/* One piece of a range: with its headers it fits in one segment of the transport (set in ucx.c), or
 * UCX would assemble it in memory of its own. */
#define TD_WIRE_SHM_PIECE_BYTES (32U << 10)
#define TD_WIRE_NET_PIECE_BYTES (60U << 10)
/* Where UCX fetches a range from memory to memory nothing of it lies in buffers meanwhile. */
#define TD_WIRE_DIRECT_WINDOW_BYTES (64U << 20)
#define TD_WIRE_MAX_PULLS 256U /* of one reader, not finished */

typedef enum {
    TD_WIRE_HELLO = 1, /* reader: who I am, whom I mean */
    TD_WIRE_WELCOME,   /* source: go on, or why not */
    TD_WIRE_PULL,      /* reader: send me this range */
    TD_WIRE_DATA,      /* source: a piece of a range */
    TD_WIRE_ACK,       /* reader: so many more bytes arrived */
    TD_WIRE_DROP,      /* reader: forget that range */
    TD_WIRE_REFUSE,    /* source: I do not serve that range, or not under that generation */
} td_wire_id;

/* A reader's connection: its link's slot, and a number that grows with every attempt to connect. */
typedef struct {
    uint32_t link, attempt;
} td_wire_link;

/* What the source calls a connected reader. */
typedef struct {
    uint32_t slot, generation;
} td_wire_reader;

typedef struct {
    uint32_t magic, version;
    td_wire_link link;
    uint32_t rank; /* the rank that is meant */
    char incarnation[TD_XFER_INCARNATION_BYTES];
    char reader[TD_XFER_INCARNATION_BYTES]; /* the reader's own, for the source's tables */
} td_wire_hello;

typedef struct {
    td_wire_link link;
    td_wire_reader reader;
    int32_t status; /* td_status */
    char incarnation[TD_XFER_INCARNATION_BYTES];
} td_wire_welcome;

typedef struct {
    td_wire_reader reader;
    uint64_t get_id;
    uint32_t region, slot;
    uint64_t offset, n_bytes;
    uint32_t piece_bytes;
    uint32_t generation; /* of the slot: what was announced, and nothing later */
    uint32_t is_direct;  /* 1: the range may come as one rendezvous, see DATA */
    uint32_t reserved;
} td_wire_pull;

typedef struct {
    td_wire_link link;
    uint64_t get_id;
    uint64_t at; /* of the range; the bytes follow as the message's data, or as UCX's rendezvous:
                    then they are the whole range, and the reader fetches them */
} td_wire_data;

typedef struct {
    td_wire_reader reader;
    uint64_t n_bytes;
} td_wire_ack;

typedef struct {
    td_wire_reader reader;
    uint64_t get_id;
} td_wire_drop;

typedef struct {
    td_wire_link link;
    uint64_t get_id;
    int32_t status, reserved;
} td_wire_refuse;
#endif
