#include "common/transfer/ucx.h"

#include "common/base/log.h"
#include "common/transfer/wire.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

struct td_ucx_send {
    unsigned char header[TD_WIRE_HEADER_BYTES];
    td_ucx *ucx;
    uint32_t *n_out, *n_data_out;
    td_ucx_send *next; /* in the free list */
};

/* What we set, whatever the environment says. tcp is among the transports of AUTO and SHM because
 * UCX's connection manager speaks it, also between processes that then share memory. */
static const struct {
    const char *name, *value; /* since 1.20 or so some names want their transport's in front */
} options[] = {
    {"SOCKADDR_TLS_PRIORITY", "tcp"}, /* connections are made over plain sockets, not rdmacm */
    {"CM_REUSEADDR", "y"},            /* a restarted daemon gets its port back at once */
    {"KEEPALIVE_INTERVAL",
     "inf"},                    /* 20 s and blind to stopped peers: our own deadlines do better */
    {"MM_ERROR_HANDLING", "y"}, /* without it shared memory takes no part in peer error handling */
    {"MM_SEG_SIZE", "33024"},   /* posix: TD_WIRE_SHM_PIECE_BYTES and headers */
    {"MM_FIFO_SIZE", "256"},    /* posix: windows of several sources fit */
    {"MM_RX_BUFS_GROW", "64"},  /* posix: segments come 2 MB at a time, not 17 */
    {"PUT_ENABLE", "n"},        /* tcp: nobody writes into another's memory */
    {"TX_SEG_SIZE", "65536"},   /* tcp: a piece goes out with one system call */
    {"RX_SEG_SIZE", "131072"},
};

/* UCX prints to stdout otherwise. What matters of it comes back to us as a status, too. */
static ucs_log_func_rc_t on_log(const char *file, unsigned line, const char *function,
                                ucs_log_level_t level, const ucs_log_component_config_t *component,
                                const char *format, va_list ap)
{
    (void)file, (void)line, (void)component;
    if (level > UCS_LOG_LEVEL_WARN)
        return UCS_LOG_FUNC_RC_STOP;
    char text[512];
    vsnprintf(text, sizeof(text), format, ap);
    if (level == UCS_LOG_LEVEL_FATAL)
        td_error("ucx", "in=%s text=\"%s\"", function, text);
    else
        td_debug("ucx", "in=%s text=\"%s\"", function, text);
    return UCS_LOG_FUNC_RC_STOP;
}

/* Once for the process: crashes are the daemon's (and its sanitizer's) to report, not UCX's. */
static void quieten(void)
{
    static int done;
    if (__atomic_exchange_n(&done, 1, __ATOMIC_SEQ_CST) != 0)
        return;
    ucs_log_push_handler(on_log);
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        ucs_debug_disable_signal(signals[i]);
}

static td_status set_option(ucp_config_t *config, const char *name, const char *value, td_err *err)
{
    char with_tcp[64];
    ucs_status_t status = ucp_config_modify(config, name, value);
    if (status != UCS_OK) {
        snprintf(with_tcp, sizeof(with_tcp), "TCP_%s", name);
        status = ucp_config_modify(config, with_tcp, value);
    }
    if (status != UCS_OK)
        return td_fail(err, TD_CONFIG, "ucx: option %s=%s: %s", name, value,
                       ucs_status_string(status));
    return TD_OK;
}

static const char *transports(td_xfer_transport transport)
{
    switch (transport) {
    case TD_XFER_AUTO: return "posix,self,tcp,ib";
    case TD_XFER_SHM: return "posix,self,tcp";
    case TD_XFER_TCP: break;
    }
    return "tcp,self";
}

static td_status configure(ucp_config_t *config, const td_ucx_args *args, td_err *err)
{
    char tls[64];
    snprintf(tls, sizeof(tls), "%s%s", transports(args->transport), args->wants_gpu ? ",cuda" : "");
    td_status st = set_option(config, "TLS", tls, err);
    if (st == TD_OK) /* whoever receives does the copying */
        st = set_option(config, "RNDV_SCHEME", "get_zcopy", err);
    for (size_t i = 0; st == TD_OK && i < sizeof(options) / sizeof(options[0]); i++)
        st = set_option(config, options[i].name, options[i].value, err);
    if (st == TD_OK && args->net_devices != NULL)
        st = set_option(config, "NET_DEVICES", args->net_devices, err);
    if (st == TD_OK && args->port_range != NULL)
        st = set_option(config, "PORT_RANGE", args->port_range, err);
    return st;
}

