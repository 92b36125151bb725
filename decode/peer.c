#include "decode/peer.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/version.h"
#include "common/serve/fingerprint.h"
#include "common/serve/message.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RENEWED 4096
#define TICK_MS 200
/* A peer that no request has named for so long is forgotten. */
#define IDLE_NS (600 * TD_NS_PER_S)

struct td_peers {
    td_peers_conf conf;
    td_peer rows[TD_MAX_PEERS];
    td_timer tick;
    uint32_t n_closing;
    bool closing;
    void (*on_closed)(void *user);
    void *closed_user;
};

/* Tags of links: row and rank, told apart from a peer that used the row before by the link's
 * handle. */
static uint64_t link_tag(const td_peer *p, uint32_t rank)
{
    return (uint64_t)(p - p->peers->rows) << 32 | rank;
}

static void close_links(td_peer *p)
{
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (p->link_open[r]) {
            p->link_open[r] = false;
            td_xfer_link_close(p->peers->conf.xfer, p->links[r]);
        }
    p->n_ranks = 0;
}

static void go_down(td_peer *p, td_status st, const char *why)
{
    td_err err;
    if (p->state == TD_PEER_DOWN)
        return; /* nobody waits for it, nobody draws from it */
    td_fail(&err, st, "prefill %s: %s", p->address, why);
    td_warn("peer.down", "peer=%s incarnation=%s status=%s why=\"%s\"", p->address, p->incarnation,
            td_status_name(st), why);
    p->state = TD_PEER_DOWN;
    p->incarnation[0] = '\0';
    td_rpc_request_cancel(p->greeting);
    td_rpc_request_cancel(p->renewing);
    p->greeting = p->renewing = NULL;
    close_links(p);
    if (!p->peers->closing)
        p->peers->conf.on_down(p->peers->conf.user, p, &err);
}

/* ---- handshake ---- */

static td_status open_links(td_peer *p, const Tandem__V1__ConnectResponse *res, td_err *err)
{
    for (uint32_t r = 0; r < res->ranks; r++) {
        td_xfer_link_args args = {.desc = res->rank_descriptor[r].data,
                                  .n_desc_bytes = res->rank_descriptor[r].len,
                                  .incarnation = res->incarnation,
                                  .peer = p->address,
                                  .tag = link_tag(p, r)};
        td_status st = td_xfer_link_open(p->peers->conf.xfer, &args, &p->links[r], err);
        if (st != TD_OK)
            return st;
        p->link_open[r] = true;
        p->n_ranks = r + 1;
    }
    return TD_OK;
}

static td_status judge_answer(td_peer *p, const Tandem__V1__ConnectResponse *res, td_err *err)
{
    td_fingerprint theirs;
    char diff[400];
    if (res->ranks == 0 || res->ranks > TD_PEER_MAX_RANKS || res->n_rank_descriptor != res->ranks)
        return td_fail(err, TD_PROTOCOL, "%u ranks with %zu descriptors", res->ranks,
                       res->n_rank_descriptor);
    if (!td_incarnation_valid(res->incarnation))
        return td_fail(err, TD_PROTOCOL, "incarnation is not 16 hex digits");
    td_status st = td_fingerprint_from_message(res->fingerprint, res->n_fingerprint, &theirs, err);
    if (st != TD_OK)
        return st;
    if (td_fingerprint_diff(p->peers->conf.fingerprint, &theirs, diff, sizeof(diff)) > 0)
        return td_fail(err, TD_PRECONDITION, "prefill and decode do not match (ours: decode): %s",
                       diff);
    if (res->blob_bytes != p->peers->conf.blob_bytes)
        return td_fail(err, TD_PRECONDITION, "blobs of %" PRIu64 " bytes, ours have %zu",
                       res->blob_bytes, p->peers->conf.blob_bytes);
    return open_links(p, res, err);
}

static td_status take_answer(td_peer *p, const Tandem__V1__ConnectResponse *res, td_err *err)
{
    if (p->state == TD_PEER_UP) /* asked again over a new connection */
        return strcmp(res->incarnation, p->incarnation) == 0
                   ? TD_OK
                   : td_fail(err, TD_PEER_LOST, "it restarted");
    td_status st = judge_answer(p, res, err);
    if (st != TD_OK)
        return st;
    snprintf(p->incarnation, sizeof(p->incarnation), "%s", res->incarnation);
    p->lease_ms = res->lease_ms;
    p->renewed_ns = td_now_ns();
    p->state = TD_PEER_UP;
    td_info("peer.up", "peer=%s incarnation=%s build=%.40s ranks=%u", p->address, p->incarnation,
            res->build, res->ranks);
    return TD_OK;
}

