#include "common/serve/worker.h"

#include "common/base/version.h"
#include "common/serve/message.h"

#include <stdlib.h>
#include <string.h>

/* Of n_all rows, those that an answer has; the others are counted in *omitted. */
static size_t shown(uint32_t n_all, uint32_t *omitted)
{
    *omitted = n_all > TD_WORKER_MAX_ROWS ? n_all - TD_WORKER_MAX_ROWS : 0;
    return n_all - *omitted;
}

static void on_heartbeat(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_worker_service *s = user;
    (void)msg;
    (void)len;
    Tandem__V1__WorkerStatus status = TANDEM__V1__WORKER_STATUS__INIT;
    status.role = (char *)s->role;
    status.state = (char *)td_serve_state_name(td_serve_get_state(s->serve));
    status.incarnation = (char *)td_serve_incarnation(s->serve);
    status.version = (char *)td_version();
    status.uptime_s = td_serve_uptime_s(s->serve);
    Tandem__V1__PageCount counts[TD_WORKER_MAX_PAGE_STATES];
    Tandem__V1__PageCount *pointers[TD_WORKER_MAX_PAGE_STATES];
    for (int i = 0; i < TD_WORKER_MAX_PAGE_STATES; i++) {
        counts[i] = (Tandem__V1__PageCount)TANDEM__V1__PAGE_COUNT__INIT;
        pointers[i] = &counts[i];
    }
    status.pages = pointers;
    s->status(s->user, &status);
    td_serve_status(s->serve, "%u requests, %u of them waiting", status.requests_active,
                    status.requests_queued);
    Tandem__V1__HeartbeatResponse res = TANDEM__V1__HEARTBEAT_RESPONSE__INIT;
    res.status = &status;
    td_message_reply(call, &res.base);
}

static void on_get_links(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_worker_service *s = user;
    Tandem__V1__Link *rows = calloc(TD_WORKER_MAX_ROWS, sizeof(*rows));
    Tandem__V1__Link *pointers[TD_WORKER_MAX_ROWS];
    (void)msg;
    (void)len;
    if (rows == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the links");
        return;
    }
    for (uint32_t i = 0; i < TD_WORKER_MAX_ROWS; i++) {
        rows[i] = (Tandem__V1__Link)TANDEM__V1__LINK__INIT;
        pointers[i] = &rows[i];
    }
    Tandem__V1__GetLinksResponse res = TANDEM__V1__GET_LINKS_RESPONSE__INIT;
    res.n_links = shown(s->links(s->user, rows), &res.omitted);
    res.links = pointers;
    td_message_reply(call, &res.base);
    free(rows);
}

static void on_get_transfers(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_worker_service *s = user;
    ProtobufCMessage *message;
    td_err err;
    if (td_message_unpack(&tandem__v1__get_transfers_request__descriptor, msg, len, &message,
                          &err) != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    bool live_only = ((Tandem__V1__GetTransfersRequest *)message)->live_only;
    protobuf_c_message_free_unpacked(message, NULL);
    Tandem__V1__Transfer *rows = calloc(TD_WORKER_MAX_ROWS, sizeof(*rows));
    Tandem__V1__Transfer *pointers[TD_WORKER_MAX_ROWS];
    if (rows == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the transfers");
        return;
    }
    for (uint32_t i = 0; i < TD_WORKER_MAX_ROWS; i++) {
        rows[i] = (Tandem__V1__Transfer)TANDEM__V1__TRANSFER__INIT;
        pointers[i] = &rows[i];
    }
    Tandem__V1__GetTransfersResponse res = TANDEM__V1__GET_TRANSFERS_RESPONSE__INIT;
    res.n_transfers = shown(s->transfers(s->user, live_only, rows), &res.omitted);
    res.transfers = pointers;
    td_message_reply(call, &res.base);
    free(rows);
}

void td_worker_methods(td_worker_service *s, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/tandem.v1.Worker/Heartbeat",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_heartbeat,
                              .user = s};
    rows[1] = (td_rpc_method){.path = "/tandem.v1.Worker/GetLinks",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_get_links,
                              .user = s};
    rows[2] = (td_rpc_method){.path = "/tandem.v1.Worker/GetTransfers",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_get_transfers,
                              .user = s};
}
