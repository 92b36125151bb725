/* server_internal.h - the server's insides, shared by server.c (connections) and server_call.c
 * (calls). */
#ifndef TD_RPC_SERVER_INTERNAL_H
#define TD_RPC_SERVER_INTERNAL_H
#include "common/rpc/h2.h"
#include "common/rpc/server.h"

struct td_rpc_server {
    td_loop *loop;
    td_rpc_server_conf conf;
    const td_rpc_method **by_path; /* [conf.n_methods], sorted */
    td_listener *listener;         /* NULL once closed */
    bool listener_gone, draining, closing;
    td_h2 *conns;
    td_budget assembly, queued;
    td_rpc_server_stats stats;
    td_metric *m_connections, *m_refused, *m_cut_off;
    td_timer drain_timer;
    td_task settle; /* tells on_drained or on_closed, when it is time */
    void (*on_drained)(void *user);
    void *drained_user;
    void (*on_closed)(void *user);
    void *closed_user;
};

extern const td_h2_events
    td_rpc_server_h2_events; /* of server.c; the streams' part is server_call.c's */
const td_rpc_method *td_rpc_server_find(const td_rpc_server *server, const char *path);

td_h2_stream *td_rpc_call_begin(td_h2 *h2);
void td_rpc_call_on_headers(td_h2_stream *s);
void td_rpc_call_on_data(td_h2_stream *s, const uint8_t *data, size_t len);
void td_rpc_call_on_end_stream(td_h2_stream *s);
bool td_rpc_call_on_eof(td_h2_stream *s);
void td_rpc_call_on_close(td_h2_stream *s, bool lost, uint32_t h2_error);
#endif
