/* log.h - structured log lines: `2026-01-02T03:04:05.678Z info tandem-decode xfer.done req=...
 * pages=12`. The event is a constant, the rest key=value. Lines go to stderr, one write() each;
 * control characters become spaces. Never prompt or generated text. Any thread. */
#ifndef TD_BASE_LOG_H
#define TD_BASE_LOG_H

typedef enum { TD_LOG_DEBUG, TD_LOG_INFO, TD_LOG_WARN, TD_LOG_ERROR } td_log_level;

/* Called by main before any thread starts. name: "tandem-decode", a literal; it stands in every
 * line. journal: prefix lines with syslog priorities, for journald (main looks whether
 * JOURNAL_STREAM is set). */
void td_log_init(const char *name, td_log_level min_level, int journal);
int td_log_enabled(td_log_level level);
void td_log(td_log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define td_debug(event, ...) td_log(TD_LOG_DEBUG, event, __VA_ARGS__)
#define td_info(event, ...) td_log(TD_LOG_INFO, event, __VA_ARGS__)
#define td_warn(event, ...) td_log(TD_LOG_WARN, event, __VA_ARGS__)
#define td_error(event, ...) td_log(TD_LOG_ERROR, event, __VA_ARGS__)
#endif
