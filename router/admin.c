#include "router/admin.h"

#include "common/base/clock.h"
#include "common/base/version.h"
#include "common/serve/message.h"
#include "proto/tandem/v1/admin.pb-c.h"
#include "router/call_id.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKER_ANSWER_NS TD_NS_PER_S
#define MAX_WORKERS 128
#define WHY_BYTES 600
#define MAX_ASKING 64 /* the workers' connections have more to do */
#define MAX_ANSWER_BYTES ((size_t)4 << 20)
#define ROW_HEAD_BYTES 8 /* a row's tag and length, and a bit */

/* ---- status ---- */

static void fill_entry(Tandem__V1__WorkerEntry *e, td_worker *w)
{
    *e = (Tandem__V1__WorkerEntry)TANDEM__V1__WORKER_ENTRY__INIT;
    e->address = w->address;
    e->role = (char *)td_role_name(w->role);
    e->reachable = w->reachable;
    e->why = w->why;
    e->heartbeat_age_s = w->heard_ns == 0 ? -1.0 : (double)(td_now_ns() - w->heard_ns) / 1e9;
    e->status = w->status;
}

static void on_get_status(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_admin *a = user;
    uint32_t n = td_registry_count(a->registry);
    Tandem__V1__WorkerEntry *entries = calloc(n + 1, sizeof(*entries));
    Tandem__V1__WorkerEntry **pointers = calloc(n + 1, sizeof(*pointers));
    (void)msg;
    (void)len;
    if (!td_call_id_echo(call))
        goto out;
    if (entries == NULL || pointers == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the answer");
        goto out;
    }
    for (uint32_t i = 0; i < n; i++) {
        fill_entry(&entries[i], td_registry_worker(a->registry, i));
        pointers[i] = &entries[i];
    }
    Tandem__V1__RouterStatus router = TANDEM__V1__ROUTER_STATUS__INIT;
    router.version = (char *)td_version();
    router.incarnation = (char *)a->incarnation;
    router.state = (char *)a->state(a->user);
    router.uptime_s = a->uptime_s(a->user);
    router.requests_active = td_dispatch_active(a->dispatch);
    router.requests_queued = td_dispatch_queued(a->dispatch);
    Tandem__V1__GetStatusResponse res = TANDEM__V1__GET_STATUS_RESPONSE__INIT;
    res.router = &router;
    res.n_workers = n;
    res.workers = pointers;
    td_message_reply(call, &res.base);
out:
    free(entries);
    free(pointers);
}

/* ---- links and transfers: asked of every worker ---- */

typedef struct fan_out fan_out;

typedef struct {
    fan_out *all;
    td_worker *worker;
    td_rpc_request *request; /* under way */
    ProtobufCMessage *answer;
    size_t n_shown; /* rows of it that have room in ours */
    char why[WHY_BYTES];
} fan_part;

struct fan_out {
    td_admin *admin;
    td_rpc_call *call;
    char id[TD_REQUEST_ID_MAX + 1];
    bool links; /* otherwise transfers */
    bool starting;
    uint32_t n_parts, n_open;
    fan_part parts[MAX_WORKERS];
};

static void fan_out_free(fan_out *f)
{
    for (uint32_t i = 0; i < f->n_parts; i++) {
        td_rpc_request_cancel(f->parts[i].request);
        if (f->parts[i].answer != NULL)
            protobuf_c_message_free_unpacked(f->parts[i].answer, NULL);
    }
    f->admin->n_asking--;
    free(f);
}

static size_t answer_rows(const fan_out *f, const fan_part *p)
{
    if (p->answer == NULL)
        return 0;
    return f->links ? ((Tandem__V1__GetLinksResponse *)p->answer)->n_links
                    : ((Tandem__V1__GetTransfersResponse *)p->answer)->n_transfers;
}

/* Rows that the worker itself had to leave out. */
static uint32_t rows_omitted(const fan_out *f, const fan_part *p)
{
    if (p->answer == NULL)
        return 0;
    return f->links ? ((Tandem__V1__GetLinksResponse *)p->answer)->omitted
                    : ((Tandem__V1__GetTransfersResponse *)p->answer)->omitted;
}

static size_t row_bytes_of(const fan_out *f, const fan_part *p, size_t row)
{
    size_t n = strlen(p->worker->address) + 2 * ROW_HEAD_BYTES;
    if (f->links)
        return n + tandem__v1__link__get_packed_size(
                       ((Tandem__V1__GetLinksResponse *)p->answer)->links[row]);
    return n + tandem__v1__transfer__get_packed_size(
                   ((Tandem__V1__GetTransfersResponse *)p->answer)->transfers[row]);
}

