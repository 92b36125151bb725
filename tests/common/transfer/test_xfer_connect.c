/* Who answers at a source's address: somebody new, nobody, or something else. */
#include "common/base/clock.h"
#include "tests/common/transfer/rig.h"
#include "tests/td_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

TD_TEST_MAIN

static int free_port(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    TD_EQ(0, bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
    TD_EQ(0, getsockname(fd, (struct sockaddr *)&addr, &n_bytes));
    close(fd);
    return ntohs(addr.sin_port);
}

TEST(a_source_that_restarted_behind_its_address_is_noticed)
{
    static const char *const transports[] = {"shm", "tcp"};
    for (int t = 0; t < 2; t++) {
        peer first, second;
        rig r;
        rig_job j;
        char listen[32];
        snprintf(listen, sizeof(listen), "127.0.0.1:%d", free_port());
        peer_start_source(&first, transports[t], "inc-1", listen);
        rig_init(&r, transports[t]);
        rig_open(&r);
        rig_up(&r, &first, t == 0 ? "posix" : "tcp");
        peer old = first;
        peer_kill(&first);
        peer_start_source(&second, transports[t], "inc-2", listen);
        rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 10000);
        rig_link(&r, &old); /* a descriptor of before */
        td_xfer_event event = rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 10000);
        TD_TRUE(strstr(event.err.text, "incarnation inc-2") != NULL);
        td_xfer_link link = rig_up(&r, &second, t == 0 ? "posix" : "tcp");
        rig_wish(&r, &j, 32, 0, 0, PEER_STRIDE, 20000);
        rig_get(&r, link, &j);
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
        rig_check(&r, &j);
        rig_close(&r);
        peer_finish(&second);
    }
}

TEST(nobody_there_is_told_at_once_and_a_sleeper_in_time)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    r.config.connect_ms = 400;
    rig_open(&r);
    peer_stop(&source);
    td_xfer_link link = rig_link(&r, &source);
    rig_wish(&r, &j, 8, 0, 0, PEER_STRIDE, 60000);
    rig_get(&r, link, &j);
    int64_t start_ns = td_now_ns();
    rig_expect(&r, TD_XFER_JOB_DONE, TD_PEER_LOST, 2000);
    td_xfer_event event = rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 2000);
    TD_TRUE(td_now_ns() - start_ns >= 300 * TD_NS_PER_MS);
    TD_TRUE(strstr(event.err.text, "no answer") != NULL);
    peer_continue(&source);
    rig_up(&r, &source, "posix");
    peer gone = source;
    peer_kill(&source);
    rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 2000);
    rig_link(&r, &gone);
    rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 2000);
    rig_close(&r);
}

/* Something else listens there, takes the connection and says nothing. */
TEST(a_listener_that_is_not_ours_is_given_up)
{
    peer source;
    rig r;
    td_xfer_desc desc;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    TD_EQ(0, bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
    TD_EQ(0, listen(fd, 8));
    TD_EQ(0, getsockname(fd, (struct sockaddr *)&addr, &n_bytes));
    peer_start_source(&source, "auto", "inc-1", NULL);
    TD_EQ(TD_OK, td_xfer_desc_decode(source.desc, source.n_desc_bytes, &desc, NULL));
    desc.port = ntohs(addr.sin_port);
    TD_EQ(TD_OK,
          td_xfer_desc_encode(&desc, source.desc, sizeof(source.desc), &source.n_desc_bytes, NULL));
    rig_init(&r, "auto");
    r.config.connect_ms = 400;
    rig_open(&r);
    rig_link(&r, &source);
    rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 3000);
    rig_close(&r);
    close(fd);
    peer_finish(&source);
}
