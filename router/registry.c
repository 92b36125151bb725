#include "router/registry.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/serve/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORKERS 128
#define SECOND_LOOK_MS 5
/* Above what a worker takes (max-requests) and what lists of links ask: a heartbeat has room. */
#define MAX_RPCS 8192
#define MIN_CONNECT_MS 2000
#define DEFAULT_PAGE_TOKENS 64

struct td_registry {
    td_registry_conf conf;
    td_timer tick;
    td_worker *workers[MAX_WORKERS]; /* [n_workers] */
    uint32_t n_workers;
    uint64_t uses, n_changes;
    uint32_t n_closing;
    void (*on_closed)(void *user);
    void *closed_user;
};

const char *td_role_name(td_role role)
{
    return role == TD_ROLE_PREFILL ? "prefill" : "decode";
}

static uint32_t page_tokens(const td_worker *w)
{
    return w->status->page_tokens > 0 ? w->status->page_tokens : DEFAULT_PAGE_TOKENS;
}

/* Decode drafts beyond the last token. */
static uint32_t extra_tokens(const td_worker *w)
{
    return w->role == TD_ROLE_DECODE ? w->status->drafts : 0;
}

/* The tokens of the longest request that it can hold when it is empty; 0 when it is not ready. */
static uint64_t room_of(const td_worker *w)
{
    if (!td_worker_ready(w))
        return 0;
    uint64_t tokens = (uint64_t)td_worker_total_pages(w) * page_tokens(w);
    return tokens > extra_tokens(w) ? tokens - extra_tokens(w) : 0;
}

static void note_room(td_worker *w)
{
    uint64_t room = room_of(w);
    if (room != w->room)
        w->registry->n_changes++;
    w->room = room;
}

static void set_lost(td_worker *w, const char *why)
{
    bool was = w->reachable;
    w->reachable = false;
    note_room(w);
    snprintf(w->why, sizeof(w->why), "%.255s", why);
    if (!was)
        return; /* the connection's own log tells why it does not come */
    td_warn("worker.lost", "worker=%s role=%s why=\"%s\"", w->address, td_role_name(w->role), why);
    w->registry->conf.on_lost(w->registry->conf.user, w, why);
}

/* Takes the status out of the answer; complains when it does not fit the worker's place. */
static td_status take_status(td_worker *w, const void *msg, size_t len, td_err *err)
{
    ProtobufCMessage *message;
    td_status st =
        td_message_unpack(&tandem__v1__heartbeat_response__descriptor, msg, len, &message, err);
    if (st != TD_OK)
        return st;
    Tandem__V1__HeartbeatResponse *res = (Tandem__V1__HeartbeatResponse *)message;
    Tandem__V1__WorkerStatus *status = res->status;
    res->status = NULL;
    protobuf_c_message_free_unpacked(message, NULL);
    if (status == NULL)
        return td_fail(err, TD_PROTOCOL, "heartbeat without a status");
    if (strcmp(status->role, td_role_name(w->role)) != 0) {
        st = td_fail(err, TD_MISMATCH, "it is a %s daemon, configured as %s", status->role,
                     td_role_name(w->role));
        tandem__v1__worker_status__free_unpacked(status, NULL);
        return st;
    }
    if (w->status != NULL) {
        if (w->reachable && strcmp(w->status->incarnation, status->incarnation) != 0)
            set_lost(w, "it restarted");
        tandem__v1__worker_status__free_unpacked(w->status, NULL);
    }
    w->status = status;
    return TD_OK;
}

static void on_heartbeat(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    td_worker *w = user;
    td_err err;
    (void)req;
    if (take_status(w, msg, len, &err) != TD_OK) {
        if (strcmp(w->why, err.text) != 0) /* once: it will say so at every heartbeat */
            td_warn("worker.refused", "worker=%s role=%s why=\"%s\"", w->address,
                    td_role_name(w->role), err.text);
        set_lost(w, err.text);
        return;
    }
    w->heard_ns = td_now_ns();
    w->full = false;
    if (!w->reachable)
        td_info("worker.reached", "worker=%s role=%s incarnation=%s state=%s", w->address,
                td_role_name(w->role), w->status->incarnation, w->status->state);
    w->reachable = true;
    w->why[0] = '\0';
    note_room(w);
    w->registry->conf.on_change(w->registry->conf.user);
}

static void on_heartbeat_end(td_rpc_request *req, void *user, td_grpc_status status,
                             const char *message)
{
    td_worker *w = user;
    (void)req;
    w->heartbeat = NULL;
    td_timer_stop(&w->patience);
    if (status == TD_GRPC_OK || w->registry->n_closing > 0)
        return;
    char why[200];
    snprintf(why, sizeof(why), "%s: %s", td_grpc_status_name(status), message);
    set_lost(w, why);
}

