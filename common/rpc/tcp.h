/* tcp.h - plaintext TCP as a td_conn. For conn.c only. */
#ifndef TD_RPC_TCP_H
#define TD_RPC_TCP_H
#include "common/rpc/conn.h"

struct sockaddr;

td_status td_tcp_connect(td_loop *loop, const td_addr *peer, const td_conn_events *events,
                         void *user, td_conn **out, td_err *err);
/* An accepted connection, not yet bound to a socket: see listener.c. */
typedef struct td_tcp td_tcp;
td_tcp *td_tcp_new(td_loop *loop, const td_conn_events *events, void *user); /* NULL: no memory */
struct uv_stream_s *td_tcp_stream(td_tcp *tcp);
td_conn *td_tcp_conn(td_tcp *tcp);
/* The socket has been accepted into the stream: names the peer and starts reading. */
td_status td_tcp_start(td_tcp *tcp, td_err *err);
/* It has not been handed out: closes and frees it, without on_closed. */
void td_tcp_abandon(td_tcp *tcp);
/* "127.0.0.1:80", "[::1]:80" */
void td_tcp_name(const struct sockaddr *sa, char *out, size_t out_size);
#endif
