/* The prefill daemons behind a decode daemon: greeting, loss, restart, leases. */
#include "decode/peer.h"
#include "tests/td_loop_test.h"
#include "tests/td_port_test.h"

#include "common/base/clock.h"
#include "common/serve/fingerprint.h"
#include "common/serve/message.h"
#include "proto/tandem/v1/prefill.pb-c.h"

TD_TEST_MAIN

#define OURS "dddddddddddddddd"
#define BLOB_BYTES 512

/* ---- the transfer layer, made up ---- */

static struct {
    uint32_t n_open, n_opened; /* links now, ever */
    td_status refuses;         /* TD_OK: no */
} xfer;

td_status td_xfer_link_open(td_xfer *x, const td_xfer_link_args *args, td_xfer_link *out,
                            td_err *err)
{
    (void)x;
    TD_EQ(0, memcmp(args->desc, "rank", 4));
    if (xfer.refuses != TD_OK)
        return td_fail(err, xfer.refuses, "no link");
    xfer.n_open++;
    *out = (td_xfer_link){xfer.n_opened++, 1};
    return TD_OK;
}

void td_xfer_link_close(td_xfer *x, td_xfer_link link)
{
    (void)x;
    (void)link;
    TD_TRUE(xfer.n_open > 0);
    xfer.n_open--;
}

/* ---- a prefill daemon, made up ---- */

typedef struct {
    td_loop *loop;
    td_rpc_server *server;
    td_rpc_method methods[3];
    uint16_t port; /* kept over restarts */
    int port_fd;   /* td_test_hold_port()'s */
    char address[32], incarnation[17];
    uint32_t ranks, lease_ms, n_greetings, n_releases, n_renewals;
    const char *other_field; /* NULL: the fingerprint is ours */
    bool silent, knows_nobody, is_new;
    td_grpc_status refuses;
    char released_id[80];
    uint64_t released;
    bool closed;
} fake;

static void on_greeting(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake *f = user;
    ProtobufCMessage *message;
    ProtobufCBinaryData ranks[TD_PEER_MAX_RANKS];
    Tandem__V1__ConnectResponse res = TANDEM__V1__CONNECT_RESPONSE__INIT;
    f->n_greetings++;
    if (f->silent)
        return;
    if (f->refuses != TD_GRPC_OK) {
        td_rpc_call_finish(call, f->refuses, "not today");
        return;
    }
    TD_EQ(TD_OK,
          td_message_unpack(&tandem__v1__connect_request__descriptor, msg, len, &message, NULL));
    Tandem__V1__ConnectRequest *req = (Tandem__V1__ConnectRequest *)message;
    TD_STR(OURS, req->incarnation);
    TD_STR(f->n_greetings == 1 || f->is_new ? "" : f->incarnation, req->prefill_incarnation);
    if (f->other_field != NULL) {
        free(req->fingerprint[0]->value);
        req->fingerprint[0]->value = strdup(f->other_field);
    }
    for (uint32_t r = 0; r < f->ranks; r++)
        ranks[r] = (ProtobufCBinaryData){4, (uint8_t *)"rank"};
    res.incarnation = f->incarnation;
    res.n_fingerprint = req->n_fingerprint;
    res.fingerprint = req->fingerprint;
    res.ranks = f->ranks;
    res.n_rank_descriptor = f->ranks;
    res.rank_descriptor = ranks;
    res.lease_ms = f->lease_ms;
    res.blob_bytes = BLOB_BYTES;
    td_message_reply(call, &res.base);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_release(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake *f = user;
    Tandem__V1__ReleaseRequest *req = tandem__v1__release_request__unpack(NULL, len, msg);
    Tandem__V1__ReleaseResponse res = TANDEM__V1__RELEASE_RESPONSE__INIT;
    const char *id = td_rpc_call_header(call, "x-request-id");
    f->n_releases++;
    f->released = req->number;
    snprintf(f->released_id, sizeof(f->released_id), "%s", id != NULL ? id : "");
    TD_STR(f->incarnation, req->incarnation);
    tandem__v1__release_request__free_unpacked(req, NULL);
    td_message_reply(call, &res.base);
}

static void on_renew(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake *f = user;
    Tandem__V1__RenewRequest *req = tandem__v1__renew_request__unpack(NULL, len, msg);
    Tandem__V1__RenewResponse res = TANDEM__V1__RENEW_RESPONSE__INIT;
    f->n_renewals++;
    if (f->knows_nobody) {
        res.n_unknown = req->n_numbers;
        res.unknown = req->numbers;
    }
    res.incarnation = f->incarnation;
    td_message_reply(call, &res.base);
    tandem__v1__renew_request__free_unpacked(req, NULL);
}

static void on_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    (void)call;
    (void)user;
    (void)why;
}