/* As many rows as a message holds, every worker's first ones first: no worker is left out because
 * others have much to tell. Returns how many rows are left out. */
static uint32_t choose_rows(fan_out *f, size_t room)
{
    uint32_t n_omitted = 0;
    bool more = true, full = false;
    for (uint32_t i = 0; i < f->n_parts; i++)
        n_omitted += rows_omitted(f, &f->parts[i]);
    for (size_t row = 0; more; row++) {
        more = false;
        for (uint32_t i = 0; i < f->n_parts; i++) {
            fan_part *p = &f->parts[i];
            if (row >= answer_rows(f, p))
                continue;
            more = true;
            size_t n = full ? 0 : row_bytes_of(f, p, row);
            full = full || n > room;
            if (full) {
                n_omitted++;
                continue;
            }
            room -= n;
            p->n_shown++;
        }
    }
    return n_omitted;
}

static size_t rows_shown(const fan_part *p)
{
    return p->answer != NULL ? p->n_shown : 0;
}

/* One reply from all answers; rows point into them. rows and pointers: for those that are shown. */
static void reply(const fan_out *f, void *rows, void **pointers, char **unreachable,
                  size_t n_unreachable, uint32_t n_omitted)
{
    size_t n = 0;
    if (f->links) {
        Tandem__V1__LinkEntry *links = rows;
        for (uint32_t i = 0; i < f->n_parts; i++)
            for (size_t j = 0; j < rows_shown(&f->parts[i]); j++, n++) {
                links[n] = (Tandem__V1__LinkEntry)TANDEM__V1__LINK_ENTRY__INIT;
                pointers[n] = &links[n];
                links[n].worker = f->parts[i].worker->address;
                links[n].link = ((Tandem__V1__GetLinksResponse *)f->parts[i].answer)->links[j];
            }
        Tandem__V1__ListLinksResponse res = TANDEM__V1__LIST_LINKS_RESPONSE__INIT;
        res.n_links = n;
        res.links = (Tandem__V1__LinkEntry **)pointers;
        res.n_unreachable = n_unreachable;
        res.unreachable = unreachable;
        res.omitted = n_omitted;
        td_message_reply(f->call, &res.base);
        return;
    }
    Tandem__V1__TransferEntry *transfers = rows;
    for (uint32_t i = 0; i < f->n_parts; i++)
        for (size_t j = 0; j < rows_shown(&f->parts[i]); j++, n++) {
            transfers[n] = (Tandem__V1__TransferEntry)TANDEM__V1__TRANSFER_ENTRY__INIT;
            pointers[n] = &transfers[n];
            transfers[n].worker = f->parts[i].worker->address;
            transfers[n].transfer =
                ((Tandem__V1__GetTransfersResponse *)f->parts[i].answer)->transfers[j];
        }
    Tandem__V1__ListTransfersResponse res = TANDEM__V1__LIST_TRANSFERS_RESPONSE__INIT;
    res.n_transfers = n;
    res.transfers = (Tandem__V1__TransferEntry **)pointers;
    res.n_unreachable = n_unreachable;
    res.unreachable = unreachable;
    res.omitted = n_omitted;
    td_message_reply(f->call, &res.base);
}

