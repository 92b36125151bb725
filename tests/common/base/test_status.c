#include "tests/td_test.h"

#include "common/base/status.h"

TEST(every_code_has_a_name_and_a_text)
{
    TD_STR("DATA_LOSS", td_status_name(TD_DATA_LOSS));
    TD_STR("ok", td_status_text(TD_OK));
}

TEST(a_code_from_nowhere_is_unknown)
{
    TD_STR("UNKNOWN", td_status_name((td_status)-999));
    TD_STR("unknown status", td_status_text((td_status)-999));
}

TEST(fail_fills_err_returns_the_code_and_takes_null)
{
    td_err err;
    TD_EQ(TD_IO, td_fail(&err, TD_IO, "file %s: %d", "a", 7));
    TD_EQ(TD_IO, err.status);
    TD_STR("file a: 7", err.text);
    TD_EQ(TD_IO, td_fail(NULL, TD_IO, "nobody reads this"));
}

TEST(prefix_stands_before_the_text_and_both_are_cut_at_the_end)
{
    td_err err;
    td_fail(&err, TD_INVALID, "inner");
    TD_EQ(TD_INVALID, td_fail_prefix(&err, "outer %d", 1));
    TD_STR("outer 1: inner", err.text);

    char longer[2 * sizeof(err.text)];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    td_fail_prefix(&err, "p");
    TD_STR("p: outer 1: inner", err.text);
    td_fail_prefix(&err, "%s", longer);
    TD_EQ(sizeof(err.text) - 1, strlen(err.text));
    td_fail(&err, TD_IO, "%s", longer);
    TD_EQ(sizeof(err.text) - 1, strlen(err.text));
    td_fail_prefix(&err, "p");
    TD_EQ(sizeof(err.text) - 1, strlen(err.text));
    TD_EQ('p', err.text[0]);
}

TD_TEST_MAIN
