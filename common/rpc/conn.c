#include "common/rpc/conn.h"

#include "common/rpc/tcp.h"

td_status td_conn_connect(td_loop *loop, const td_addr *peer, td_security security,
                          const td_conn_events *events, void *user, td_conn **out, td_err *err)
{
    switch (security) {
    case TD_PLAINTEXT: return td_tcp_connect(loop, peer, events, user, out, err);
    case TD_TLS: break;
    }
    return td_fail(err, TD_UNSUPPORTED, "TLS is not supported yet");
}

td_status td_conn_write(td_conn *conn, const uint8_t *data, size_t len)
{
    return conn->ops->write(conn, data, len);
}

size_t td_conn_unsent_bytes(const td_conn *conn)
{
    return conn->ops->unsent_bytes(conn);
}

void td_conn_pause(td_conn *conn, bool paused)
{
    conn->ops->pause(conn, paused);
}

void td_conn_close(td_conn *conn)
{
    conn->ops->close(conn);
}
