#include "tests/common/transfer/peer.h"

#include "tests/td_test.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#define START_MS 30000

static void must_read(const peer *p, void *out, size_t n_bytes)
{
    unsigned char *at = out;
    while (n_bytes > 0) {
        struct pollfd fd = {.fd = p->from, .events = POLLIN};
        if (poll(&fd, 1, START_MS) <= 0)
            fail_msg("peer %d says nothing", (int)p->pid);
        ssize_t n = read(p->from, at, n_bytes);
        if (n <= 0)
            fail_msg("peer %d is gone", (int)p->pid);
        at += n;
        n_bytes -= (size_t)n;
    }
}

static void must_write(const peer *p, const void *bytes, size_t n_bytes)
{
    TD_EQ((ssize_t)n_bytes, write(p->to, bytes, n_bytes));
}

void peer_need_ucx(void)
{
    const char *needed = getenv("XFER_TEST_UCX_MINOR");
    unsigned major, minor, release;
    ucp_get_version(&major, &minor, &release);
    if (needed != NULL && major == 1 && minor < strtoul(needed, NULL, 10))
        td_skip("this UCX does not bear fetches that break");
}

static void launch(peer *p, const char *const argv[])
{
    char path[PATH_MAX];
    peer_need_ucx();
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);
    TD_TRUE(n > 0);
    path[n] = '\0';
    strcpy(strrchr(path, '/') + 1, "xfer_peer");
    int to[2], from[2];
    TD_EQ(0, pipe(to));
    TD_EQ(0, pipe(from));
    signal(SIGPIPE, SIG_IGN);
    p->pid = fork();
    TD_TRUE(p->pid >= 0);
    if (p->pid == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        for (int fd = 3; fd < 256; fd++)
            close(fd);
        execv(path, (char *const *)argv);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    p->to = to[1];
    p->from = from[0];
}

void peer_start_source(peer *p, const char *transport, const char *incarnation, const char *listen)
{
    memset(p, 0, sizeof(*p));
    p->incarnation = incarnation;
    launch(p, (const char *const[]){"xfer_peer", "source", transport, incarnation,
                                    listen != NULL ? listen : "127.0.0.1:0", NULL});
    must_read(p, &p->n_desc_bytes, sizeof(p->n_desc_bytes));
    TD_TRUE(p->n_desc_bytes <= sizeof(p->desc));
    must_read(p, p->desc, p->n_desc_bytes);
}

void peer_start_reader(peer *p, const char *transport, const peer *source)
{
    char go;
    memset(p, 0, sizeof(*p));
    launch(p, (const char *const[]){"xfer_peer", "reader", transport, source->incarnation, NULL});
    must_write(p, &source->n_desc_bytes, sizeof(source->n_desc_bytes));
    must_write(p, source->desc, source->n_desc_bytes);
    must_read(p, &go, 1);
}

td_xfer_served_info peer_served(peer *p)
{
    td_xfer_served_info info;
    must_write(p, "s", 1);
    must_read(p, &info, sizeof(info));
    return info;
}

static void let_go(peer *p)
{
    close(p->to);
    close(p->from);
    p->pid = 0;
}

void peer_kill(peer *p)
{
    if (p->pid == 0)
        return;
    kill(p->pid, SIGKILL);
    waitpid(p->pid, NULL, 0);
    let_go(p);
}

void peer_stop(peer *p)
{
    int status;
    kill(p->pid, SIGSTOP);
    TD_EQ(p->pid, waitpid(p->pid, &status, WUNTRACED));
    TD_TRUE(WIFSTOPPED(status));
}

void peer_continue(peer *p)
{
    kill(p->pid, SIGCONT);
}

void peer_finish(peer *p)
{
    int status;
    close(p->to);
    p->to = open("/dev/null", O_WRONLY);
    TD_EQ(p->pid, waitpid(p->pid, &status, 0));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("peer ended with status 0x%x", (unsigned)status);
    let_go(p);
}

double peer_cpu_seconds(const peer *p)
{
    char path[64], text[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)p->pid);
    FILE *file = fopen(path, "r");
    TD_TRUE(file != NULL);
    size_t n = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[n] = '\0';
    unsigned long user = 0, system = 0;
    const char *rest = strrchr(text, ')');
    TD_TRUE(rest != NULL);
    TD_EQ(2,
          sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system));
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}
