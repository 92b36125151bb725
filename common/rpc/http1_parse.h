/* http1_parse.h - the head of an HTTP/1.1 request (RFC 9112), strictly: CRLF only, no folded lines,
 * no spaces around names. Pure; for the files of this folder. */
#ifndef TD_RPC_HTTP1_PARSE_H
#define TD_RPC_HTTP1_PARSE_H
#include "common/rpc/headers.h"

typedef struct {
    char method[16];
    const char *path, *query; /* in `target`, NUL-terminated; query is "" when there is none */
    char *target;             /* owned */
    td_meta headers;          /* names in lower case */
    size_t content_length;    /* 0 when absent */
    bool keep_alive;
    size_t n_bytes; /* the head's, with the empty line */
} td_http1_head;

/* TD_PENDING: more bytes are needed, nothing is in *out. TD_OK: *out is filled; fini() it.
 * TD_INVALID: *status is the HTTP status to refuse with. No byte behind the head is looked at. */
td_status td_http1_parse(const char *bytes, size_t len, td_http1_head *out, int *status);
void td_http1_head_fini(td_http1_head *head);
const char *td_http1_reason(int status);
#endif
