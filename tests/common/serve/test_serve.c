#include "tests/td_test.h"

#include "common/base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONG_MS                                                                                    \
    20000 /* far more than anything here takes, also under a sanitizer on a busy machine */

/* The program under test, and systemd's end of its notify socket. */
typedef struct {
    pid_t pid;
    int notify;
    uint16_t port;
    char incarnation[32];
} child;

static child start(const char *watchdog_us, char **args)
{
    child c = {0};
    char path[80];
    int out[2];
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    /* '@': an abstract name, which leaves nothing behind. */
    int n = snprintf(path, sizeof(path), "@td-notify-%d", (int)getpid());
    memcpy(addr.sun_path + 1, path + 1, (size_t)n - 1);
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n);
    c.notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    TD_EQ(0, bind(c.notify, (struct sockaddr *)&addr, len));
    TD_EQ(0, pipe(out));
    c.pid = fork();
    if (c.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed check leaves no program behind */
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        setenv("NOTIFY_SOCKET", path, 1);
        unsetenv("WATCHDOG_PID");
        if (watchdog_us != NULL)
            setenv("WATCHDOG_USEC", watchdog_us, 1);
        execv(SERVE_PROGRAM, args);
        _exit(127);
    }
    close(out[1]);
    FILE *from = fdopen(out[0], "r");
    unsigned port = 0;
    TD_EQ(2, fscanf(from, "%u %31s", &port, c.incarnation));
    fclose(from);
    c.port = (uint16_t)port;
    return c;
}
#define ARGS(...) ((char *[]){SERVE_PROGRAM, __VA_ARGS__, NULL})
#define NO_ARGS ((char *[]){SERVE_PROGRAM, NULL})

/* The next notify message within ms, or "". */
static const char *next_message(child *c, int64_t ms)
{
    static char text[1024];
    struct pollfd fd = {c->notify, POLLIN, 0};
    text[0] = '\0';
    if (poll(&fd, 1, (int)ms) == 1) {
        ssize_t n = recv(c->notify, text, sizeof(text) - 1, 0);
        text[n > 0 ? n : 0] = '\0';
    }
    return text;
}

/* Waits for a message that contains want. */
static void expect_message(child *c, const char *want)
{
    int64_t until = td_now_ns() + LONG_MS * TD_NS_PER_MS;
    while (td_now_ns() < until) {
        const char *text = next_message(c, 200);
        if (strstr(text, want) != NULL)
            return;
    }
    fail_msg("no message \"%s\"", want);
}

/* The status of GET path; the body in *body if not NULL. */
static int get(child *c, const char *path, const char **body)
{
    static char text[65536];
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(c->port)};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), status = 0;
    TD_EQ(0, connect(fd, (struct sockaddr *)&addr, sizeof(addr)));
    int n = snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                     path);
    TD_EQ(n, send(fd, text, (size_t)n, 0));
    size_t have = 0;
    ssize_t got;
    while ((got = recv(fd, text + have, sizeof(text) - 1 - have, 0)) > 0)
        have += (size_t)got;
    text[have] = '\0';
    close(fd);
    TD_EQ(1, sscanf(text, "HTTP/1.1 %d", &status));
    if (body != NULL)
        *body = strstr(text, "\r\n\r\n") + 4;
    return status;
}

/* The exit status within LONG_MS; the time it took is in *ms if not NULL. */
static int finish(child *c, int64_t *ms)
{
    int status = -1;
    int64_t begun = td_now_ns();
    while (waitpid(c->pid, &status, WNOHANG) == 0) {
        if (td_now_ns() - begun > LONG_MS * TD_NS_PER_MS)
            kill(c->pid, SIGKILL);
        td_sleep_ms(5);
    }
    if (ms != NULL)
        *ms = (td_now_ns() - begun) / TD_NS_PER_MS;
    close(c->notify);
    TD_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
}

TEST(ready_is_said_once_and_only_when_it_is_true)
{
    const char *body;
    child c = start(NULL, ARGS("--ready-after-ms", "400"));
    TD_STR("STATUS=starting", next_message(&c, LONG_MS));
    TD_EQ(503, get(&c, "/readyz", &body));
    TD_STR("starting\n", body);
    TD_EQ(200, get(&c, "/healthz", NULL));
    TD_STR("READY=1\nSTATUS=ready", next_message(&c, LONG_MS));
    TD_STR("STATUS=ready: 3 requests", next_message(&c, LONG_MS));
    TD_EQ(200, get(&c, "/readyz", &body));
    TD_STR("ready\n", body);
    TD_STR("", next_message(&c, 300)); /* no second READY=1, no WATCHDOG=1 that nobody asked for */
    kill(c.pid, SIGTERM);
    TD_EQ(0, finish(&c, NULL));
}