/* UCX only warns when a transport or a device is missing. Its list has lines like
 * `#  resource 1  :  md 1  dev 1  flags -- tcp/lo`. */
static int has_resource(const char *info, const char *transport, const char *device, size_t n)
{
    for (const char *at = strstr(info, "resource "); at != NULL; at = strstr(at + 1, "resource ")) {
        size_t n_line = strcspn(at, "\n");
        const char *end = at + n_line, *slash = memchr(at, '/', n_line);
        if (slash == NULL)
            continue;
        const char *name = slash;
        while (name > at && name[-1] != ' ')
            name--;
        if (transport != NULL && ((size_t)(slash - name) != strlen(transport) ||
                                  memcmp(name, transport, strlen(transport)) != 0))
            continue;
        if (device == NULL || ((size_t)(end - slash - 1) == n && memcmp(slash + 1, device, n) == 0))
            return 1;
    }
    return 0;
}

static td_status judge_resources(const td_ucx_args *args, const char *info, td_err *err)
{
    if (!has_resource(info, "tcp", NULL, 0))
        return td_fail(err, TD_CONFIG,
                       "ucx: no tcp on devices %s (it also needs /sys and AF_NETLINK), and "
                       "connections are made over it",
                       args->net_devices != NULL ? args->net_devices : "any");
    if (args->transport == TD_XFER_SHM && !has_resource(info, "posix", NULL, 0))
        return td_fail(err, TD_CONFIG, "ucx: no posix shared memory (/dev/shm) on this machine");
    for (const char *at = args->net_devices; at != NULL && *at != '\0';) {
        size_t n = strcspn(at, ",");
        if (!has_resource(info, NULL, at, n))
            return td_fail(err, TD_CONFIG, "ucx: network device %.*s is not there", (int)n, at);
        at += n + (at[n] == ',');
    }
    return TD_OK;
}

static td_status check_resources(const td_ucx *ucx, const td_ucx_args *args, td_err *err)
{
    char *info = NULL;
    size_t n_bytes = 0;
    FILE *stream = open_memstream(&info, &n_bytes);
    if (stream == NULL)
        return td_fail(err, TD_NOMEM, "ucx: no memory");
    ucp_context_print_info(ucx->context, stream);
    fclose(stream);
    td_status st = judge_resources(args, info, err);
    free(info);
    return st;
}

static int has_gpu(ucp_context_h context)
{
    ucp_context_attr_t attr = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    return ucp_context_query(context, &attr) == UCS_OK &&
           (attr.memory_types >> UCS_MEMORY_TYPE_CUDA & 1) != 0;
}

static td_status open_context(td_ucx *ucx, const td_ucx_args *args, td_err *err)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return td_fail(err, TD_CONFIG, "ucx: configuration: %s", ucs_status_string(status));
    td_status st = configure(config, args, err);
    if (st == TD_OK) {
        ucp_params_t params = {
            .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
            .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
            .mt_workers_shared = 0,
        };
        status = ucp_init(&params, config, &ucx->context);
        st = status == UCS_OK ? check_resources(ucx, args, err)
                              : td_fail(err, TD_CONFIG, "ucx: transports %s: %s",
                                        transports(args->transport), ucs_status_string(status));
    }
    ucp_config_release(config);
    return st;
}

static td_status open_worker(td_ucx *ucx, td_err *err)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucs_status_t status = ucp_worker_create(ucx->context, &params, &ucx->worker);
    if (status != UCS_OK) {
        ucx->worker = NULL;
        return td_fail(err, TD_CONFIG, "ucx: worker: %s", ucs_status_string(status));
    }
    status = ucp_worker_get_efd(ucx->worker, &ucx->event_fd);
    if (status != UCS_OK)
        return td_fail(err, TD_CONFIG, "ucx: event descriptor: %s", ucs_status_string(status));
    return TD_OK;
}

