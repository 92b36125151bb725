/* echo_server.c - the echo service as a program, for interop tests: prints its port, ends at
 * SIGTERM. */
#include "common/base/log.h"
#include "tests/common/rpc/echo.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    td_rpc_server *server;
    td_signal *term;
} program;

static void on_term(void *user, int signum)
{
    program *p = user;
    (void)signum;
    td_rpc_server_close(p->server, NULL, NULL);
    td_signal_close(p->term);
}

int main(void)
{
    program p;
    td_loop *loop;
    echo_service echo;
    td_err err = {0};
    td_log_init("echo", TD_LOG_INFO, 0);
    if (td_loop_create(&loop, &err) < 0)
        return 1;
    echo_init(&echo, loop);
    td_rpc_server_conf sc = {.methods = echo.methods, .n_methods = ECHO_METHODS, .name = "echo"};
    if (td_addr_parse("127.0.0.1:0", &sc.listen, &err) < 0 ||
        td_rpc_server_open(loop, &sc, &p.server, &err) < 0 ||
        td_signal_open(loop, SIGTERM, on_term, &p, &p.term, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    printf("%u\n", (unsigned)td_rpc_server_port(p.server));
    fflush(stdout);
    td_loop_run(loop);
    td_loop_destroy(loop);
    return echo.n_live == 0 ? 0 : 1;
}
