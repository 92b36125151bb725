/* desc.h - the descriptor with which a source tells a reader where to draw from: the address its
 * UCX listener has, its incarnation, and stride and slots of every region it serves. Made once at
 * start, sent as opaque bytes in a control message, bounded, versioned and CRC'd. A reader believes
 * nothing in it before td_xfer_desc_decode() said TD_OK. Byte layout: docs/protocol.md. */
#ifndef TD_TRANSFER_DESC_H
#define TD_TRANSFER_DESC_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

/* What daemons and transfer threads say to each other, control messages included; grows when any
 * of it changes. Both handshakes compare it. */
#define TD_XFER_PROTOCOL 3U
#define TD_XFER_MAX_REGIONS 4U
#define TD_XFER_MAX_DESC_BYTES 512U
#define TD_XFER_HOST_ID_BYTES 16U
#define TD_XFER_INCARNATION_BYTES 64U /* with its NUL */

typedef struct {
    uint64_t stride;
    uint32_t n_slots; /* 0: not served */
} td_xfer_desc_region;

typedef struct {
    char incarnation[TD_XFER_INCARNATION_BYTES];
    uint32_t rank;
    unsigned char
        host_id[TD_XFER_HOST_ID_BYTES]; /* equal: one host, so shared memory is expected */
    int ip_version;                     /* 4 or 6 */
    unsigned char ip[16];               /* network order; version 4: the first 4 bytes */
    uint16_t port;                      /* host order */
    uint32_t n_regions;
    td_xfer_desc_region regions[TD_XFER_MAX_REGIONS]; /* [n_regions] */
} td_xfer_desc;

/* out: [cap]. TD_TOO_LARGE when it does not fit in cap or in TD_XFER_MAX_DESC_BYTES. */
td_status td_xfer_desc_encode(const td_xfer_desc *desc, unsigned char *out, size_t cap,
                              size_t *n_bytes, td_err *err);
/* TD_PROTOCOL says what is wrong. */
td_status td_xfer_desc_decode(const unsigned char *bytes, size_t n_bytes, td_xfer_desc *desc,
                              td_err *err);
#endif