static td_status open_listener(td_ucx *ucx, td_err *err)
{
    if (ucx->listen_bytes == 0)
        return TD_OK;
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {(const struct sockaddr *)&ucx->listen, ucx->listen_bytes},
        .conn_handler = ucx->on_connect,
    };
    ucs_status_t status = ucp_listener_create(ucx->worker, &params, &ucx->listener);
    if (status != UCS_OK) {
        ucx->listener = NULL;
        return td_fail(err, TD_CONFIG, "ucx: listening: %s", ucs_status_string(status));
    }
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    status = ucp_listener_query(ucx->listener, &attr);
    if (status != UCS_OK)
        return td_fail(err, TD_CONFIG, "ucx: listening port: %s", ucs_status_string(status));
    if (attr.sockaddr.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&ucx->listen)->sin6_port =
            ((const struct sockaddr_in6 *)&attr.sockaddr)->sin6_port;
    else
        ((struct sockaddr_in *)&ucx->listen)->sin_port =
            ((const struct sockaddr_in *)&attr.sockaddr)->sin_port;
    return TD_OK;
}

static td_status set_handler(td_ucx *ucx, const td_ucx_handler *handler, td_err *err)
{
    ucp_am_handler_param_t param = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = handler->id,
        .cb = handler->call,
        .arg = handler->arg,
    };
    ucs_status_t status = ucp_worker_set_am_recv_handler(ucx->worker, &param);
    if (status != UCS_OK)
        return td_fail(err, TD_CONFIG, "ucx: handler %u: %s", handler->id,
                       ucs_status_string(status));
    return TD_OK;
}

static void free_all_sends(td_ucx *ucx)
{
    ucx->free_sends = NULL;
    ucx->n_sending = 0;
    for (uint32_t i = 0; i < ucx->n_sends; i++) {
        ucx->sends[i].ucx = ucx;
        ucx->sends[i].next = ucx->free_sends;
        ucx->free_sends = &ucx->sends[i];
    }
}

static td_status open_sends(td_ucx *ucx, uint32_t n_sends, td_err *err)
{
    ucx->sends = calloc(n_sends, sizeof(*ucx->sends));
    if (ucx->sends == NULL)
        return td_fail(err, TD_NOMEM, "ucx: no memory for %u messages", n_sends);
    ucx->n_sends = n_sends;
    free_all_sends(ucx);
    return TD_OK;
}

td_status td_ucx_open(td_ucx *ucx, const td_ucx_args *args, td_err *err)
{
    quieten();
    if (args->listen != NULL) {
        memcpy(&ucx->listen, args->listen, args->listen_bytes);
        ucx->listen_bytes = args->listen_bytes;
        ucx->on_connect = (ucp_listener_conn_handler_t){args->on_connect, args->arg};
    }
    td_status st = open_sends(ucx, args->n_sends, err);
    if (st == TD_OK)
        st = open_context(ucx, args, err);
    if (st == TD_OK)
        ucx->has_gpu = args->wants_gpu && has_gpu(ucx->context);
    if (st == TD_OK)
        st = open_worker(ucx, err);
    if (st == TD_OK)
        st = open_listener(ucx, err);
    if (st != TD_OK)
        td_ucx_close(ucx);
    return st;
}

static void close_worker(td_ucx *ucx)
{
    if (ucx->listener != NULL)
        ucp_listener_destroy(ucx->listener);
    if (ucx->worker != NULL)
        ucp_worker_destroy(ucx->worker);
    ucx->listener = NULL;
    ucx->worker = NULL;
    ucx->n_closing = 0;
}

void td_ucx_close(td_ucx *ucx)
{
    close_worker(ucx);
    if (ucx->memory != NULL)
        ucp_mem_unmap(ucx->context, ucx->memory);
    if (ucx->context != NULL)
        ucp_cleanup(ucx->context);
    free(ucx->sends);
    memset(ucx, 0, sizeof(*ucx));
}

td_status td_ucx_restart(td_ucx *ucx, td_err *err)
{
    close_worker(ucx);
    free_all_sends(ucx);
    td_status st = open_worker(ucx, err);
    for (uint32_t i = 0; st == TD_OK && i < ucx->n_handlers; i++)
        st = set_handler(ucx, &ucx->handlers[i], err);
    if (st == TD_OK)
        st = open_listener(ucx, err);
    if (st != TD_OK)
        close_worker(ucx);
    return st;
}

