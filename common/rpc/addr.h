/* addr.h - "host:port" as written in configuration: 127.0.0.1:7000, [::1]:7000, decode-3.rack:7000.
 */
#ifndef TD_RPC_ADDR_H
#define TD_RPC_ADDR_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    char host[256]; /* no brackets */
    uint16_t port;
} td_addr;

/* How the bytes of a connection are protected. */
typedef enum {
    TD_PLAINTEXT,
    TD_TLS, /* has a place (common/rpc/conn.h) but no code yet: opening with it is TD_UNSUPPORTED */
} td_security;

/* TD_INVALID: not of that form, the host too long, or the port out of 0..65535. Resolves nothing.
 */
td_status td_addr_parse(const char *text, td_addr *out, td_err *err);
/* "localhost", 127.0.0.0/8 or ::1. Another name is not loopback, whatever it resolves to. */
bool td_addr_is_loopback(const td_addr *addr);
/* Writes "host:port", with brackets around IPv6; returns out. */
const char *td_addr_format(const td_addr *addr, char out[static 272]);
#endif
