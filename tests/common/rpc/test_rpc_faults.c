/* Peers that die, stop, restart or shut down, and owners that close. */
#include "tests/common/rpc/fixture.h"
#include "tests/td_port_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

TD_TEST_MAIN

/* ---- an echo server in a process of its own ---- */

typedef struct {
    pid_t pid;
    uint16_t port;
} child;

static void child_main(int fd, uint16_t port)
{
    td_loop *loop;
    td_rpc_server *server;
    echo_service echo;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    td_log_init("child", TD_LOG_ERROR, 0);
    if (td_loop_create(&loop, NULL) < 0)
        _exit(1);
    echo_init(&echo, loop);
    td_rpc_server_conf sc = {.methods = echo.methods, .n_methods = ECHO_METHODS};
    td_addr_parse("127.0.0.1:0", &sc.listen, NULL);
    sc.listen.port = port;
    if (td_rpc_server_open(loop, &sc, &server, NULL) < 0)
        _exit(1);
    port = td_rpc_server_port(server);
    if (write(fd, &port, sizeof(port)) != sizeof(port))
        _exit(1);
    td_loop_run(loop);
    _exit(0);
}

/* Before any thread or loop exists in this process. */
static child child_start(uint16_t port)
{
    child c;
    int fds[2];
    TD_EQ(0, pipe(fds));
    c.pid = fork();
    TD_TRUE(c.pid >= 0);
    if (c.pid == 0)
        child_main(fds[1], port);
    TD_EQ(sizeof(c.port), read(fds[0], &c.port, sizeof(c.port)));
    close(fds[0]);
    close(fds[1]);
    return c;
}

static void child_end(child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

typedef struct {
    int n_ready, n_broken, n_connecting;
    td_err why;
} states;

static void on_state(td_rpc_client *client, void *user, td_rpc_state state, const td_err *why)
{
    states *s = user;
    TD_EQ(state, td_rpc_client_state(client));
    s->n_ready += state == TD_RPC_READY;
    s->n_connecting += state == TD_RPC_CONNECTING;
    s->n_broken += state == TD_RPC_BROKEN;
    if (why != NULL)
        s->why = *why;
}

/* A loop with a client alone, to port. */
static void open_client(fixture *f, uint16_t port, td_rpc_client_conf cc, states *s)
{
    memset(f, 0, sizeof(*f));
    memset(s, 0, sizeof(*s));
    td_log_init("test", getenv("TD_TEST_DEBUG") ? TD_LOG_DEBUG : TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&f->loop, NULL));
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &cc.peer, NULL));
    cc.peer.port = port;
    cc.on_state = on_state;
    cc.user = s;
    TD_EQ(TD_OK, td_rpc_client_open(f->loop, &cc, &f->client, NULL));
    fixture_patience(f, 60000, "client");
}

static bool is_ready(void *arg)
{
    return ((states *)arg)->n_ready > 0;
}

static bool is_broken(void *arg)
{
    return ((states *)arg)->n_broken > 0;
}

TEST(a_stopped_peer_is_noticed_within_the_keepalive)
{
    child c = child_start(0);
    fixture f;
    states s;
    answer a[3];
    td_rpc_client_conf cc = {.keepalive_ms = 500, .keepalive_reply_ms = 500};
    open_client(&f, c.port, cc, &s);
    fixture_run_until(&f, is_ready, &s);
    fixture_run_for(&f, 1500); /* an idle peer that answers PINGs is fine */
    TD_EQ(0, s.n_broken);
    for (int i = 0; i < 3; i++) {
        td_rpc_request_args args = answer_args("/test.Echo/Hang", &a[i]);
        TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a[i].req, NULL));
    }
    fixture_run_for(&f, 20);
    kill(c.pid, SIGSTOP);
    int64_t t0 = td_now_ns();
    fixture_run_until(&f, answer_done, &a[2]);
    fixture_run_until(&f, answer_done, &a[0]);
    int64_t took_ms = (td_now_ns() - t0) / TD_NS_PER_MS;
    for (int i = 0; i < 3; i++)
        TD_EQ(TD_GRPC_UNAVAILABLE, a[i].status);
    TD_TRUE(took_ms >= 450 && took_ms < 2000); /* 1000, and what a busy machine adds */
    TD_EQ(1, s.n_broken);
    TD_TRUE(strstr(a[0].message, "silent") != NULL);
    /* and it comes back when the peer does */
    kill(c.pid, SIGCONT);
    s.n_ready = 0;
    fixture_run_until(&f, is_ready, &s);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a[0]));
    child_end(&c);
    fixture_close(&f);
}

static void doze(td_timer *timer, void *user)
{
    (void)user;
    td_sleep_ms(700); /* longer than PING and reply together may take */
    td_timer_at(timer, td_now_ns());
}