TEST(metrics_tell_state_version_and_incarnation)
{
    const char *body;
    char want[64];
    child c = start(NULL, NO_ARGS);
    expect_message(&c, "READY=1");
    TD_EQ(200, get(&c, "/metrics", &body));
    TD_TRUE(strstr(body, "\ntandem_ready 1\n") != NULL);
    TD_TRUE(strstr(body, "\ntandem_engines_stuck 0\n") != NULL);
    TD_TRUE(strstr(body, "\ntandem_process_cpu_seconds ") != NULL);
    TD_EQ(16, strlen(c.incarnation));
    snprintf(want, sizeof(want), "incarnation=\"%s\"} 1\n", c.incarnation);
    TD_TRUE(strstr(body, want) != NULL);
    TD_EQ(404, get(&c, "/nothing", NULL));
    kill(c.pid, SIGTERM);
    TD_EQ(0, finish(&c, NULL));
}

TEST(the_watchdog_is_fed_only_while_the_engine_moves)
{
    child c = start("800000", NO_ARGS);
    expect_message(&c, "READY=1");
    for (int i = 0; i < 4; i++)
        expect_message(&c, "WATCHDOG=1");
    kill(c.pid, SIGUSR1);
    td_sleep_ms(1200); /* half the watchdog's time, and what was under way */
    while (next_message(&c, 0)[0] != '\0')
        ;
    TD_STR("", next_message(&c, 1500));
    TD_EQ(503, get(&c, "/healthz", NULL)); /* the loop still answers */
    kill(c.pid, SIGUSR2);
    expect_message(&c, "WATCHDOG=1");
    TD_EQ(200, get(&c, "/healthz", NULL));
    kill(c.pid, SIGTERM);
    TD_EQ(0, finish(&c, NULL));
}

TEST(a_stuck_engine_is_named_without_a_watchdog_too)
{
    const char *body = "";
    child c = start(NULL, ARGS("--stall-ms", "200"));
    expect_message(&c, "READY=1");
    kill(c.pid, SIGUSR1);
    int64_t until = td_now_ns() + LONG_MS * TD_NS_PER_MS;
    while (get(&c, "/healthz", &body) == 200 && td_now_ns() < until)
        td_sleep_ms(20);
    TD_EQ(0, strncmp(body, "engine engine-0 has not moved for ", 34));
    kill(c.pid, SIGTERM);
    TD_EQ(0, finish(&c, NULL));
}

TEST(sigterm_drains_and_ends_when_the_work_is_done)
{
    int64_t ms;
    child c = start("400000", ARGS("--work-ms", "500"));
    expect_message(&c, "READY=1");
    kill(c.pid, SIGTERM);
    expect_message(&c, "STOPPING=1\nSTATUS=draining");
    TD_EQ(503, get(&c, "/readyz", NULL));
    expect_message(&c, "WATCHDOG=1"); /* a drain may take longer than the watchdog's time */
    TD_EQ(0, finish(&c, &ms));
    TD_TRUE(ms < LONG_MS / 2);
}

TEST(sigint_drains_as_well_even_before_it_is_ready)
{
    child c = start(NULL, ARGS("--ready-after-ms", "60000"));
    kill(c.pid, SIGINT);
    expect_message(&c, "STOPPING=1\nSTATUS=draining");
    TD_EQ(0, finish(&c, NULL));
}

TEST(a_drain_that_takes_too_long_is_cut_off)
{
    int64_t ms;
    child c = start(NULL, ARGS("--work-ms", "-1", "--drain-ms", "400"));
    expect_message(&c, "READY=1");
    kill(c.pid, SIGTERM);
    TD_EQ(3, finish(&c, &ms));
    TD_TRUE(ms >= 350 && ms < LONG_MS / 2);
}

TEST(a_second_signal_ends_the_drain_at_once)
{
    child c = start(NULL, ARGS("--work-ms", "-1", "--drain-ms", "60000"));
    expect_message(&c, "READY=1");
    kill(c.pid, SIGTERM);
    expect_message(&c, "STOPPING=1");
    kill(c.pid, SIGTERM);
    TD_EQ(3, finish(&c, NULL));
}

TD_TEST_MAIN