static void fake_start(fake *f, const char *incarnation)
{
    td_err err;
    static const struct {
        const char *path;
        void (*on_message)(td_rpc_call *call, void *user, const void *msg, size_t len);
    } rows[] = {{"/tandem.v1.Prefill/Connect", on_greeting},
                {"/tandem.v1.Prefill/Release", on_release},
                {"/tandem.v1.Prefill/Renew", on_renew}};
    td_rpc_server_conf conf = {.methods = f->methods, .n_methods = 3};
    for (int i = 0; i < 3; i++)
        f->methods[i] = (td_rpc_method){.path = rows[i].path,
                                        .kind = TD_RPC_UNARY,
                                        .on_message = rows[i].on_message,
                                        .on_cancelled = on_cancelled,
                                        .user = f};
    snprintf(f->incarnation, sizeof(f->incarnation), "%s", incarnation);
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &conf.listen, &err));
    if (f->port == 0)
        f->port_fd = td_test_hold_port(&f->port);
    conf.listen.port = f->port;
    TD_EQ(TD_OK, td_rpc_server_open(f->loop, &conf, &f->server, &err));
    snprintf(f->address, sizeof(f->address), "127.0.0.1:%u", f->port);
}

static void on_fake_closed(void *user)
{
    ((fake *)user)->closed = true;
}

/* ---- the world ---- */

typedef struct {
    td_loop *loop;
    td_decode_conf conf;
    td_fingerprint fingerprint;
    td_peers *peers;
    fake prefill;
    td_timer patience;
    uint32_t n_up, n_down, n_unknown;
    td_err why; /* of the last loss */
    uint64_t held[4];
    uint32_t n_held;
    bool closed;
} world;

#define RUN_UNTIL(w, cond)                                                                         \
    do {                                                                                           \
        while (!(cond))                                                                            \
            td_test_turn((w)->loop);                                                               \
    } while (0)

static void on_up(void *user, td_peer *peer)
{
    TD_EQ(TD_PEER_UP, peer->state);
    ((world *)user)->n_up++;
}

static void on_down(void *user, td_peer *peer, const td_err *why)
{
    world *w = user;
    TD_EQ(TD_PEER_DOWN, peer->state);
    w->n_down++;
    w->why = *why;
}

static uint32_t held_numbers(void *user, const td_peer *peer, uint64_t *numbers, uint32_t max)
{
    const world *w = user;
    (void)peer;
    TD_TRUE(w->n_held <= max);
    memcpy(numbers, w->held, w->n_held * sizeof(*numbers));
    return w->n_held;
}

static void on_unknown(void *user, td_peer *peer, uint64_t number)
{
    (void)peer;
    (void)number;
    ((world *)user)->n_unknown++;
}

static void on_closed(void *user)
{
    ((world *)user)->closed = true;
}

static void fake_kill(world *w)
{
    w->prefill.closed = false;
    td_rpc_server_close(w->prefill.server, on_fake_closed, &w->prefill);
    RUN_UNTIL(w, w->prefill.closed);
    w->prefill.server = NULL;
}

static void world_open(world *w)
{
    td_err err;
    memset(w, 0, sizeof(*w));
    TD_EQ(TD_OK, td_loop_create(&w->loop, &err));
    td_test_patience(&w->patience, w->loop);
    w->conf = (td_decode_conf){.peer_timeout_ms = 400};
    td_fingerprint_set(&w->fingerprint, "config", "%s", "abc");
    w->prefill = (fake){.loop = w->loop, .ranks = 2, .lease_ms = 1000};
    fake_start(&w->prefill, "1111111111111111");
    td_peers_conf conf = {.loop = w->loop,
                          .conf = &w->conf,
                          .incarnation = OURS,
                          .address = "127.0.0.1:1",
                          .fingerprint = &w->fingerprint,
                          .blob_bytes = BLOB_BYTES,
                          .on_up = on_up,
                          .on_down = on_down,
                          .held_numbers = held_numbers,
                          .on_unknown = on_unknown,
                          .user = w};
    TD_EQ(TD_OK, td_peers_create(&conf, &w->peers, &err));
}

