#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/log.h"

#include <errno.h>
#include <unistd.h>

/* What one td_log() call writes to stderr. */
static size_t capture(char *text, size_t cap, td_log_level level, const char *value)
{
    int ends[2], saved = dup(STDERR_FILENO);
    TD_EQ(0, pipe(ends));
    dup2(ends[1], STDERR_FILENO);
    errno = ENOTTY;
    td_log(level, "test.event", "value=%s", value);
    int after = errno;
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    ssize_t n = read(ends[0], text, cap - 1);
    close(ends[0]);
    TD_EQ(ENOTTY, after);
    TD_TRUE(n >= 0);
    text[n] = '\0';
    return (size_t)n;
}

TEST(time_goes_forward_and_sleep_lasts)
{
    int64_t before = td_now_ns();
    TD_TRUE(before > 0);
    td_sleep_ms(20);
    TD_TRUE(td_now_ns() - before >= 20 * TD_NS_PER_MS);
    td_sleep_ms(0);
    td_sleep_ms(-5);
    TD_TRUE(td_wall_ns() > 1577836800LL * TD_NS_PER_S); /* after 2020 */
}

TEST(a_line_has_stamp_level_program_event_and_values)
{
    char text[512];
    td_log_init("tandem-test", TD_LOG_INFO, 0);
    capture(text, sizeof(text), TD_LOG_WARN, "3");
    TD_EQ('T', text[10]);
    TD_EQ('.', text[19]);
    TD_STR("Z warn tandem-test test.event value=3\n", text + 23);
}

TEST(lines_below_the_level_are_not_written)
{
    char text[512];
    td_log_init("tandem-test", TD_LOG_WARN, 0);
    TD_EQ(0, capture(text, sizeof(text), TD_LOG_INFO, "3"));
    TD_EQ(0, td_log_enabled(TD_LOG_INFO));
    TD_EQ(1, td_log_enabled(TD_LOG_WARN));
}

TEST(journald_gets_priorities)
{
    char text[512];
    td_log_init("tandem-test", TD_LOG_DEBUG, 1);
    capture(text, sizeof(text), TD_LOG_ERROR, "3");
    TD_EQ(0, strncmp(text, "<3>", 3));
    capture(text, sizeof(text), TD_LOG_DEBUG, "3");
    TD_EQ(0, strncmp(text, "<7>", 3));
}

TEST(a_value_with_newlines_stays_on_one_line)
{
    char text[512];
    td_log_init("tandem-test", TD_LOG_INFO, 0);
    size_t n = capture(text, sizeof(text), TD_LOG_INFO, "a\nb\x1b[1m\r\tc");
    TD_TRUE(strchr(text, '\n') == text + n - 1);
    TD_TRUE(strchr(text, '\x1b') == NULL);
    TD_TRUE(strstr(text, "value=a b [1m  c\n") != NULL);
}

TEST(a_line_that_is_too_long_is_cut_and_marked)
{
    static char value[10000], text[12000];
    memset(value, 'v', sizeof(value) - 1);
    td_log_init("tandem-test", TD_LOG_INFO, 0);
    size_t n = capture(text, sizeof(text), TD_LOG_INFO, value);
    TD_TRUE(n <= 4096);
    TD_STR("vv...\n", text + n - 6);
}

TD_TEST_MAIN
