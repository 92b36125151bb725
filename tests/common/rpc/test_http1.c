/* The admin server: what it serves, and what it refuses. */
#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/loop/mailbox.h"
#include "common/rpc/http1.h"
#include "common/rpc/http1_parse.h"
#include "tests/common/loop/failing_alloc.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

TD_TEST_MAIN

enum { BIG = 48 << 20 }; /* more than socket buffers take */

typedef struct {
    td_loop *loop;
    td_http_server *server;
    td_mailbox *box;
    pthread_t thread;
    uint16_t port;
} admin;

static void on_metrics(void *user, const td_http_request *req, td_http_response *res)
{
    (void)user;
    char *body = strdup(req->query[0] != '\0' ? req->query : "up 1\n");
    res->content_type = "text/plain; version=0.0.4";
    res->body = body;
    res->n_bytes = strlen(body);
    res->free_body = free;
}

static void on_healthz(void *user, const td_http_request *req, td_http_response *res)
{
    (void)user;
    (void)req;
    res->status = 503;
    res->body = "starting\n";
    res->n_bytes = 9;
}

static void on_big(void *user, const td_http_request *req, td_http_response *res)
{
    (void)user;
    (void)req;
    res->body = calloc(1, BIG);
    res->n_bytes = BIG;
    res->free_body = free;
}

static const td_http_route routes[] = {
    {"/metrics", on_metrics, NULL}, {"/healthz", on_healthz, NULL}, {"/big", on_big, NULL}};

static void on_stop(void *user, const void *msg, size_t len)
{
    admin *a = user;
    (void)msg;
    (void)len;
    td_http_server_close(a->server, NULL, NULL);
    td_mailbox_close(a->box);
}

static void *run_loop(void *arg)
{
    td_loop_run(arg);
    return NULL;
}

static void admin_start(admin *a, td_http_server_conf conf)
{
    td_log_init("test", TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&a->loop, NULL));
    TD_EQ(TD_OK, td_mailbox_open(a->loop, 64, on_stop, a, &a->box, NULL));
    TD_EQ(TD_OK, td_addr_parse("[::1]:0", &conf.listen, NULL));
    conf.routes = routes;
    conf.n_routes = 3;
    TD_EQ(TD_OK, td_http_server_open(a->loop, &conf, &a->server, NULL));
    a->port = td_http_server_port(a->server);
    TD_EQ(0, pthread_create(&a->thread, NULL, run_loop, a->loop));
}

static void admin_stop(admin *a)
{
    TD_EQ(TD_OK, td_mailbox_push(a->box, "q", 1));
    pthread_join(a->thread, NULL);
    td_loop_destroy(a->loop);
}

static int dial(const admin *a)
{
    struct sockaddr_in6 sa = {.sin6_family = AF_INET6, .sin6_port = htons(a->port)};
    sa.sin6_addr = in6addr_loopback;
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    TD_EQ(0, connect(fd, (struct sockaddr *)&sa, sizeof(sa)));
    return fd;
}

/* Reads until the server closes, or n bytes, or 3 s; NUL-terminated. */
static size_t slurp(int fd, char *out, size_t n)
{
    size_t got = 0;
    while (got < n) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        if (poll(&pfd, 1, 3000) <= 0)
            break;
        ssize_t k = recv(fd, out + got, n - got, 0);
        if (k <= 0)
            break;
        got += (size_t)k;
    }
    out[got] = '\0';
    return got;
}

static int ask_once(const admin *a, const char *request, char *out, size_t n)
{
    int fd = dial(a);
    TD_EQ(strlen(request), send(fd, request, strlen(request), MSG_NOSIGNAL));
    slurp(fd, out, n);
    close(fd);
    return strncmp(out, "HTTP/1.1 ", 9) == 0 ? (int)strtol(out + 9, NULL, 10) : -1;
}