static void world_close(world *w)
{
    td_peers_close(w->peers, on_closed, w);
    RUN_UNTIL(w, w->closed);
    TD_EQ(0, xfer.n_open);
    if (w->prefill.server != NULL)
        fake_kill(w);
    close(w->prefill.port_fd);
    td_timer_stop(&w->patience);
    td_loop_destroy(w->loop);
}

static td_peer *get(world *w)
{
    td_peer *p = NULL;
    td_err err;
    TD_EQ(TD_OK, td_peers_get(w->peers, w->prefill.address, &p, &err));
    return p;
}

TEST(a_peer_is_greeted_once_and_linked_to_every_rank)
{
    world w;
    world_open(&w);
    td_peer *p = get(&w);
    TD_TRUE(get(&w) == p);
    RUN_UNTIL(&w, p->state == TD_PEER_UP && w.n_up == 1);
    TD_TRUE(get(&w) == p);
    TD_EQ(1, w.prefill.n_greetings);
    TD_EQ(2, xfer.n_open);
    TD_STR("1111111111111111", p->incarnation);
    world_close(&w);
}

TEST(a_refusal_ends_those_that_wait_and_the_next_greets_again)
{
    world w;
    world_open(&w);
    w.prefill.refuses = TD_GRPC_UNAVAILABLE;
    td_peer *p = get(&w);
    RUN_UNTIL(&w, w.n_down == 1);
    TD_EQ(TD_PEER_LOST, w.why.status);
    TD_TRUE(strstr(w.why.text, "not today") != NULL);
    w.prefill.refuses = TD_GRPC_OK;
    w.prefill.is_new = true;
    TD_TRUE(get(&w) == p);
    RUN_UNTIL(&w, w.n_up == 1);
    world_close(&w);
}

TEST(another_fingerprint_is_refused_and_the_difference_shown)
{
    world w;
    world_open(&w);
    w.prefill.other_field = "xyz";
    get(&w);
    RUN_UNTIL(&w, w.n_down == 1);
    TD_EQ(TD_PRECONDITION, w.why.status);
    TD_TRUE(strstr(w.why.text, "config") != NULL && strstr(w.why.text, "xyz") != NULL);
    world_close(&w);
}

TEST(links_that_cannot_be_opened_are_a_loss)
{
    world w;
    world_open(&w);
    xfer.refuses = TD_UNSUPPORTED;
    get(&w);
    RUN_UNTIL(&w, w.n_down == 1);
    TD_EQ(TD_UNSUPPORTED, w.why.status);
    xfer.refuses = TD_OK;
    world_close(&w);
}

TEST(a_silent_peer_is_lost_within_its_time)
{
    world w;
    world_open(&w);
    w.prefill.silent = true;
    int64_t since = td_now_ns();
    get(&w);
    RUN_UNTIL(&w, w.n_down == 1);
    TD_TRUE(td_now_ns() - since < 3 * TD_NS_PER_S);
    TD_EQ(TD_PEER_LOST, w.why.status);
    world_close(&w);
}

TEST(who_needs_a_broken_connection_has_it_tried_at_once)
{
    world w;
    world_open(&w);
    td_peer *p = get(&w);
    RUN_UNTIL(&w, w.n_up == 1);
    fake_kill(&w);
    RUN_UNTIL(&w, w.n_down == 1);
    TD_EQ(0, xfer.n_open);
    for (int i = 0; i < 8; i++) { /* refused each time, quickly, and said once each time */
        TD_TRUE(get(&w) == p);
        RUN_UNTIL(&w, w.n_down == (uint32_t)i + 2);
        TD_EQ(TD_PEER_LOST, w.why.status);
    }
    fake_start(&w.prefill, "2222222222222222");
    w.prefill.is_new = true;
    int64_t since = td_now_ns();
    TD_TRUE(get(&w) == p);
    RUN_UNTIL(&w, w.n_up == 2);
    TD_TRUE(td_now_ns() - since < 400 * TD_NS_PER_MS); /* no back-off is waited for */
    TD_STR("2222222222222222", p->incarnation);
    TD_EQ(2, xfer.n_open);
    world_close(&w);
}