uint16_t td_ucx_listen_port(const td_ucx *ucx)
{
    if (ucx->listen_bytes == 0)
        return 0;
    return ntohs(ucx->listen.ss_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)&ucx->listen)->sin6_port
                     : ((const struct sockaddr_in *)&ucx->listen)->sin_port);
}

td_status td_ucx_handle(td_ucx *ucx, unsigned id, ucp_am_recv_callback_t handler, void *arg,
                        td_err *err)
{
    td_assert(ucx->n_handlers < sizeof(ucx->handlers) / sizeof(ucx->handlers[0]));
    ucx->handlers[ucx->n_handlers] = (td_ucx_handler){id, handler, arg};
    return set_handler(ucx, &ucx->handlers[ucx->n_handlers++], err);
}

static td_status create_ep(td_ucx *ucx, ucp_ep_params_t *params, ucp_err_handler_cb_t on_error,
                           void *arg, ucp_ep_h *out, td_err *err)
{
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = on_error;
    params->err_handler.arg = arg;
    ucs_status_t status = ucp_ep_create(ucx->worker, params, out);
    if (status != UCS_OK)
        return td_fail(err, TD_PEER_LOST, "ucx: endpoint: %s", ucs_status_string(status));
    return TD_OK;
}

td_status td_ucx_connect(td_ucx *ucx, const struct sockaddr *addr, socklen_t addr_bytes,
                         ucp_err_handler_cb_t on_error, void *arg, ucp_ep_h *out, td_err *err)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
        .sockaddr = {addr, addr_bytes},
    };
    return create_ep(ucx, &params, on_error, arg, out, err);
}

td_status td_ucx_accept(td_ucx *ucx, ucp_conn_request_h request, ucp_err_handler_cb_t on_error,
                        void *arg, ucp_ep_h *out, td_err *err)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
        .conn_request = request,
    };
    return create_ep(ucx, &params, on_error, arg, out, err);
}

static void on_closed(void *request, ucs_status_t status, void *arg)
{
    (void)status;
    ((td_ucx *)arg)->n_closing--;
    ucp_request_free(request);
}

void td_ucx_close_ep(td_ucx *ucx, ucp_ep_h ep)
{
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_EP_CLOSE_FLAG_FORCE,
        .cb.send = on_closed,
        .user_data = ucx,
    };
    ucs_status_ptr_t request = ucp_ep_close_nbx(ep, &param);
    if (UCS_PTR_IS_PTR(request))
        ucx->n_closing++;
}

static void finish_send(td_ucx_send *send)
{
    td_ucx *ucx = send->ucx;
    if (send->n_out != NULL)
        --*send->n_out;
    if (send->n_data_out != NULL)
        --*send->n_data_out;
    send->next = ucx->free_sends;
    ucx->free_sends = send;
    ucx->n_sending--;
}

static void on_sent(void *request, ucs_status_t status, void *arg)
{
    (void)status; /* a broken endpoint tells its error handler */
    finish_send(arg);
    ucp_request_free(request);
}

td_status td_ucx_send_message(td_ucx *ucx, ucp_ep_h ep, const td_ucx_message *msg)
{
    td_assert(msg->n_header_bytes <= TD_WIRE_HEADER_BYTES);
    td_ucx_send *send = ucx->free_sends;
    if (send == NULL)
        return TD_FULL;
    ucx->free_sends = send->next;
    ucx->n_sending++;
    memcpy(send->header, msg->header, msg->n_header_bytes);
    send->n_out = msg->n_out;
    send->n_data_out = msg->n_data_out;
    if (send->n_out != NULL)
        ++*send->n_out;
    if (send->n_data_out != NULL)
        ++*send->n_data_out;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .flags = (msg->rendezvous ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER) |
                 (msg->reply ? (uint32_t)UCP_AM_SEND_FLAG_REPLY : 0U),
        .memory_type = msg->is_gpu ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST,
        .cb.send = on_sent,
        .user_data = send,
    };
    ucs_status_ptr_t request = ucp_am_send_nbx(ep, msg->id, send->header, msg->n_header_bytes,
                                               msg->data, msg->n_data_bytes, &param);
    if (UCS_PTR_IS_PTR(request))
        return TD_OK;
    finish_send(send);
    return UCS_PTR_IS_ERR(request) ? TD_PEER_LOST : TD_OK;
}

