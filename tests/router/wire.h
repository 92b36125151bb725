/* wire.h - a TCP connection to a port of this host that can be cut as a cable is: both ends hear
 * nothing of it. A thread of its own carries the bytes. Include in one file of a test program. */
#ifndef TD_TESTS_ROUTER_WIRE_H
#define TD_TESTS_ROUTER_WIRE_H
#include "tests/td_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WIRE_MAX = 64 };

typedef struct {
    char address[32];
    uint16_t to;
    int listener;
    int ends[WIRE_MAX][2]; /* [n]: client's, server's */
    bool dead[WIRE_MAX];   /* was cut, or one end has closed */
    int n;
    atomic_bool cut, over;
    pthread_t thread;
} wire;

static inline int wire_socket(struct sockaddr_in *sa, uint16_t port)
{
    *sa = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    sa->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    TD_TRUE(fd >= 0);
    return fd;
}

static inline void wire_accept(wire *w)
{
    struct sockaddr_in sa;
    int client = accept(w->listener, NULL, NULL);
    if (client < 0 || w->n == WIRE_MAX)
        return;
    int server = wire_socket(&sa, w->to);
    w->dead[w->n] = w->cut || connect(server, (struct sockaddr *)&sa, sizeof(sa)) != 0;
    w->ends[w->n][0] = client;
    w->ends[w->n++][1] = server;
}

/* False: this end has closed. */
static inline bool wire_carry(int from, int to)
{
    char bytes[4096];
    ssize_t n = recv(from, bytes, sizeof(bytes), MSG_DONTWAIT);
    return n < 0 || (n > 0 && send(to, bytes, (size_t)n, MSG_NOSIGNAL) == n);
}

static inline void *wire_run(void *user)
{
    wire *w = user;
    while (!w->over) {
        struct pollfd fds[1 + 2 * WIRE_MAX] = {{w->listener, POLLIN, 0}};
        for (int i = 0; i < 2 * w->n; i++) { /* poll() passes over descriptors below 0 */
            w->dead[i / 2] |= w->cut;
            fds[1 + i] = (struct pollfd){w->dead[i / 2] ? -1 : w->ends[i / 2][i % 2], POLLIN, 0};
        }
        int n = w->n;
        poll(fds, 1 + 2 * (nfds_t)n, 5);
        for (int i = 0; i < 2 * n; i++)
            if (fds[1 + i].revents != 0 && !w->cut &&
                !wire_carry(w->ends[i / 2][i % 2], w->ends[i / 2][1 - i % 2])) {
                w->dead[i / 2] = true;
                shutdown(w->ends[i / 2][1 - i % 2], SHUT_WR);
            }
        if (fds[0].revents != 0)
            wire_accept(w);
    }
    return NULL;
}

static inline void wire_open(wire *w, uint16_t to)
{
    struct sockaddr_in sa;
    socklen_t len = sizeof(sa);
    memset(w, 0, sizeof(*w));
    w->to = to;
    w->listener = wire_socket(&sa, 0);
    TD_EQ(0, bind(w->listener, (struct sockaddr *)&sa, sizeof(sa)));
    TD_EQ(0, listen(w->listener, 16));
    TD_EQ(0, getsockname(w->listener, (struct sockaddr *)&sa, &len));
    snprintf(w->address, sizeof(w->address), "127.0.0.1:%u", ntohs(sa.sin_port));
    TD_EQ(0, pthread_create(&w->thread, NULL, wire_run, w));
}

static inline void wire_cut(wire *w)
{
    w->cut = true;
}

static inline void wire_mend(wire *w)
{
    w->cut = false;
}

static inline void wire_close(wire *w)
{
    w->over = true;
    pthread_join(w->thread, NULL);
    for (int i = 0; i < 2 * w->n; i++)
        close(w->ends[i / 2][i % 2]);
    close(w->listener);
}
#endif
