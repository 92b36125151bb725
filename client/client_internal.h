/* client_internal.h - one call from start to end, between client.c (connection, loop) and calls.c
 * (messages). */
#ifndef TD_CLIENT_CLIENT_INTERNAL_H
#define TD_CLIENT_CLIENT_INTERNAL_H
#include "client/tandem.h"
#include "common/rpc/client.h"

typedef struct {
    const char *path;
    const void *msg; /* [len] the packed request */
    size_t len;
    const char *request_id;                              /* NULL: no such header */
    void (*on_headers)(void *user, td_rpc_request *req); /* may be NULL */
    /* OK, CANCELLED: enough, without an error text; otherwise what the call ends with. */
    td_client_code (*on_message)(void *user, const void *msg, size_t len);
    void *user;
} td_client_call;

td_client_code td_call_run(td_client *client, const td_client_call *call, td_client_error *err);
/* Fills err (NULL is fine) and returns code. */
td_client_code td_call_fail(td_client_error *err, td_client_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#endif