TEST(a_loop_that_was_stopped_itself_does_not_blame_its_peers)
{
    child c = child_start(0);
    fixture f;
    states s;
    answer a;
    td_timer timer;
    td_rpc_client_conf cc = {.keepalive_ms = 300, .keepalive_reply_ms = 300};
    open_client(&f, c.port, cc, &s);
    fixture_run_until(&f, is_ready, &s);
    td_timer_init(&timer, f.loop, doze, NULL);
    td_timer_at(&timer, td_now_ns());
    fixture_run_for(&f, 6000);
    td_timer_stop(&timer);
    TD_EQ(0, s.n_broken);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a));
    child_end(&c);
    fixture_close(&f);
}

TEST(a_killed_peer_ends_its_calls_at_once_and_a_restarted_one_serves_again)
{
    uint16_t port;
    int port_fd = td_test_hold_port(&port);
    child c = child_start(port);
    fixture f;
    states s;
    answer a, b;
    open_client(&f, port, (td_rpc_client_conf){.backoff_max_ms = 200}, &s);
    td_rpc_request_args args = answer_args("/test.Echo/Stream", &a);
    echo_stream_args sa = {.n_messages = 1000000, .n_bytes = 10, .pause_ms = 1};
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, &sa, sizeof(sa), &a.req, NULL));
    fixture_run_until_eq(&f, &a.n_messages, 20);
    int64_t t0 = td_now_ns();
    child_end(&c);
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_UNAVAILABLE, a.status);
    TD_TRUE(td_now_ns() - t0 < 2 * TD_NS_PER_S);
    TD_EQ(TD_RPC_BROKEN, td_rpc_client_state(f.client));
    args = answer_args("/test.Echo/Unary", &b);
    td_err err;
    TD_EQ(TD_PEER_LOST, td_rpc_request_start(f.client, &args, "x", 1, &b.req, &err));
    TD_TRUE(strstr(err.text, "not connected") != NULL);
    fixture_run_for(&f, 300); /* tries, and fails */
    TD_TRUE(s.n_connecting > 0);
    td_log_init("test", TD_LOG_ERROR, 0);
    c = child_start(port);
    s.n_ready = 0;
    td_rpc_client_retry(f.client);
    fixture_run_until(&f, is_ready, &s);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &b));
    child_end(&c);
    close(port_fd);
    fixture_close(&f);
}

TEST(requests_wait_for_the_first_connection_and_fail_with_it)
{
    fixture f;
    states s;
    answer a;
    open_client(&f, 1, (td_rpc_client_conf){0}, &s); /* nobody listens on port 1 */
    td_rpc_request_args args = answer_args("/test.Echo/Unary", &a);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_UNAVAILABLE, a.status);
    TD_TRUE(strstr(a.message, "127.0.0.1:1") != NULL && strstr(a.message, "refused") != NULL);
    TD_EQ(1, s.n_broken);
    fixture_close(&f);
}

TEST(names_are_resolved_and_unknown_ones_are_a_broken_link)
{
    fixture f;
    states s = {0};
    answer a;
    fixture_open(&f, NULL, NULL);
    td_rpc_client *by_name = f.client, *unknown = NULL;
    td_rpc_client_conf cc = {.on_state = on_state, .user = &s};
    TD_EQ(TD_OK, td_addr_parse("no-such-host.invalid:80", &cc.peer, NULL));
    TD_EQ(TD_OK, td_rpc_client_open(f.loop, &cc, &unknown, NULL));
    TD_EQ(TD_OK, td_addr_parse("localhost:0", &cc.peer, NULL));
    cc.peer.port = f.port;
    cc.on_state = NULL;
    TD_EQ(TD_OK, td_rpc_client_open(f.loop, &cc, &by_name, NULL));
    td_rpc_client *first = f.client;
    f.client = by_name;
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a));
    fixture_run_until(&f, is_broken, &s);
    TD_TRUE(strstr(s.why.text, "resolve") != NULL);
    td_rpc_client_close(by_name, NULL, NULL);
    td_rpc_client_close(unknown, NULL, NULL);
    f.client = first;
    fixture_close(&f);
}

TEST(a_peer_that_accepts_and_says_nothing_is_given_up)
{
    fixture f;
    states s;
    answer a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in sa = {.sin_family = AF_INET};
    socklen_t len = sizeof(sa);
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    TD_EQ(0, bind(fd, (struct sockaddr *)&sa, sizeof(sa)));
    TD_EQ(0, listen(fd, 5));
    TD_EQ(0, getsockname(fd, (struct sockaddr *)&sa, &len));
    open_client(&f, ntohs(sa.sin_port), (td_rpc_client_conf){.connect_ms = 200}, &s);
    td_rpc_request_args args = answer_args("/test.Echo/Unary", &a);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    int64_t t0 = td_now_ns();
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_UNAVAILABLE, a.status);
    int64_t took_ms = (td_now_ns() - t0) / TD_NS_PER_MS;
    TD_TRUE(took_ms >= 195 && took_ms < 2000);
    fixture_close(&f);
    close(fd);
}