td_status td_ucx_register(td_ucx *ucx, void *base, size_t n_bytes, td_err *err)
{
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        .address = base,
        .length = n_bytes,
        .memory_type = UCS_MEMORY_TYPE_CUDA,
    };
    ucs_status_t status = ucp_mem_map(ucx->context, &params, &ucx->memory);
    if (status == UCS_OK)
        return TD_OK;
    ucx->memory = NULL;
    return td_fail(err, TD_UNSUPPORTED, "ucx %s: registering %zu bytes of GPU memory: %s",
                   ucp_get_version_string(), n_bytes, ucs_status_string(status));
}

td_status td_ucx_fetch(td_ucx *ucx, void *data, void *to, size_t n_bytes, int is_gpu,
                       ucp_am_recv_data_nbx_callback_t on_done, void *arg)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.recv_am = on_done,
        .user_data = arg,
        .memory_type = is_gpu ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST,
    };
    ucs_status_ptr_t request = ucp_am_recv_data_nbx(ucx->worker, data, to, n_bytes, &param);
    if (request == NULL)
        return TD_OK;
    return UCS_PTR_IS_ERR(request) ? TD_PEER_LOST : TD_PENDING;
}

static int is_fetcher(const char *name)
{
    return strcmp(name, "cuda_ipc") == 0 || strncmp(name, "rc_", 3) == 0 ||
           strncmp(name, "dc_", 3) == 0;
}

/* `#  lane[1]:  2:posix/memory.0 md[2] -> md[2]/posix/sysdev[255] am am_bw#0 keepalive`: the lane
 * with the role "am". The connection manager's lane has no number. */
void td_ucx_parse_transport(const char *info, char out[TD_XFER_TRANSPORT_BYTES],
                            char fetcher[TD_XFER_TRANSPORT_BYTES])
{
    snprintf(out, TD_XFER_TRANSPORT_BYTES, "?");
    fetcher[0] = '\0';
    for (const char *lane = strstr(info, "lane["); lane != NULL; lane = strstr(lane + 1, "lane[")) {
        char line[512];
        size_t n = strcspn(lane, "\n");
        snprintf(line, sizeof(line), "%.*s", (int)(n < sizeof(line) - 2 ? n : sizeof(line) - 2),
                 lane);
        strcat(line, " ");
        char name[TD_XFER_TRANSPORT_BYTES];
        if (sscanf(line, "lane[%*d]: %*d:%31[^/]/", name) != 1)
            continue;
        if (strstr(line, " am ") != NULL && strcmp(out, "?") == 0)
            memcpy(out, name, sizeof(name));
        if (is_fetcher(name))
            memcpy(fetcher, name, sizeof(name));
    }
}

/* ucp_ep_query(), since 1.16, names the connection manager's tcp beside the lanes' transports and
 * does not tell which lane does what; what UCX prints has one form from 1.13 to 1.22. */
void td_ucx_transport(ucp_ep_h ep, char out[TD_XFER_TRANSPORT_BYTES],
                      char fetcher[TD_XFER_TRANSPORT_BYTES])
{
    char *text = NULL;
    size_t n_bytes = 0;
    snprintf(out, TD_XFER_TRANSPORT_BYTES, "?");
    fetcher[0] = '\0';
    FILE *stream = open_memstream(&text, &n_bytes);
    if (stream == NULL)
        return;
    ucp_ep_print_info(ep, stream);
    fclose(stream);
    td_ucx_parse_transport(text, out, fetcher);
    td_debug("ucx.lanes", "text=\"%s\"", text);
    free(text);
}

int td_ucx_is_shm(const char *transport)
{
    return strcmp(transport, "posix") == 0 || strcmp(transport, "posix+cuda_ipc") == 0 ||
           strcmp(transport, "sysv") == 0 || strcmp(transport, "self") == 0;
}
