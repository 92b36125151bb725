#include "tests/td_test.h"

#include "common/serve/ident.h"

TEST(incarnations_are_16_hex_digits_and_never_the_same)
{
    char a[TD_INCARNATION_BYTES], b[TD_INCARNATION_BYTES];
    td_incarnation_make(a);
    td_incarnation_make(b);
    TD_EQ(16, strlen(a));
    TD_EQ(16, strspn(a, "0123456789abcdef"));
    TD_TRUE(strcmp(a, b) != 0);
}

TEST(what_is_no_incarnation_is_told)
{
    char a[TD_INCARNATION_BYTES];
    td_incarnation_make(a);
    TD_TRUE(td_incarnation_valid(a));
    TD_TRUE(!td_incarnation_valid(""));
    TD_TRUE(!td_incarnation_valid("0123456789abcde"));
    TD_TRUE(!td_incarnation_valid("0123456789abcdef0"));
    TD_TRUE(!td_incarnation_valid("0123456789abcdeF"));
    TD_TRUE(!td_incarnation_valid("0123456789abcde\n"));
}

TEST(request_ids_that_we_make_are_valid_and_differ)
{
    char a[TD_REQUEST_ID_MAX + 1], b[TD_REQUEST_ID_MAX + 1];
    td_request_id_make(a);
    td_request_id_make(b);
    TD_EQ(32, strlen(a));
    TD_TRUE(td_request_id_valid(a, strlen(a)));
    TD_TRUE(strcmp(a, b) != 0);
}

TEST(request_ids_of_clients_are_checked)
{
    char longest[TD_REQUEST_ID_MAX + 1];
    memset(longest, 'a', sizeof(longest));
    TD_TRUE(td_request_id_valid("a", 1));
    TD_TRUE(td_request_id_valid("3f-A_z.9:~/+@=", 14));
    TD_TRUE(td_request_id_valid(longest, TD_REQUEST_ID_MAX));
    TD_TRUE(!td_request_id_valid(longest, TD_REQUEST_ID_MAX + 1));
    TD_TRUE(!td_request_id_valid("", 0));
    TD_TRUE(!td_request_id_valid("a b", 3));
    TD_TRUE(!td_request_id_valid("a\nb", 3));
    TD_TRUE(!td_request_id_valid("a\0b", 3));
    TD_TRUE(!td_request_id_valid("\xc3\xa4", 2));
    TD_TRUE(!td_request_id_valid("a\"", 2));
}

TEST(only_loopback_may_be_listened_on_unless_plaintext_is_allowed)
{
    td_addr addr = {.port = 1};
    td_err err;
    TD_EQ(TD_OK, td_listen_addr("listen", "127.0.0.1:7400", false, &addr, NULL));
    TD_EQ(7400, addr.port);
    TD_EQ(TD_OK, td_listen_addr("listen", "[::1]:7401", false, &addr, NULL));
    TD_EQ(TD_OK, td_listen_addr("listen", "localhost:7402", false, &addr, NULL));
    TD_EQ(TD_CONFIG, td_listen_addr("listen", "0.0.0.0:7403", false, &addr, &err));
    TD_TRUE(strstr(err.text, "listen: 0.0.0.0:7403 is not a loopback address") != NULL);
    TD_TRUE(strstr(err.text, "allow-plaintext") != NULL);
    TD_EQ(TD_CONFIG, td_listen_addr("listen", "[::]:7403", false, &addr, NULL));
    TD_EQ(TD_CONFIG, td_listen_addr("listen", "example.org:1", false, &addr, NULL));
    TD_EQ(7402, addr.port); /* written only on success */
    TD_EQ(TD_OK, td_listen_addr("listen", "0.0.0.0:7404", true, &addr, NULL));
    TD_EQ(7404, addr.port);
}

TEST(what_is_no_address_is_refused_by_the_knobs_name)
{
    td_addr addr;
    td_err err;
    static const char *const bad[] = {
        "",          "7400", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x",
        "[::1:7400", ":7400"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        TD_EQ(TD_CONFIG, td_listen_addr("admin", bad[i], true, &addr, &err));
        TD_EQ(0, strncmp(err.text, "admin: ", 7));
    }
}

TEST(kv_pages_are_served_where_the_daemon_listens_unless_told_otherwise)
{
    static const struct {
        const char *kv_listen, *listen, *want; /* of rank 3 */
    } good[] = {{"", "127.0.0.1:7410", "127.0.0.1:0"},
                {"", "localhost:7410", "127.0.0.1:0"},
                {"", "[::1]:7410", "[::1]:0"},
                {"10.0.0.1:7500", "0.0.0.0:7410", "10.0.0.1:7503"},
                {"127.0.0.1:65532", "127.0.0.1:1", "127.0.0.1:65535"}};
    char out[272];
    td_addr addr;
    td_err err;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        TD_EQ(TD_OK, td_kv_listen_addr(good[i].kv_listen, good[i].listen, true, 4, &addr, &err));
        TD_STR(good[i].want, td_kv_rank_addr(&addr, 3, out));
    }
}

/* Before the weights are loaded, and in words that name the knob to turn. */
TEST(an_address_that_no_reader_could_connect_to_is_refused)
{
    static const char *const bad[][2] = {{"", "0.0.0.0:7410"},
                                         {"", "[::]:7410"},
                                         {"0.0.0.0:7500", "10.0.0.1:7410"},
                                         {"127.0.0.1:65533", "127.0.0.1:1"},
                                         {"", "no-such-host.invalid:7410"},
                                         {"no-such-host.invalid:1", "127.0.0.1:7410"},
                                         {"nowhere", "127.0.0.1:1"}};
    char out[272];
    td_addr addr;
    td_err err;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        TD_EQ(TD_CONFIG, td_kv_listen_addr(bad[i][0], bad[i][1], true, 4, &addr, &err));
        if (strncmp(err.text, "kv-listen: ", 11) != 0)
            fail_msg("says: %s", err.text);
    }
    TD_EQ(TD_CONFIG, td_kv_listen_addr("10.0.0.1:7500", "127.0.0.1:1", false, 1, &addr, &err));
    TD_EQ(TD_OK, td_kv_listen_addr("", "0.0.0.0:7410", true, 0, &addr, &err)); /* serves nothing */
    TD_STR("0.0.0.0:0", td_kv_rank_addr(&addr, 0, out));
}

TD_TEST_MAIN