/* ---- drain ---- */

static void set_flag(void *user)
{
    *(bool *)user = true;
}

static bool flag_is_set(void *arg)
{
    return *(bool *)arg;
}

TEST(drain_lets_running_calls_end_and_refuses_new_ones)
{
    fixture f;
    answer a, b, c;
    bool drained = false;
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Stream", &a);
    echo_stream_args sa = {.n_messages = 300, .n_bytes = 10, .pause_ms = 3};
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, &sa, sizeof(sa), &a.req, NULL));
    fixture_run_for(&f, 50);
    /* one more that is under way when the server says GOAWAY: refused, and free to go elsewhere */
    args = answer_args("/test.Echo/Unary", &b);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &b.req, NULL));
    td_rpc_server_drain(f.server, set_flag, &drained);
    fixture_run_until(&f, answer_done, &b);
    TD_EQ(TD_GRPC_UNAVAILABLE, b.status);
    args = answer_args("/test.Echo/Unary", &c);
    if (td_rpc_request_start(f.client, &args, "x", 1, &c.req, NULL) == TD_OK) {
        fixture_run_until(&f, answer_done, &c);
        TD_EQ(TD_GRPC_UNAVAILABLE, c.status);
    }
    TD_TRUE(!drained);
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_EQ(300, a.n_messages);
    fixture_run_until(&f, flag_is_set, &drained);
    td_rpc_server_stats stats;
    td_rpc_server_get_stats(f.server, &stats);
    TD_EQ(0, stats.n_connections);
    fixture_close(&f);
}

TEST(drain_of_an_idle_server_ends_soon)
{
    fixture f;
    answer a;
    bool drained = false;
    fixture_open(&f, NULL, NULL);
    TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a));
    int64_t t0 = td_now_ns();
    td_rpc_server_drain(f.server, set_flag, &drained);
    td_rpc_server_drain(f.server, NULL, NULL); /* twice is once */
    fixture_run_until(&f, flag_is_set, &drained);
    TD_TRUE(td_now_ns() - t0 < 3 * TD_NS_PER_S);
    fixture_close(&f);
}

TEST(an_idle_server_may_send_the_client_away_and_nobody_notices)
{
    fixture f;
    states s = {0};
    answer a;
    td_rpc_server_conf sc = {.idle_ms = 1200};
    td_rpc_client_conf cc = {.on_state = on_state, .user = &s};
    fixture_open(&f, &sc, &cc);
    for (int i = 0; i < 30; i++) {
        TD_EQ(TD_GRPC_OK, ask(&f, "/test.Echo/Unary", "x", 1, &a));
        fixture_run_for(&f, i == 10 || i == 20 ? 1500 : 5);
    }
    TD_EQ(0, s.n_broken);
    td_rpc_server_stats stats;
    td_rpc_server_get_stats(f.server, &stats);
    TD_TRUE(stats.n_accepted >= 3);
    TD_EQ(1, stats.n_connections);
    fixture_close(&f);
}

/* ---- the owner closes ---- */

TEST(closing_the_server_cancels_its_calls)
{
    fixture f;
    answer a[2];
    bool closed = false;
    fixture_open(&f, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        td_rpc_request_args args = answer_args("/test.Echo/Hang", &a[i]);
        TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a[i].req, NULL));
    }
    fixture_run_until_eq(&f, &f.echo.n_live, 2);
    td_rpc_server_close(f.server, set_flag, &closed);
    TD_EQ(2, f.echo.n_live); /* never inside the call */
    f.server = NULL;
    fixture_run_until(&f, flag_is_set, &closed);
    TD_EQ(0, f.echo.n_live);
    TD_EQ(TD_GRPC_UNAVAILABLE, f.echo.last_cancel);
    fixture_run_until(&f, answer_done, &a[1]);
    TD_EQ(TD_GRPC_UNAVAILABLE, a[1].status);
    fixture_close(&f);
}

TEST(closing_the_client_finishes_its_requests_as_cancelled)
{
    fixture f;
    answer a;
    fixture_open(&f, NULL, NULL);
    td_rpc_request_args args = answer_args("/test.Echo/Hang", &a);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    fixture_run_until_eq(&f, &f.echo.n_live, 1);
    td_rpc_client_close(f.client, NULL, NULL);
    TD_EQ(0, a.n_finished);
    TD_EQ(TD_PEER_LOST, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    f.client = NULL;
    fixture_run_until(&f, answer_done, &a);
    TD_EQ(TD_GRPC_CANCELLED, a.status);
    fixture_run_until_eq(&f, &f.echo.n_live, 0);
    fixture_close(&f);
    /* and before it has ever been connected */
    fixture_open(&f, NULL, NULL);
    args = answer_args("/test.Echo/Hang", &a);
    TD_EQ(TD_OK, td_rpc_request_start(f.client, &args, "x", 1, &a.req, NULL));
    fixture_close(&f);
    TD_EQ(1, a.n_finished);
}
