/* The shared library alone, as it is installed: its header and td_client_* suffice. */
#include "client/tandem.h"
#include "tests/td_test.h"

TD_TEST_MAIN

TEST(the_shared_library_stands_alone)
{
    td_client *client;
    td_client_model model;
    td_client_error err;
    TD_EQ(TD_CLIENT_INVALID_ARGUMENT,
          td_client_open(&(td_client_conf){.router = "x"}, &client, &err));
    TD_EQ(TD_CLIENT_OK, td_client_open(&(td_client_conf){.router = "127.0.0.1:1"}, &client, &err));
    TD_EQ(TD_CLIENT_UNAVAILABLE, td_client_get_model(client, NULL, &model, &err));
    TD_TRUE(err.unreachable);
    td_client_close(client);
}