/* libuv runs timers before sockets: a router that was itself stopped, or starved, finds the time
 * over and the answer unread. So whoever seems silent gets one more turn of the loop. */
static void on_patience(td_timer *timer, void *user)
{
    td_worker *w = user;
    char why[64];
    if (!w->second_look) {
        w->second_look = true;
        td_timer_at(timer, td_now_ns() + SECOND_LOOK_MS * TD_NS_PER_MS);
        return;
    }
    td_rpc_request_cancel(w->heartbeat);
    w->heartbeat = NULL;
    snprintf(why, sizeof(why), "no heartbeat for %lld ms",
             (long long)w->registry->conf.heartbeat_timeout_ms);
    set_lost(w, why);
}

static void ask(td_worker *w, int64_t now)
{
    td_registry *r = w->registry;
    if (w->heartbeat != NULL)
        return;
    if (td_rpc_client_state(w->client) == TD_RPC_BROKEN) {
        if (w->reachable)
            set_lost(w, "connection lost");
        return;
    }
    Tandem__V1__HeartbeatRequest msg = TANDEM__V1__HEARTBEAT_REQUEST__INIT;
    msg.router_incarnation = (char *)r->conf.incarnation;
    td_rpc_request_args args = {
        .path = "/tandem.v1.Worker/Heartbeat", /* its deadline is `patience` */
        .on_message = on_heartbeat,
        .on_finish = on_heartbeat_end,
        .user = w,
    };
    td_err err;
    w->asked_ns = now;
    td_status st = td_message_start(w->client, &args, &msg.base, &w->heartbeat, &err);
    if (st == TD_OK) {
        w->second_look = false;
        td_timer_at(&w->patience, now + r->conf.heartbeat_timeout_ms * TD_NS_PER_MS);
        return;
    }
    w->heartbeat = NULL;
    if (st == TD_PEER_LOST) /* for want of memory or room it is asked again at the next beat */
        set_lost(w, err.text);
}

static void on_tick(td_timer *timer, void *user)
{
    td_registry *r = user;
    int64_t now = td_now_ns();
    (void)timer;
    for (uint32_t i = 0; i < r->n_workers; i++)
        ask(r->workers[i], now);
}

static void on_state(td_rpc_client *client, void *user, td_rpc_state state, const td_err *why)
{
    td_worker *w = user;
    (void)client;
    if (state == TD_RPC_BROKEN) {
        char text[200];
        snprintf(text, sizeof(text), "%.199s", why != NULL ? why->text : "connection lost");
        set_lost(w, text);
    } else if (state == TD_RPC_READY) {
        ask(w, td_now_ns());
    }
}

td_status td_registry_create(const td_registry_conf *conf, td_registry **out, td_err *err)
{
    td_registry *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return td_fail(err, TD_NOMEM, "registry: no memory");
    r->conf = *conf;
    td_timer_init(&r->tick, conf->loop, on_tick, r);
    td_timer_every(&r->tick, td_now_ns(), conf->heartbeat_ms * TD_NS_PER_MS);
    *out = r;
    return TD_OK;
}

td_status td_registry_add(td_registry *r, td_role role, const char *address, td_err *err)
{
    td_addr addr;
    td_status st = td_addr_parse(address, &addr, err);
    if (st != TD_OK)
        return st;
    if (r->n_workers == MAX_WORKERS)
        return td_fail(err, TD_CONFIG, "more than %d workers", MAX_WORKERS);
    td_worker *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return td_fail(err, TD_NOMEM, "worker %s: no memory", address);
    w->registry = r;
    w->role = role;
    td_addr_format(&addr, w->address);
    snprintf(w->why, sizeof(w->why), "not heard yet");
    td_timer_init(&w->patience, r->conf.loop, on_patience, w);
    int64_t timeout_ms = r->conf.heartbeat_timeout_ms;
    td_rpc_client_conf conf = {
        .peer = addr,
        .name = td_role_name(role),
        .on_state = on_state,
        .user = w,
        .backoff_max_ms = 500, /* a restarted worker is used again within its 2 seconds */
        .connect_ms = timeout_ms > MIN_CONNECT_MS ? timeout_ms : MIN_CONNECT_MS,
        /* A host that vanished without a FIN leaves a connection that nothing else would end. */
        .keepalive_ms = timeout_ms,
        .keepalive_reply_ms = timeout_ms,
        .max_requests = MAX_RPCS,
        .max_message_bytes = 16U << 20, /* a worker's limit */
    };
    st = td_rpc_client_open(r->conf.loop, &conf, &w->client, err);
    if (st != TD_OK) {
        free(w);
        return st;
    }
    r->workers[r->n_workers++] = w;
    return TD_OK;
}

