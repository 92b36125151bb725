/* td_port_test.h - a loopback port that stays a test's own while no server has it, so that one can
 * be killed and started again at the same address. */
#ifndef TD_TESTS_TD_PORT_TEST_H
#define TD_TESTS_TD_PORT_TEST_H
#include "tests/td_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bound, with SO_REUSEADDR as servers have it, and never listening: they may take the port, but no
 * connection of anybody's goes out from it. close() lets go of it. */
static inline int td_test_hold_port(uint16_t *port)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(at);
    TD_TRUE(fd >= 0);
    TD_EQ(0, setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
    TD_EQ(0, bind(fd, (struct sockaddr *)&at, sizeof(at)));
    TD_EQ(0, getsockname(fd, (struct sockaddr *)&at, &n));
    *port = ntohs(at.sin_port);
    return fd;
}
#endif
