/* bench_rpc.c - calls and messages per second over loopback, server and client on a thread each.
 * Not a test: run it by hand. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/client.h"
#include "tests/common/rpc/echo.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    td_loop *loop;
    td_rpc_client *client;
    const char *path;
    const void *msg;
    size_t msg_len;
    int n_total, n_started, n_finished, n_failed;
    long n_messages;
} load;

static void start_one(load *l);

static void on_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    load *l = user;
    (void)req;
    (void)msg;
    (void)len;
    l->n_messages++;
}

static void on_finish(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    load *l = user;
    (void)req;
    if (status != TD_GRPC_OK && l->n_failed++ == 0)
        fprintf(stderr, "%s: %s\n", td_grpc_status_name(status), message);
    if (l->n_started < l->n_total)
        start_one(l);
    if (++l->n_finished == l->n_total)
        td_loop_stop(l->loop);
}

static void start_one(load *l)
{
    td_rpc_request *req;
    td_rpc_request_args args = {
        .path = l->path, .on_message = on_message, .on_finish = on_finish, .user = l};
    l->n_started++;
    if (td_rpc_request_start(l->client, &args, l->msg, l->msg_len, &req, NULL) < 0)
        abort();
}

static void run(load *l, const char *what, int n_total, int n_at_once)
{
    l->n_total = n_total;
    l->n_started = l->n_finished = l->n_failed = 0;
    l->n_messages = 0;
    int64_t t0 = td_now_ns();
    for (int i = 0; i < n_at_once && i < n_total; i++)
        start_one(l);
    td_loop_run(l->loop);
    double s = (double)(td_now_ns() - t0) / 1e9;
    printf("%-44s %9.0f calls/s %10.0f messages/s\n", what, n_total / s, (double)l->n_messages / s);
}

static void *serve(void *arg)
{
    td_loop_run(arg);
    return NULL;
}

int main(void)
{
    td_loop *server_loop;
    td_rpc_server *server;
    echo_service echo;
    load l;
    pthread_t thread;
    memset(&l, 0, sizeof(l));
    td_log_init("bench", TD_LOG_WARN, 0);
    if (td_loop_create(&server_loop, NULL) < 0 || td_loop_create(&l.loop, NULL) < 0)
        return 1;
    echo_init(&echo, server_loop);
    td_rpc_server_conf sc = {.methods = echo.methods, .n_methods = ECHO_METHODS};
    td_rpc_client_conf cc = {0};
    td_addr_parse("127.0.0.1:0", &sc.listen, NULL);
    if (td_rpc_server_open(server_loop, &sc, &server, NULL) < 0)
        return 1;
    cc.peer = sc.listen;
    cc.peer.port = td_rpc_server_port(server);
    pthread_create(&thread, NULL, serve, server_loop);
    if (td_rpc_client_open(l.loop, &cc, &l.client, NULL) < 0)
        return 1;
    char msg[100] = {0};
    l.path = "/test.Echo/Unary";
    l.msg = msg;
    l.msg_len = sizeof(msg);
    run(&l, "unary, 100 B, 1 at a time", 20000, 1);
    run(&l, "unary, 100 B, 64 at a time", 200000, 64);
    run(&l, "unary, 100 B, 512 at a time", 200000, 512);
    echo_stream_args sa = {.n_messages = 1000000, .n_bytes = 40};
    l.path = "/test.Echo/Stream";
    l.msg = &sa;
    l.msg_len = sizeof(sa);
    run(&l, "one stream, 40 B, as fast as it goes", 4, 1);
    sa = (echo_stream_args){.n_messages = 200, .n_bytes = 40, .pause_ms = 1};
    run(&l, "256 streams, 40 B, a message per ms each", 1024, 256);
    run(&l, "1000 streams, 40 B, a message per ms each", 2000, 1000);
    sa = (echo_stream_args){.n_messages = 20000, .n_bytes = 65536};
    run(&l, "one stream, 64 KiB (x 65536 = bytes/s)", 2, 1);
    exit(0); /* the threads end with the process */
}