TEST(routes_answer_with_status_type_and_body)
{
    admin a;
    char out[2000];
    admin_start(&a, (td_http_server_conf){0});
    TD_EQ(200,
          ask_once(&a, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", out, 1999));
    TD_TRUE(strstr(out, "Content-Type: text/plain; version=0.0.4\r\n") != NULL);
    TD_TRUE(strstr(out, "Content-Length: 5\r\n") != NULL);
    TD_TRUE(strstr(out, "\r\n\r\nup 1\n") != NULL);
    TD_EQ(200, ask_once(&a, "GET /metrics?a=b HTTP/1.0\r\n\r\n", out, 1999));
    TD_TRUE(strstr(out, "\r\n\r\na=b") != NULL);
    TD_EQ(503, ask_once(&a, "GET /healthz HTTP/1.0\r\n\r\n", out, 1999));
    TD_TRUE(strstr(out, "starting") != NULL);
    TD_EQ(200, ask_once(&a, "HEAD /metrics HTTP/1.0\r\n\r\n", out, 1999));
    TD_TRUE(strstr(out, "Content-Length: 5\r\n") != NULL && strstr(out, "up 1") == NULL);
    admin_stop(&a);
}

TEST(what_is_not_a_plain_get_is_refused)
{
    static const struct {
        const char *request;
        int status;
    } rows[] = {
        {"GET /nope HTTP/1.0\r\n\r\n", 404},
        {"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405},
        {"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 413},
        {"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
        {"GET /metrics HTTP/1.1\r\n\r\n", 400},
        {"GET /metrics HTTP/2.0\r\n\r\n", 505},
        {"GET  /metrics HTTP/1.0\r\n\r\n", 400},
        {"GET /a b HTTP/1.0\r\n\r\n", 400},
        {"GET http://x/ HTTP/1.0\r\n\r\n", 400},
        {"GET /metrics HTTP/1.0\r\nbad header\r\n\r\n", 400},
        {"GET /metrics HTTP/1.0\r\na: b\r\n folded\r\n\r\n", 400},
        {"GET /metrics HTTP/1.0\r\na : b\r\n\r\n", 400},
        {"GET /metrics HTTP/1.0\na: b\r\n\r\n", 400},
        {"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
        {"GET /metrics HTTP/1.0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
        {"GET /metrics HTTP/1.0\r\nContent-Length: -1\r\n\r\n", 400},
        {"\r\n\r\n", 400},
        {"\x16\x03\x01", 400},
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
    };
    admin a;
    char out[2000];
    admin_start(&a, (td_http_server_conf){0});
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int got = ask_once(&a, rows[i].request, out, 1999);
        if (got != rows[i].status && !(rows[i].status == 400 && got == 505))
            fail_msg("%s: %d", rows[i].request, got);
    }
    char big[9001];
    memset(big, 'a', 9000);
    memcpy(big, "GET /", 5);
    big[9000] = '\0';
    TD_EQ(431, ask_once(&a, big, out, 1999));
    admin_stop(&a);
}

TEST(keep_alive_and_pipelining_work)
{
    admin a;
    char out[4000];
    admin_start(&a, (td_http_server_conf){0});
    const char *get = "GET /metrics?n HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = dial(&a);
    for (int i = 0; i < 3; i++) {
        TD_EQ(strlen(get), send(fd, get, strlen(get), 0));
        size_t n = 0;
        do {
            n += slurp(fd, out + n, 1);
        } while (strstr(out, "\r\n\r\nn") == NULL && n < 3000);
        TD_TRUE(strstr(out, "Connection: keep-alive") != NULL);
    }
    char two[300];
    snprintf(two, sizeof(two), "%s%sGET /healthz HTTP/1.0\r\n\r\n", get, get);
    for (const char *c = two; *c != '\0'; c++) /* and a byte at a time */
        TD_EQ(1, send(fd, c, 1, 0));
    slurp(fd, out, 3999);
    int n = 0;
    for (const char *p = out; (p = strstr(p, "HTTP/1.1 ")) != NULL; p++)
        n++;
    TD_EQ(3, n);
    TD_TRUE(strstr(out, "starting\n") != NULL);
    close(fd);
    admin_stop(&a);
}

TEST(a_big_answer_arrives_whole_and_one_nobody_reads_is_dropped)
{
    admin a;
    admin_start(&a, (td_http_server_conf){.write_ms = 30000});
    char *out = malloc(BIG + 1000);
    int fd = dial(&a);
    const char *get = "GET /big HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.0\r\n\r\n";
    send(fd, get, strlen(get), 0);
    size_t n = slurp(fd, out, BIG + 999);
    TD_TRUE(n > BIG + 100);
    TD_TRUE(memmem(out + BIG, n - BIG, "starting", 8) != NULL);
    close(fd);
    admin_stop(&a);
    admin_start(&a, (td_http_server_conf){.write_ms = 500});
    /* A machine with other things to do may not have begun to answer after a second. */
    for (int wait_ms = 1500; n >= BIG && wait_ms <= 12000; wait_ms *= 2) {
        fd = dial(&a);
        send(fd, get, strlen(get), 0);
        td_sleep_ms(wait_ms);
        n = slurp(fd, out, BIG + 999);
        close(fd);
    }
    TD_TRUE(n < BIG);
    free(out);
    admin_stop(&a);
}

TEST(slow_and_idle_clients_are_dropped_in_time)
{
    admin a;
    char out[2000];
    admin_start(&a, (td_http_server_conf){.request_ms = 400, .idle_ms = 400});
    int64_t t0 = td_now_ns();
    int fd = dial(&a);
    TD_EQ(0, slurp(fd, out, 1999)); /* says nothing */
    close(fd);
    fd = dial(&a);
    send(fd, "GET /metr", 9, 0);
    TD_EQ(0, slurp(fd, out, 1999));
    close(fd);
    fd = dial(&a);
    const char *get = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    send(fd, get, strlen(get), 0);
    TD_TRUE(slurp(fd, out, 1999) > 0); /* answered, then idle, then closed */
    close(fd);
    TD_TRUE(td_now_ns() - t0 < 4 * TD_NS_PER_S);
    admin_stop(&a);
}

TEST(connections_over_the_limit_are_closed_at_once)
{
    admin a;
    char out[2000];
    int fds[4];
    admin_start(&a, (td_http_server_conf){.max_connections = 2});
    for (int i = 0; i < 4; i++)
        fds[i] = dial(&a);
    TD_EQ(0, slurp(fds[3], out, 1999));
    TD_EQ(0, slurp(fds[2], out, 1999));
    close(fds[0]);
    close(fds[1]);
    int status = 0; /* until the server has seen that those are closed */
    for (int64_t end = td_now_ns() + 5 * TD_NS_PER_S; status != 200 && td_now_ns() < end;)
        status = ask_once(&a, "GET /metrics HTTP/1.0\r\n\r\n", out, 1999);
    TD_EQ(200, status);
    close(fds[2]);
    close(fds[3]);
    admin_stop(&a);
}

/* ---- the parser alone ---- */

TEST(parser_finds_the_same_head_a_byte_at_a_time)
{
    const char *text =
        "GET /a/b?c=d HTTP/1.1\r\nHost: h\r\nX-Y:  v \r\nContent-Length: 12\r\n\r\nbody";
    size_t n = strlen(text) - 4;
    td_http1_head head;
    int status = 0;
    for (size_t len = 0; len < n; len++) {
        char *copy = malloc(len + 1); /* the sanitizer guards its end */
        memcpy(copy, text, len);
        TD_EQ(TD_PENDING, td_http1_parse(copy, len, &head, &status));
        free(copy);
    }
    TD_EQ(TD_OK, td_http1_parse(text, n + 4, &head, &status));
    TD_STR("GET", head.method);
    TD_STR("/a/b", head.path);
    TD_STR("c=d", head.query);
    TD_STR("v", td_meta_get(&head.headers, "x-y"));
    TD_EQ(12, head.content_length);
    TD_TRUE(head.keep_alive);
    TD_EQ(n, head.n_bytes);
    td_http1_head_fini(&head);
}

TEST(parser_survives_damage_and_lack_of_memory)
{
    const char *text = "GET /a/b?c=d HTTP/1.1\r\nHost: h\r\nX-Y: v\r\nConnection: close\r\n\r\n";
    size_t n = strlen(text);
    td_http1_head head;
    int status = 0;
    srand(11);
    for (int round = 0; round < 200000; round++) {
        char *copy = malloc(n);
        memcpy(copy, text, n);
        for (int i = rand() % 4; i >= 0; i--)
            copy[(size_t)rand() % n] = (char)rand();
        td_status st = td_http1_parse(copy, n, &head, &status);
        if (st == TD_OK) {
            TD_TRUE(head.path[0] == '/' && head.n_bytes <= n);
            td_http1_head_fini(&head);
        } else if (st != TD_PENDING) {
            TD_TRUE(status >= 400 && status <= 505);
        }
        free(copy);
    }
    for (int k = 0; k < 2; k++) {
        fail_after = k;
        td_status st = td_http1_parse(text, n, &head, &status);
        fail_after = -1;
        if (st == TD_OK)
            td_http1_head_fini(&head);
        else
            TD_EQ(TD_INVALID, st);
    }
}
