/* A server on one thread, clients on others, engine threads behind the server: nothing is shared
 * but sockets and mailboxes. For the thread sanitizer above all. */
#include "tests/common/rpc/raw.h"

#include "common/rpc/client.h"

TD_TEST_MAIN

enum { N_CLIENTS = 3, N_CALLS = 400 };

typedef struct {
    uint16_t port;
    td_loop *loop;
    td_rpc_client *client;
    int n_started, n_ok, n_other, n_messages;
} caller;

static void start_next(caller *c);

static void on_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    caller *c = user;
    (void)req;
    (void)msg;
    (void)len;
    c->n_messages++;
}

static void on_finish(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    caller *c = user;
    (void)req;
    (void)message;
    if (status == TD_GRPC_OK)
        c->n_ok++;
    else
        c->n_other++;
    start_next(c);
}

static void start_next(caller *c)
{
    td_rpc_request *req;
    echo_stream_args sa = {.n_messages = 10, .n_bytes = 100};
    td_rpc_request_args args = {.path = c->n_started % 2 ? "/test.Echo/Unary" : "/test.Echo/Stream",
                                .on_message = on_message,
                                .on_finish = on_finish,
                                .user = c};
    if (c->n_started < N_CALLS) {
        if (td_rpc_request_start(c->client, &args, &sa, sizeof(sa), &req, NULL) == TD_OK)
            c->n_started++;
    } else if (c->n_ok + c->n_other == N_CALLS) {
        td_rpc_client_close(c->client, NULL, NULL);
    }
}

static void *call_all(void *arg)
{
    caller *c = arg;
    td_rpc_client_conf cc = {0};
    if (td_loop_create(&c->loop, NULL) < 0 || td_addr_parse("127.0.0.1:0", &cc.peer, NULL) < 0)
        return NULL;
    cc.peer.port = c->port;
    if (td_rpc_client_open(c->loop, &cc, &c->client, NULL) < 0)
        return NULL;
    for (int i = 0; i < 8; i++)
        start_next(c);
    td_loop_run(c->loop);
    td_loop_destroy(c->loop);
    return NULL;
}

TEST(clients_on_their_own_threads)
{
    raw_server s;
    caller callers[N_CLIENTS];
    pthread_t threads[N_CLIENTS];
    raw_server_start(&s, NULL);
    memset(callers, 0, sizeof(callers));
    for (int i = 0; i < N_CLIENTS; i++) {
        callers[i].port = s.port;
        TD_EQ(0, pthread_create(&threads[i], NULL, call_all, &callers[i]));
    }
    for (int i = 0; i < N_CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        TD_EQ(N_CALLS, callers[i].n_ok);
        TD_EQ(N_CALLS / 2 * 11, callers[i].n_messages);
    }
    raw_server_stop(&s);
}

/* ---- tokens from an engine thread, through a mailbox, into a stream ---- */

typedef struct {
    td_loop *loop;
    td_rpc_server *server;
    td_rpc_client *client;
    td_rpc_call *call;
    td_mailbox *tokens;
    pthread_t engine;
    bool engine_runs;
    uint32_t n_seen;
    td_grpc_status status;
} house;

enum { N_TOKENS = 20000 };

static void *run_engine(void *arg)
{
    house *h = arg;
    for (uint32_t i = 0; i < N_TOKENS; i++)
        while (td_mailbox_push(h->tokens, &i, sizeof(i)) == TD_FULL)
            sched_yield();
    return NULL;
}

static void on_token(void *user, const void *msg, size_t len)
{
    house *h = user;
    uint32_t i;
    memcpy(&i, msg, sizeof(i));
    td_rpc_call_send(h->call, msg, len);
    if (i + 1 == N_TOKENS)
        td_rpc_call_finish(h->call, TD_GRPC_OK, NULL);
}

static void on_generate(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    house *h = user;
    (void)msg;
    (void)len;
    h->call = call;
    h->engine_runs = pthread_create(&h->engine, NULL, run_engine, h) == 0;
}

static void on_generated(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    house *h = user;
    uint32_t i;
    (void)req;
    TD_EQ(sizeof(i), len);
    memcpy(&i, msg, len);
    TD_EQ(h->n_seen, i);
    h->n_seen++;
}

static void on_end(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    house *h = user;
    (void)req;
    (void)message;
    h->status = status;
    td_loop_stop(h->loop);
}

TEST(tokens_of_an_engine_thread_reach_the_client_in_order)
{
    house h;
    memset(&h, 0, sizeof(h));
    td_log_init("test", TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&h.loop, NULL));
    TD_EQ(TD_OK, td_mailbox_open(h.loop, 1 << 14, on_token, &h, &h.tokens, NULL));
    td_rpc_method method = {.path = "/test.Engine/Generate",
                            .kind = TD_RPC_SERVER_STREAMING,
                            .on_message = on_generate,
                            .user = &h};
    td_rpc_server_conf sc = {.methods = &method, .n_methods = 1};
    td_rpc_client_conf cc = {0};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &sc.listen, NULL));
    TD_EQ(TD_OK, td_rpc_server_open(h.loop, &sc, &h.server, NULL));
    cc.peer = sc.listen;
    cc.peer.port = td_rpc_server_port(h.server);
    TD_EQ(TD_OK, td_rpc_client_open(h.loop, &cc, &h.client, NULL));
    td_rpc_request_args args = {.path = "/test.Engine/Generate",
                                .on_message = on_generated,
                                .on_finish = on_end,
                                .user = &h};
    td_rpc_request *req;
    TD_EQ(TD_OK, td_rpc_request_start(h.client, &args, "go", 2, &req, NULL));
    td_loop_run(h.loop);
    TD_EQ(TD_GRPC_OK, h.status);
    TD_EQ(N_TOKENS, h.n_seen);
    TD_TRUE(h.engine_runs);
    pthread_join(h.engine, NULL);
    td_mailbox_close(h.tokens);
    td_rpc_client_close(h.client, NULL, NULL);
    td_rpc_server_close(h.server, NULL, NULL);
    td_loop_destroy(h.loop);
}
