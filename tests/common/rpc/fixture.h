/* fixture.h - a loop, an echo server and a client on it, and a patience timer that fails the test
 * instead of letting it hang. Include in one file of a test program. */
#ifndef TD_TESTS_RPC_FIXTURE_H
#define TD_TESTS_RPC_FIXTURE_H
#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/client.h"
#include "common/rpc/server.h"
#include "tests/common/rpc/echo.h"

typedef struct {
    td_loop *loop;
    td_rpc_server *server;
    td_rpc_client *client;
    echo_service echo;
    td_timer patience;
    uint16_t port;
    int n_closed; /* server and client that have gone */
} fixture;

static inline void out_of_patience(td_timer *timer, void *user)
{
    (void)timer;
    fprintf(stderr, "the test hangs: %s\n", (const char *)user);
    abort();
}

static inline void fixture_patience(fixture *f, int64_t ms, const char *what)
{
    td_timer_init(&f->patience, f->loop, out_of_patience, (void *)what);
    td_timer_at(&f->patience, td_now_ns() + ms * TD_NS_PER_MS);
}

static inline void fixture_count_closed(void *user)
{
    fixture *f = user;
    f->n_closed++;
}

/* server_conf, client_conf: NULL for the defaults. The table, the addresses and the names are
 * filled in here. */
static inline void fixture_open(fixture *f, const td_rpc_server_conf *server_conf,
                                const td_rpc_client_conf *client_conf)
{
    td_err err = {0};
    td_rpc_server_conf sc = {0};
    td_rpc_client_conf cc = {0};
    memset(f, 0, sizeof(*f));
    td_log_init("test", getenv("TD_TEST_DEBUG") ? TD_LOG_DEBUG : TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&f->loop, &err));
    echo_init(&f->echo, f->loop);
    if (server_conf != NULL)
        sc = *server_conf;
    sc.methods = f->echo.methods;
    sc.n_methods = ECHO_METHODS;
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &sc.listen, &err));
    TD_EQ(TD_OK, td_rpc_server_open(f->loop, &sc, &f->server, &err));
    f->port = td_rpc_server_port(f->server);
    if (client_conf != NULL)
        cc = *client_conf;
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &cc.peer, &err));
    cc.peer.port = f->port;
    TD_EQ(TD_OK, td_rpc_client_open(f->loop, &cc, &f->client, &err));
    fixture_patience(f, 60000, "fixture");
}

/* Runs until cond holds; the loop is stopped by a timer that looks every millisecond. */
typedef bool (*fixture_cond)(void *arg);
typedef struct {
    td_timer timer;
    td_loop *loop;
    fixture_cond cond;
    void *arg;
} fixture_watch;

static inline void fixture_look(td_timer *timer, void *user)
{
    fixture_watch *w = user;
    (void)timer;
    if (w->cond(w->arg))
        td_loop_stop(w->loop);
}

static inline void fixture_run_until(fixture *f, fixture_cond cond, void *arg)
{
    fixture_watch w = {.loop = f->loop, .cond = cond, .arg = arg};
    td_timer_init(&w.timer, f->loop, fixture_look, &w);
    td_timer_every(&w.timer, td_now_ns(), TD_NS_PER_MS);
    td_loop_run(f->loop);
    td_timer_stop(&w.timer);
}

static inline bool fixture_time_is_up(void *arg)
{
    return td_now_ns() >= *(int64_t *)arg;
}

static inline void fixture_run_for(fixture *f, int64_t ms)
{
    int64_t until = td_now_ns() + ms * TD_NS_PER_MS;
    fixture_run_until(f, fixture_time_is_up, &until);
}

typedef struct {
    const int *value;
    int want;
} fixture_value;

static inline bool fixture_value_is(void *arg)
{
    fixture_value *v = arg;
    return *v->value == v->want;
}

static inline void fixture_run_until_eq(fixture *f, const int *value, int want)
{
    fixture_value v = {value, want};
    fixture_run_until(f, fixture_value_is, &v);
}

static inline bool fixture_has_no_calls(void *arg)
{
    td_rpc_server_stats stats;
    td_rpc_server_get_stats(((fixture *)arg)->server, &stats);
    return stats.n_calls == 0;
}

/* Closes what is open; every handle and every byte must be back. */
static inline void fixture_close(fixture *f)
{
    int want = (f->server != NULL) + (f->client != NULL);
    td_rpc_client_close(f->client, fixture_count_closed, f);
    td_rpc_server_close(f->server, fixture_count_closed, f);
    td_timer_stop(&f->patience);
    td_loop_destroy(f->loop);
    TD_EQ(want, f->n_closed);
    TD_EQ(0, f->echo.n_live);
}

/* ---- a request that keeps what comes back ---- */

typedef struct {
    td_rpc_request *req;
    int n_messages, n_finished;
    size_t n_bytes;
    td_grpc_status status;
    char message[600];
    char last[256]; /* the first bytes of the last message */
    char header[128];
    int64_t finished_ns;
    int cancel_after; /* cancel in on_message number n; 0: never */
    bool headers_seen;
} answer;

static inline void answer_headers(td_rpc_request *req, void *user)
{
    answer *a = user;
    const char *value = td_rpc_request_header(req, "x-echo");
    a->headers_seen = true;
    snprintf(a->header, sizeof(a->header), "%s", value != NULL ? value : "");
}

static inline void answer_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    answer *a = user;
    a->n_messages++;
    a->n_bytes += len;
    size_t keep = len < sizeof(a->last) - 1 ? len : sizeof(a->last) - 1;
    memcpy(a->last, msg, keep);
    a->last[keep] = '\0';
    if (a->n_messages == a->cancel_after)
        td_rpc_request_cancel(req);
}

static inline void answer_finish(td_rpc_request *req, void *user, td_grpc_status status,
                                 const char *message)
{
    answer *a = user;
    (void)req;
    a->n_finished++;
    a->status = status;
    a->finished_ns = td_now_ns();
    snprintf(a->message, sizeof(a->message), "%s", message);
}

static inline bool answer_done(void *arg)
{
    return ((answer *)arg)->n_finished > 0;
}

static inline td_rpc_request_args answer_args(const char *path, answer *a)
{
    memset(a, 0, sizeof(*a));
    return (td_rpc_request_args){.path = path,
                                 .on_headers = answer_headers,
                                 .on_message = answer_message,
                                 .on_finish = answer_finish,
                                 .user = a};
}

/* One request, from start to finish. */
static inline td_grpc_status ask(fixture *f, const char *path, const void *msg, size_t len,
                                 answer *a)
{
    td_rpc_request_args args = answer_args(path, a);
    TD_EQ(TD_OK, td_rpc_request_start(f->client, &args, msg, len, &a->req, NULL));
    fixture_run_until(f, answer_done, a);
    TD_EQ(1, a->n_finished);
    return a->status;
}
#endif
