/* http1.h - a small, strict HTTP/1.1 server for the admin address (/metrics, /healthz): GET and
 * HEAD, no request bodies, bounded everything. Loop thread only. */
#ifndef TD_RPC_HTTP1_H
#define TD_RPC_HTTP1_H
#include "common/loop/loop.h"
#include "common/rpc/addr.h"

#include <stddef.h>

typedef struct td_http_server td_http_server;

typedef struct {       /* valid during the handler only */
    const char *path;  /* without the query; not percent-decoded */
    const char *query; /* after '?', "" when there is none */
    const char *peer;
} td_http_request;

typedef struct {
    int status;               /* 200 unless set */
    const char *content_type; /* "text/plain; charset=utf-8" unless set; a constant */
    const char *body;         /* n_bytes of it */
    size_t n_bytes;
    void (*free_body)(
        void *body); /* called once with body when it has been copied; NULL: body is static */
} td_http_response;

typedef struct {
    const char *path; /* exact match; another path is 404 */
    void (*handler)(void *user, const td_http_request *req, td_http_response *res);
    void *user;
} td_http_route;

typedef struct { /* 0 takes the default in brackets */
    td_addr listen;
    const td_http_route *routes; /* must outlive the server */
    uint32_t n_routes;
    const char *name;         /* in log lines; ["http"] */
    uint32_t max_connections; /* [64] */
    size_t max_request_bytes; /* [8 KiB] request line and headers */
    int64_t request_ms;       /* [5 s] from the first byte to the last of a request */
    int64_t idle_ms;          /* [30 s] between requests */
    int64_t write_ms;         /* [10 s] for the peer to take the answer */
} td_http_server_conf;

td_status td_http_server_open(td_loop *loop, const td_http_server_conf *conf, td_http_server **out,
                              td_err *err);
uint16_t td_http_server_port(const td_http_server *server);
/* Gone when on_closed (may be NULL) runs. NULL is fine (on_closed is not called). */
void td_http_server_close(td_http_server *server, void (*on_closed)(void *user), void *user);
#endif