static void finish(fan_out *f)
{
    size_t n_rows = 0, n_unreachable = 0, n_taken = ROW_HEAD_BYTES;
    size_t max = f->admin->max_answer_bytes > 0 ? f->admin->max_answer_bytes : MAX_ANSWER_BYTES;
    char *unreachable[MAX_WORKERS];
    for (uint32_t i = 0; i < f->n_parts; i++) {
        if (f->parts[i].answer != NULL)
            continue;
        n_taken += strlen(f->parts[i].why) + ROW_HEAD_BYTES;
        unreachable[n_unreachable++] = f->parts[i].why;
    }
    uint32_t n_omitted = choose_rows(f, n_taken < max ? max - n_taken : 0);
    for (uint32_t i = 0; i < f->n_parts; i++)
        n_rows += rows_shown(&f->parts[i]);
    size_t row_bytes = f->links ? sizeof(Tandem__V1__LinkEntry) : sizeof(Tandem__V1__TransferEntry);
    void *rows = calloc(n_rows + 1, row_bytes);
    void **pointers = calloc(n_rows + 1, sizeof(*pointers));
    if (rows == NULL || pointers == NULL)
        td_rpc_call_finish(f->call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the answer");
    else
        reply(f, rows, pointers, unreachable, n_unreachable, n_omitted);
    free(rows);
    free(pointers);
    fan_out_free(f);
}

static void close_part(fan_part *p)
{
    p->request = NULL;
    if (--p->all->n_open == 0 && !p->all->starting)
        finish(p->all);
}

static void on_part(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    fan_part *p = user;
    td_err err;
    (void)req;
    if (p->answer == NULL &&
        td_message_unpack(p->all->links ? &tandem__v1__get_links_response__descriptor
                                        : &tandem__v1__get_transfers_response__descriptor,
                          msg, len, &p->answer, &err) != TD_OK)
        snprintf(p->why, sizeof(p->why), "%s: %.200s", p->worker->address, err.text);
}

static void on_part_end(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    fan_part *p = user;
    (void)req;
    if (status == TD_GRPC_OK && p->answer == NULL && p->why[0] == '\0')
        snprintf(p->why, sizeof(p->why), "%s: no answer", p->worker->address);
    if (status != TD_GRPC_OK)
        snprintf(p->why, sizeof(p->why), "%s: %s: %.200s", p->worker->address,
                 td_grpc_status_name(status), message);
    close_part(p);
}

static void ask_part(fan_part *p, bool live_only)
{
    td_rpc_header header = {"x-request-id", p->all->id};
    td_rpc_request_args args = {
        .path = p->all->links ? "/tandem.v1.Worker/GetLinks" : "/tandem.v1.Worker/GetTransfers",
        .deadline_ns = td_now_ns() + WORKER_ANSWER_NS,
        .headers = &header,
        .n_headers = 1,
        .on_message = on_part,
        .on_finish = on_part_end,
        .user = p,
    };
    Tandem__V1__GetLinksRequest links = TANDEM__V1__GET_LINKS_REQUEST__INIT;
    Tandem__V1__GetTransfersRequest transfers = TANDEM__V1__GET_TRANSFERS_REQUEST__INIT;
    transfers.live_only = live_only;
    td_err err;
    td_status st = TD_PEER_LOST;
    snprintf(err.text, sizeof(err.text), "%s", p->worker->why);
    if (p->worker->reachable)
        st = td_message_start(p->worker->client, &args,
                              p->all->links ? &links.base : &transfers.base, &p->request, &err);
    if (st == TD_OK)
        p->all->n_open++;
    else
        snprintf(p->why, sizeof(p->why), "%s: %.200s", p->worker->address, err.text);
}

static void start(td_admin *a, td_rpc_call *call, bool links, bool live_only)
{
    char id[TD_REQUEST_ID_MAX + 1];
    td_err err;
    if (td_call_id_take(call, id, &err) != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    if (a->n_asking >= MAX_ASKING) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "too many lists are being made");
        return;
    }
    fan_out *f = calloc(1, sizeof(*f));
    if (f == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the request");
        return;
    }
    a->n_asking++;
    f->admin = a;
    f->call = call;
    memcpy(f->id, id, sizeof(f->id));
    f->links = links;
    f->starting = true;
    f->n_parts = td_registry_count(a->registry);
    td_rpc_call_set_data(call, f);
    for (uint32_t i = 0; i < f->n_parts; i++) {
        f->parts[i].all = f;
        f->parts[i].worker = td_registry_worker(a->registry, i);
        ask_part(&f->parts[i], live_only);
    }
    f->starting = false;
    if (f->n_open == 0)
        finish(f);
}

static void on_list_links(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    (void)msg;
    (void)len;
    start(user, call, true, false);
}

static void on_list_transfers(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    ProtobufCMessage *message;
    td_err err;
    if (td_message_unpack(&tandem__v1__list_transfers_request__descriptor, msg, len, &message,
                          &err) != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    bool live_only = ((Tandem__V1__ListTransfersRequest *)message)->live_only;
    protobuf_c_message_free_unpacked(message, NULL);
    start(user, call, false, live_only);
}

static void on_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    fan_out *f = td_rpc_call_data(call);
    (void)user;
    (void)why;
    if (f != NULL)
        fan_out_free(f);
}

void td_admin_methods(td_admin *a, td_rpc_method *rows)
{
    rows[0] = (td_rpc_method){.path = "/tandem.v1.Admin/GetStatus",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_get_status,
                              .user = a};
    rows[1] = (td_rpc_method){.path = "/tandem.v1.Admin/ListLinks",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_list_links,
                              .on_cancelled = on_cancelled,
                              .user = a};
    rows[2] = (td_rpc_method){.path = "/tandem.v1.Admin/ListTransfers",
                              .kind = TD_RPC_UNARY,
                              .on_message = on_list_transfers,
                              .on_cancelled = on_cancelled,
                              .user = a};
}