TEST(a_peer_that_forgot_us_is_greeted_again_and_nothing_else_is_lost)
{
    world w;
    world_open(&w);
    td_peer *p = get(&w);
    RUN_UNTIL(&w, w.n_up == 1);
    td_peer_greet_again(p);
    td_peer_greet_again(p); /* one greeting is under way */
    TD_EQ(TD_PEER_UP, p->state);
    RUN_UNTIL(&w, w.n_up == 2);
    TD_EQ(2, w.prefill.n_greetings);
    TD_EQ(2, xfer.n_open);
    TD_EQ(0, w.n_down);
    w.prefill.refuses = TD_GRPC_RESOURCE_EXHAUSTED;
    td_peer_greet_again(p);
    RUN_UNTIL(&w, w.n_down == 1);
    TD_EQ(0, xfer.n_open);
    world_close(&w);
}

TEST(a_lost_link_is_a_lost_peer)
{
    world w;
    world_open(&w);
    td_peer *p = get(&w);
    RUN_UNTIL(&w, w.n_up == 1);
    td_xfer_event event = {
        .kind = TD_XFER_LINK_DOWN, .status = TD_PEER_LOST, .link = p->links[1], .tag = 1};
    td_xfer_event stale = event;
    stale.link.generation++;
    td_peers_on_link(w.peers, &stale);
    TD_EQ(0, w.n_down);
    xfer.n_open--; /* it is down already */
    td_peers_on_link(w.peers, &event);
    TD_EQ(1, w.n_down);
    TD_EQ(0, xfer.n_open);
    td_peers_on_link(w.peers, &event); /* again: nothing */
    TD_EQ(1, w.n_down);
    world_close(&w);
}

TEST(leases_are_renewed_well_before_they_end_and_what_is_gone_is_told)
{
    world w;
    world_open(&w);
    get(&w);
    RUN_UNTIL(&w, w.n_up == 1);
    int64_t since = td_now_ns();
    RUN_UNTIL(&w, td_now_ns() - since > 600 * TD_NS_PER_MS);
    TD_EQ(0, w.prefill.n_renewals); /* nothing is held */
    w.held[0] = 7;
    w.held[1] = 9;
    w.n_held = 2;
    since = td_now_ns();
    RUN_UNTIL(&w, w.prefill.n_renewals == 3);
    TD_TRUE(td_now_ns() - since < 3 * TD_NS_PER_S);
    TD_EQ(0, w.n_unknown);
    w.prefill.knows_nobody = true;
    RUN_UNTIL(&w, w.n_unknown >= 2);
    world_close(&w);
}

TEST(a_release_carries_number_and_request_id)
{
    world w;
    world_open(&w);
    td_peer *p = get(&w);
    td_peer_release(p, 5, "too-early"); /* not up: there is nothing to release */
    RUN_UNTIL(&w, w.n_up == 1);
    td_peer_release(p, 77, "my-request");
    RUN_UNTIL(&w, w.prefill.n_releases == 1);
    TD_EQ(77, w.prefill.released);
    TD_STR("my-request", w.prefill.released_id);
    world_close(&w);
}

TEST(an_idle_peer_makes_place_for_another)
{
    world w;
    td_peer *p, *used;
    td_err err;
    char address[32];
    world_open(&w);
    used = get(&w);
    used->n_requests = 1;
    for (int i = 0; i < TD_MAX_PEERS - 1; i++) {
        snprintf(address, sizeof(address), "127.0.0.1:%d", i + 1);
        TD_EQ(TD_OK, td_peers_get(w.peers, address, &p, &err));
    }
    TD_EQ(TD_EXHAUSTED, td_peers_get(w.peers, "127.0.0.1:999", &p, &err));
    while (td_peers_get(w.peers, "127.0.0.1:999", &p, &err) == TD_EXHAUSTED)
        td_test_turn(w.loop);
    TD_TRUE(p != used);
    TD_STR("127.0.0.1:999", p->address);
    TD_TRUE(get(&w) == used);
    TD_EQ(TD_INVALID, td_peers_get(w.peers, "", &p, &err));
    used->n_requests = 0;
    world_close(&w);
}

TEST(closing_while_it_is_greeted_is_fine)
{
    world w;
    world_open(&w);
    w.prefill.silent = true;
    get(&w);
    RUN_UNTIL(&w, w.prefill.n_greetings == 1);
    world_close(&w);
    TD_EQ(0, w.n_down);
}
