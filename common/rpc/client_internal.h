/* client_internal.h - the client's insides, shared by client.c (connections) and client_request.c
 * (requests). */
#ifndef TD_RPC_CLIENT_INTERNAL_H
#define TD_RPC_CLIENT_INTERNAL_H
#include "common/rpc/client.h"
#include "common/rpc/h2.h"

/* One connection carries new requests; others, told to go away, live until their last request has
 * ended. */
struct td_rpc_client {
    td_loop *loop;
    td_rpc_client_conf conf;
    char authority[272];
    td_rpc_state state;
    td_h2 *current; /* NULL: BROKEN, or closing */
    td_h2 *links;   /* current and the old ones */
    td_budget assembly;
    uint32_t n_requests; /* until the stream is gone */
    uint32_t n_failures; /* in a row */
    td_timer backoff;
    td_task settle;
    char lost[512]; /* "<peer>: <why>" of the connection that died last */
    bool closing;
    void (*on_closed)(void *user);
    void *closed_user;
};

extern const td_h2_events td_rpc_client_h2_events;

void td_rpc_request_on_headers(td_h2_stream *s);
void td_rpc_request_on_trailers(td_h2_stream *s);
void td_rpc_request_on_data(td_h2_stream *s, const uint8_t *data, size_t len);
void td_rpc_request_on_end_stream(td_h2_stream *s);
bool td_rpc_request_on_eof(td_h2_stream *s);
void td_rpc_request_on_close(td_h2_stream *s, bool lost, uint32_t h2_error);
#endif
