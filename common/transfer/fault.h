/* fault.h - faults that a test asks for, in the words of the daemons' `debug-faults` knob:
 * "damage:N" spoils the N-th page range that arrives from now on (N counts from 1), "damage:N:2"
 * spoils its second fetch too; "stall:N[:TIMES]" swallows the completion of the N-th get (and the
 * TIMES-1 next ones); "break:N" breaks the endpoint as the N-th range arrives; "" or "none" ends
 * it. One fault at a time for each td_xfer. */
#ifndef TD_TRANSFER_FAULT_H
#define TD_TRANSFER_FAULT_H
#include "common/base/status.h"

#include <stdint.h>

typedef enum {
    TD_XFER_FAULT_NONE,
    TD_XFER_FAULT_DAMAGE,
    TD_XFER_FAULT_STALL,
    TD_XFER_FAULT_BREAK,
} td_xfer_fault_kind;

typedef struct {
    td_xfer_fault_kind kind;
    uint32_t nth;   /* 1 = the next one */
    uint32_t times; /* DAMAGE: 1 or 2 fetches; STALL: so many gets; BREAK: 1 */
} td_xfer_fault;

td_status td_xfer_fault_parse(const char *text, td_xfer_fault *out, td_err *err);
#endif
