/* ucx.h - the part of UCX that the transfer layer uses, and the only file that knows its options: a
 * context, one worker, a listener, endpoints with peer error handling, and short active messages.
 * Only for common/transfer, and only on the transfer thread. Nothing here waits for a peer. */
#ifndef TD_TRANSFER_UCX_H
#define TD_TRANSFER_UCX_H
#include "common/base/status.h"
#include "common/transfer/xfer.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>

typedef struct td_ucx_send td_ucx_send;

typedef struct {
    unsigned id;
    ucp_am_recv_callback_t call;
    void *arg;
} td_ucx_handler;

typedef struct {
    td_xfer_transport transport;
    const char *net_devices, *port_range; /* NULL: UCX's default */
    const struct sockaddr *listen;        /* NULL: no listener */
    socklen_t listen_bytes;
    /* Runs within progress(); the request must be accepted or rejected. */
    ucp_listener_conn_callback_t on_connect;
    void *arg;
    uint32_t n_sends; /* messages under way at once */
    int wants_gpu;    /* GPU memory is to be sent and received, if this UCX can */
} td_ucx_args;

typedef struct {
    ucp_context_h context;
    ucp_worker_h worker; /* NULL after a failed restart */
    ucp_listener_h listener;
    struct sockaddr_storage listen; /* with the port that it got */
    socklen_t listen_bytes;         /* 0: no listener */
    ucp_listener_conn_handler_t on_connect;
    td_ucx_handler handlers[8];
    uint32_t n_handlers;
    int event_fd;       /* readable when the armed worker has work */
    uint32_t n_closing; /* endpoints whose forced close is not finished */
    td_ucx_send *sends; /* [n_sends] */
    td_ucx_send *free_sends;
    uint32_t n_sends, n_sending;
    int has_gpu;      /* it was wanted, and this UCX can */
    ucp_mem_h memory; /* NULL, or td_ucx_register()'s */
} td_ucx;

typedef struct {
    unsigned id; /* td_wire_id */
    const void *header;
    size_t n_header_bytes; /* copied */
    const void *data;      /* stays until the message is out; NULL: none */
    size_t n_data_bytes;
    uint32_t *n_out;      /* NULL, or counts this message while it is under way */
    uint32_t *n_data_out; /* the same, beside it */
    int reply;            /* 1: the receiver learns the endpoint */
    int rendezvous;       /* 1: the receiver fetches the data, or drops them */
    int is_gpu;           /* rendezvous: data is GPU memory */
} td_ucx_message;

/* Zeroed *ucx. TD_CONFIG: this machine cannot do what is asked. */
td_status td_ucx_open(td_ucx *ucx, const td_ucx_args *args, td_err *err);
void td_ucx_close(td_ucx *ucx); /* zeroed or half-open is fine */
/* A new worker and listener, on the same port, with the same handlers; every endpoint and message
 * of the old one is gone. May be tried again. */
td_status td_ucx_restart(td_ucx *ucx, td_err *err);
uint16_t td_ucx_listen_port(const td_ucx *ucx); /* 0: none */
td_status td_ucx_handle(td_ucx *ucx, unsigned id, ucp_am_recv_callback_t handler, void *arg,
                        td_err *err);
td_status td_ucx_connect(td_ucx *ucx, const struct sockaddr *addr, socklen_t addr_bytes,
                         ucp_err_handler_cb_t on_error, void *arg, ucp_ep_h *out, td_err *err);
td_status td_ucx_accept(td_ucx *ucx, ucp_conn_request_h request, ucp_err_handler_cb_t on_error,
                        void *arg, ucp_ep_h *out, td_err *err);
/* By force: nothing that was under way on it is waited for. */
void td_ucx_close_ep(td_ucx *ucx, ucp_ep_h ep);
/* TD_OK: it is on its way. TD_FULL: as many as there may be are under way. TD_PEER_LOST. */
td_status td_ucx_send_message(td_ucx *ucx, ucp_ep_h ep, const td_ucx_message *msg);
/* GPU memory that messages will be sent from or received into, once, before any of it. */
td_status td_ucx_register(td_ucx *ucx, void *base, size_t n_bytes, td_err *err);
/* Within a handler: fetches a rendezvous' data, a handler's `data`. TD_OK: they are there.
 * TD_PENDING: on_done follows, once; the handler returns UCS_INPROGRESS in both cases. Otherwise
 * the endpoint is broken. */
td_status td_ucx_fetch(td_ucx *ucx, void *data, void *to, size_t n_bytes, int is_gpu,
                       ucp_am_recv_data_nbx_callback_t on_done, void *arg);
/* The transport that carries active messages of a connected endpoint: "posix", "tcp"; "?" when UCX
 * does not tell. *fetcher: "cuda_ipc", or an RDMA transport, if memory of a GPU can be fetched over
 * it without the other process's doing; otherwise "". */
void td_ucx_transport(ucp_ep_h ep, char out[TD_XFER_TRANSPORT_BYTES],
                      char fetcher[TD_XFER_TRANSPORT_BYTES]);
int td_ucx_is_shm(const char *transport);
/* The same from what ucp_ep_print_info() writes (here for its test). */
void td_ucx_parse_transport(const char *info, char out[TD_XFER_TRANSPORT_BYTES],
                            char fetcher[TD_XFER_TRANSPORT_BYTES]);
#endif