static void on_answer(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    td_peer *p = user;
    ProtobufCMessage *message;
    td_err err;
    (void)req;
    td_status st =
        td_message_unpack(&tandem__v1__connect_response__descriptor, msg, len, &message, &err);
    if (st == TD_OK) {
        st = take_answer(p, (const Tandem__V1__ConnectResponse *)message, &err);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    if (st != TD_OK)
        go_down(p, st, err.text);
}

static void on_answer_end(td_rpc_request *req, void *user, td_grpc_status status,
                          const char *message)
{
    td_peer *p = user;
    (void)req;
    p->greeting = NULL;
    if (status == TD_GRPC_DEADLINE_EXCEEDED) /* ours for a greeting, not a request's */
        go_down(p, TD_PEER_LOST, "no answer to the greeting in time");
    else if (status != TD_GRPC_OK)
        go_down(p, td_grpc_to_status(status), message);
    else if (p->state == TD_PEER_UP)
        p->peers->conf.on_up(p->peers->conf.user, p);
    else
        go_down(p, TD_PROTOCOL, "Connect ended without an answer");
}

static td_status say_hello(td_peer *p, td_err *err)
{
    const td_peers_conf *c = &p->peers->conf;
    td_fingerprint_message fp;
    td_fingerprint_to_message(c->fingerprint, &fp);
    Tandem__V1__ConnectRequest msg = TANDEM__V1__CONNECT_REQUEST__INIT;
    msg.incarnation = (char *)c->incarnation;
    msg.address = (char *)c->address;
    msg.build = (char *)td_version();
    msg.n_fingerprint = fp.n;
    msg.fingerprint = fp.pointers;
    msg.prefill_incarnation = p->incarnation; /* "" unless it is up */
    td_rpc_request_args args = {.path = "/tandem.v1.Prefill/Connect",
                                .deadline_ns =
                                    td_now_ns() + c->conf->peer_timeout_ms * TD_NS_PER_MS,
                                .on_message = on_answer,
                                .on_finish = on_answer_end,
                                .user = p};
    td_status st = td_message_start(p->client, &args, &msg.base, &p->greeting, err);
    if (st != TD_OK)
        p->greeting = NULL;
    return st;
}

/* From DOWN. A broken connection is tried anew at once instead of when its turn comes: on_state
 * goes on. */
static td_status greet(td_peer *p, td_err *err)
{
    td_status st = TD_OK;
    if (td_rpc_client_state(p->client) == TD_RPC_BROKEN)
        td_rpc_client_retry(p->client);
    else
        st = say_hello(p, err);
    if (st != TD_OK)
        return st;
    p->state = TD_PEER_GREETING;
    p->dialed_ns = td_now_ns();
    return TD_OK;
}

/* ---- leases ---- */

static void on_renewed(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    td_peer *p = user;
    ProtobufCMessage *message;
    td_err err;
    (void)req;
    if (td_message_unpack(&tandem__v1__renew_response__descriptor, msg, len, &message, &err) !=
        TD_OK)
        return;
    const Tandem__V1__RenewResponse *res = (const Tandem__V1__RenewResponse *)message;
    bool ours = strcmp(res->incarnation, p->incarnation) == 0;
    for (size_t i = 0; i < res->n_unknown && ours; i++)
        p->peers->conf.on_unknown(p->peers->conf.user, p, res->unknown[i]);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_renew_end(td_rpc_request *req, void *user, td_grpc_status status,
                         const char *message)
{
    td_peer *p = user;
    (void)req;
    p->renewing = NULL;
    if (status != TD_GRPC_OK && !p->closing)
        td_warn("peer.renew", "peer=%s status=%s why=\"%s\"", p->address,
                td_grpc_status_name(status), message);
}

static void renew(td_peer *p, int64_t now)
{
    const td_peers_conf *c = &p->peers->conf;
    uint64_t numbers[MAX_RENEWED];
    if (p->state != TD_PEER_UP || p->renewing != NULL ||
        now - p->renewed_ns < p->lease_ms * TD_NS_PER_MS / 4)
        return;
    uint32_t n = c->held_numbers(c->user, p, numbers, MAX_RENEWED);
    p->renewed_ns = now;
    if (n == 0)
        return;
    Tandem__V1__RenewRequest msg = TANDEM__V1__RENEW_REQUEST__INIT;
    msg.n_numbers = n;
    msg.numbers = numbers;
    msg.incarnation = p->incarnation;
    msg.decode_incarnation = (char *)c->incarnation;
    td_rpc_request_args args = {.path = "/tandem.v1.Prefill/Renew",
                                .deadline_ns = now + c->conf->peer_timeout_ms * TD_NS_PER_MS,
                                .on_message = on_renewed,
                                .on_finish = on_renew_end,
                                .user = p};
    td_err err;
    if (td_message_start(p->client, &args, &msg.base, &p->renewing, &err) != TD_OK)
        p->renewing = NULL; /* a broken connection is told by on_state */
}

static void on_release_end(td_rpc_request *req, void *user, td_grpc_status status,
                           const char *message)
{
    const td_peer *p = user;
    (void)req;
    if (status != TD_GRPC_OK && !p->closing)
        td_warn("peer.release", "peer=%s status=%s why=\"%s\"", p->address,
                td_grpc_status_name(status), message);
}

static void on_release_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    (void)req;
    (void)user;
    (void)msg;
    (void)len;
}

void td_peer_release(td_peer *p, uint64_t number, const char *id)
{
    const td_peers_conf *c = &p->peers->conf;
    if (p->state != TD_PEER_UP)
        return;
    Tandem__V1__ReleaseRequest msg = TANDEM__V1__RELEASE_REQUEST__INIT;
    msg.number = number;
    msg.incarnation = p->incarnation;
    msg.decode_incarnation = (char *)c->incarnation;
    td_rpc_header headers[] = {{"x-request-id", id}};
    td_rpc_request_args args = {.path = "/tandem.v1.Prefill/Release",
                                .deadline_ns =
                                    td_now_ns() + c->conf->peer_timeout_ms * TD_NS_PER_MS,
                                .headers = headers,
                                .n_headers = 1,
                                .on_message = on_release_message,
                                .on_finish = on_release_end,
                                .user = p};
    td_err err;
    td_rpc_request *req;
    if (td_message_start(p->client, &args, &msg.base, &req, &err) != TD_OK)
        td_warn("peer.release", "req=%s peer=%s why=\"%s\"", id, p->address, err.text);
}

/* ---- connection and links ---- */

static void on_state(td_rpc_client *client, void *user, td_rpc_state state, const td_err *why)
{
    td_peer *p = user;
    td_err err;
    (void)client;
    bool wanted = p->state == TD_PEER_GREETING && p->greeting == NULL;
    /* A new connection without a break between: is it the same process still? */
    bool doubted = state == TD_RPC_READY && p->state == TD_PEER_UP && p->greeting == NULL;
    if (state == TD_RPC_BROKEN)
        go_down(p, TD_PEER_LOST, why != NULL ? why->text : "connection lost");
    else if ((wanted || doubted) && say_hello(p, &err) != TD_OK)
        go_down(p, TD_PEER_LOST, err.text);
}

void td_peer_greet_again(td_peer *p)
{
    td_err err;
    if (p->state == TD_PEER_UP && p->greeting == NULL && say_hello(p, &err) != TD_OK)
        go_down(p, TD_PEER_LOST, err.text);
}

void td_peers_on_link(td_peers *ps, const td_xfer_event *event)
{
    uint32_t row = (uint32_t)(event->tag >> 32), rank = (uint32_t)event->tag;
    if (row >= TD_MAX_PEERS || rank >= TD_PEER_MAX_RANKS)
        return;
    td_peer *p = &ps->rows[row];
    if (!p->link_open[rank] || p->links[rank].slot != event->link.slot ||
        p->links[rank].generation != event->link.generation)
        return; /* of a peer that is gone */
    if (event->kind == TD_XFER_LINK_UP) {
        td_info("link.up", "peer=%s rank=%u transport=%s", p->address, rank, event->transport);
        return;
    }
    p->link_open[rank] = false;
    go_down(p, event->status, event->err.text);
}

/* ---- the table ---- */

static void free_when_closed(td_peers *ps)
{
    void (*on_closed)(void *) = ps->on_closed;
    void *user = ps->closed_user;
    free(ps);
    if (on_closed != NULL)
        on_closed(user);
}

static void on_client_closed(void *user)
{
    td_peer *p = user;
    p->address[0] = '\0';
    if (p->peers->closing && --p->peers->n_closing == 0)
        free_when_closed(p->peers);
}

/* Nobody uses it any more, or everything is closed: requests of its own end with on_finish. */
static void close_row(td_peer *p)
{
    p->closing = true;
    close_links(p);
    p->state = TD_PEER_DOWN;
    td_rpc_client_close(p->client, on_client_closed, p);
}

static void on_tick(td_timer *timer, void *user)
{
    td_peers *ps = user;
    int64_t now = td_now_ns();
    (void)timer;
    for (int i = 0; i < TD_MAX_PEERS; i++) {
        td_peer *p = &ps->rows[i];
        if (p->address[0] == '\0' || p->closing)
            continue;
        if (p->state == TD_PEER_GREETING && p->greeting == NULL &&
            now - p->dialed_ns > ps->conf.conf->peer_timeout_ms * TD_NS_PER_MS)
            go_down(p, TD_PEER_LOST, "no connection in time");
        renew(p, now);
        if (p->n_requests == 0 && now - p->used_ns > IDLE_NS)
            close_row(p);
    }
}

td_status td_peers_create(const td_peers_conf *conf, td_peers **out, td_err *err)
{
    td_peers *ps = calloc(1, sizeof(*ps));
    if (ps == NULL)
        return td_fail(err, TD_NOMEM, "peers: no memory");
    ps->conf = *conf;
    td_timer_init(&ps->tick, conf->loop, on_tick, ps);
    td_timer_every(&ps->tick, td_now_ns(), TICK_MS * TD_NS_PER_MS);
    *out = ps;
    return TD_OK;
}

void td_peers_close(td_peers *ps, void (*on_closed)(void *user), void *user)
{
    td_timer_stop(&ps->tick);
    ps->closing = true;
    ps->on_closed = on_closed;
    ps->closed_user = user;
    for (int i = 0; i < TD_MAX_PEERS; i++)
        ps->n_closing += ps->rows[i].address[0] != '\0';
    if (ps->n_closing == 0) {
        free_when_closed(ps);
        return;
    }
    for (int i = 0; i < TD_MAX_PEERS; i++)
        if (ps->rows[i].address[0] != '\0' && !ps->rows[i].closing)
            close_row(&ps->rows[i]);
}

/* The idle row that was used longest ago is free soon. */
static void make_place(td_peers *ps)
{
    td_peer *oldest = NULL;
    for (int i = 0; i < TD_MAX_PEERS; i++) {
        td_peer *p = &ps->rows[i];
        if (p->closing)
            return; /* one is on its way */
        if (p->n_requests == 0 && (oldest == NULL || p->used_ns < oldest->used_ns))
            oldest = p;
    }
    if (oldest != NULL)
        close_row(oldest);
}

static td_status open_row(td_peers *ps, const char *address, td_peer **out, td_err *err)
{
    td_peer *p = NULL;
    for (int i = 0; i < TD_MAX_PEERS && p == NULL; i++)
        if (ps->rows[i].address[0] == '\0')
            p = &ps->rows[i];
    if (p == NULL) {
        make_place(ps);
        return td_fail(err, TD_EXHAUSTED,
                       "decode: %d prefill daemons are known, the most there may be", TD_MAX_PEERS);
    }
    td_addr addr;
    td_status st = td_addr_parse(address, &addr, err);
    if (st != TD_OK)
        return st;
    *p = (td_peer){.peers = ps};
    int64_t quarter = ps->conf.conf->peer_timeout_ms / 4;
    td_rpc_client_conf conf = {.peer = addr,
                               .name = "prefill",
                               .on_state = on_state,
                               .user = p,
                               .connect_ms = ps->conf.conf->peer_timeout_ms,
                               .backoff_max_ms = 500,
                               .keepalive_ms = quarter,
                               .keepalive_reply_ms = quarter * 2,
                               .max_message_bytes = 16U << 20};
    st = td_rpc_client_open(ps->conf.loop, &conf, &p->client, err);
    if (st != TD_OK)
        return st;
    snprintf(p->address, sizeof(p->address), "%s", address);
    *out = p;
    return TD_OK;
}

td_status td_peers_get(td_peers *ps, const char *address, td_peer **out, td_err *err)
{
    td_peer *p = NULL;
    td_status st = TD_OK;
    if (address[0] == '\0')
        return td_fail(err, TD_INVALID, "decode: no prefill address");
    for (int i = 0; i < TD_MAX_PEERS && p == NULL; i++)
        if (!ps->rows[i].closing && strcmp(ps->rows[i].address, address) == 0)
            p = &ps->rows[i];
    if (p == NULL)
        st = open_row(ps, address, &p, err);
    if (st != TD_OK)
        return st;
    p->used_ns = td_now_ns();
    if (p->state == TD_PEER_DOWN)
        st = greet(p, err);
    if (st != TD_OK)
        return st;
    *out = p;
    return TD_OK;
}
