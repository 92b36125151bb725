#include "common/base/log.h"

#include "common/base/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 4096
#define MARK "..." /* ends a line that did not fit */

static const struct {
    const char *name;
    int syslog_priority;
} levels[] = {
    [TD_LOG_DEBUG] = {"debug", 7},
    [TD_LOG_INFO] = {"info", 6},
    [TD_LOG_WARN] = {"warn", 4},
    [TD_LOG_ERROR] = {"error", 3},
};

/* Written by td_log_init() before any thread starts, only read afterwards. */
static const char *log_name = "tandem";
static td_log_level log_min = TD_LOG_INFO;
static int log_journal;

/* Values come from peers and files too: a line stays one line and printable. */
static void make_printable(char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            text[i] = ' ';
}

static size_t put_head(char *line, size_t cap, td_log_level level, const char *event)
{
    int64_t wall = td_wall_ns();
    time_t seconds = (time_t)(wall / TD_NS_PER_S);
    int ms = (int)(wall % TD_NS_PER_S / TD_NS_PER_MS);
    struct tm utc;
    char stamp[32];
    gmtime_r(&seconds, &utc);
    strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
    char priority[8] = "";
    if (log_journal)
        snprintf(priority, sizeof(priority), "<%d>", levels[level].syslog_priority);
    int n = snprintf(line, cap, "%s%s.%03dZ %s %s %s ", priority, stamp, ms, levels[level].name,
                     log_name, event);
    return n < 0 ? 0 : (size_t)n < cap ? (size_t)n : cap - 1;
}

void td_log_init(const char *name, td_log_level min_level, int journal)
{
    log_name = name;
    log_min = min_level;
    log_journal = journal;
}

int td_log_enabled(td_log_level level)
{
    return level >= log_min;
}

void td_log(td_log_level level, const char *event, const char *fmt, ...)
{
    if (!td_log_enabled(level))
        return;
    int saved_errno = errno;
    char line[LINE_BYTES];
    size_t n = put_head(line, sizeof(line), level, event);
    va_list ap;
    va_start(ap, fmt);
    int more = vsnprintf(line + n, sizeof(line) - n, fmt, ap);
    va_end(ap);
    if (more > 0)
        n += (size_t)more;
    if (n >= sizeof(line)) {
        n = sizeof(line) - 1;
        memcpy(line + n - strlen(MARK), MARK, strlen(MARK));
    }
    make_printable(line, n);
    while (n > 0 && line[n - 1] == ' ')
        n--;
    line[n++] = '\n';
    /* One write: lines of several threads never mix. A lost log line is nobody's error. */
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written;
    errno = saved_errno;
}
