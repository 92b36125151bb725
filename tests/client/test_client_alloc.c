/* libtandem with too little memory. */
#include "client/tandem.h"
#include "common/base/status.h"
#include "tests/common/base/td_hard.h"
#include "tests/td_test.h"

TD_TEST_MAIN

static td_status open_and_close(void)
{
    td_client *client;
    td_client_error err;
    td_client_code code = td_client_open(&(td_client_conf){.router = "127.0.0.1:1"}, &client, &err);
    if (code == TD_CLIENT_OK)
        td_client_close(client);
    return code == TD_CLIENT_OK                   ? TD_OK
           : code == TD_CLIENT_RESOURCE_EXHAUSTED ? TD_NOMEM
                                                  : TD_INTERNAL;
}

TEST(opening_survives_any_failed_allocation)
{
    TD_EACH_ALLOC_FAILS(TD_NOMEM, open_and_close(), (void)0);
}

TEST(closing_nothing_is_fine)
{
    td_client_close(NULL);
}
