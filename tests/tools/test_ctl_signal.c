/* A signal that comes when tandemctl's client is gone. */
#include "tests/client/fake_router.h"
#include "tests/td_test.h"
#include "tools/tandemctl/ctl.h"

#include <signal.h>

TD_TEST_MAIN

TEST(a_signal_after_the_client_was_closed_touches_nothing)
{
    static fake_router router;
    fake_router_start(&router);
    for (int i = 0; i < 2; i++) {
        ctl c = {.router = router.address};
        TD_EQ(CTL_OK, ctl_connect(&c));
        ctl_disconnect(&c);
        TD_TRUE(c.client == NULL);
        ctl_disconnect(&c);
        raise(i == 0 ? SIGINT : SIGTERM); /* the handler still stands: once */
    }
    td_client_error err = {.code = TD_CLIENT_CANCELLED};
    TD_EQ(CTL_SIGNAL + SIGTERM, ctl_exit_code(&err));
    fake_router_stop(&router);
}