static void on_client_closed(void *user)
{
    td_worker *w = user;
    td_registry *r = w->registry;
    if (w->status != NULL)
        tandem__v1__worker_status__free_unpacked(w->status, NULL);
    free(w);
    if (--r->n_closing > 0)
        return;
    void (*on_closed)(void *) = r->on_closed;
    void *closed_user = r->closed_user;
    free(r);
    if (on_closed != NULL)
        on_closed(closed_user);
}

void td_registry_close(td_registry *r, void (*on_closed)(void *user), void *user)
{
    td_timer_stop(&r->tick);
    r->on_closed = on_closed;
    r->closed_user = user;
    r->n_closing = r->n_workers;
    if (r->n_workers == 0) {
        free(r);
        if (on_closed != NULL)
            on_closed(user);
        return;
    }
    for (uint32_t i = 0; i < r->n_workers; i++)
        td_timer_stop(&r->workers[i]->patience);
    for (uint32_t i = 0, n = r->n_workers; i < n; i++)
        td_rpc_client_close(r->workers[i]->client, on_client_closed, r->workers[i]);
}

uint32_t td_registry_count(const td_registry *r)
{
    return r->n_workers;
}

td_worker *td_registry_worker(td_registry *r, uint32_t index)
{
    return r->workers[index];
}

bool td_worker_ready(const td_worker *w)
{
    return w->reachable && w->status != NULL && strcmp(w->status->state, "ready") == 0;
}

uint32_t td_worker_total_pages(const td_worker *w)
{
    uint32_t total = 0;
    for (size_t i = 0; w->status != NULL && i < w->status->n_pages; i++)
        total += w->status->pages[i]->pages;
    return total;
}

td_claim td_worker_claim_of(const td_worker *w, td_need need)
{
    uint64_t tokens = need.n_prompt;
    if (w->role == TD_ROLE_DECODE)
        tokens += (uint64_t)need.max_tokens + extra_tokens(w);
    return (td_claim){.pages = (uint32_t)((tokens + page_tokens(w) - 1) / page_tokens(w)),
                      .tokens = tokens};
}

bool td_worker_has_room(const td_worker *w, td_claim claim)
{
    if (w->full || w->n_claims >= w->status->max_requests)
        return false;
    return (uint64_t)w->claimed.pages + claim.pages <= td_worker_total_pages(w);
}

/* Requests there: ours, or all that it reported if other routers use it, too. */
static uint32_t load_of(const td_worker *w)
{
    uint32_t reported = w->status->requests_active; /* those that wait there are among them */
    return w->n_claims > reported ? w->n_claims : reported;
}

static bool is_better(const td_worker *a, const td_worker *b)
{
    if (load_of(a) != load_of(b))
        return load_of(a) < load_of(b);
    if (a->claimed.tokens != b->claimed.tokens)
        return a->claimed.tokens < b->claimed.tokens;
    return a->last_use < b->last_use;
}

td_worker *td_registry_pick(td_registry *r, td_role role, td_need need, const td_worker *not_this)
{
    td_worker *best = NULL;
    for (uint32_t i = 0; i < r->n_workers; i++) {
        td_worker *w = r->workers[i];
        if (w->role != role || w == not_this || !td_worker_ready(w) ||
            !td_worker_has_room(w, td_worker_claim_of(w, need)))
            continue;
        if (best == NULL || is_better(w, best))
            best = w;
    }
    return best;
}

bool td_registry_any_ready(const td_registry *r, td_role role, const td_worker *not_this)
{
    for (uint32_t i = 0; i < r->n_workers; i++)
        if (r->workers[i]->role == role && r->workers[i] != not_this &&
            td_worker_ready(r->workers[i]))
            return true;
    return false;
}

const td_worker *td_registry_largest(const td_registry *r, td_role role, const td_worker *not_this)
{
    const td_worker *largest = NULL;
    for (uint32_t i = 0; i < r->n_workers; i++) {
        const td_worker *w = r->workers[i];
        if (w->role == role && w != not_this && td_worker_ready(w) &&
            (largest == NULL || w->room > largest->room))
            largest = w;
    }
    return largest;
}

uint64_t td_registry_changes(const td_registry *r)
{
    return r->n_changes;
}

void td_worker_claim(td_worker *w, td_claim claim)
{
    w->n_claims++;
    w->claimed.pages += claim.pages;
    w->claimed.tokens += claim.tokens;
    w->last_use = ++w->registry->uses;
}

void td_worker_unclaim(td_worker *w, td_claim claim)
{
    td_assert(w->n_claims > 0 && w->claimed.pages >= claim.pages);
    w->n_claims--;
    w->claimed.pages -= claim.pages;
    w->claimed.tokens -= claim.tokens;
}
