/* status.h - what every fallible call returns, and the text that goes with it. The band of a code
 * says what must be torn down: -20 the request, -40 the peer, -50 the process, -60 the device. A
 * library fills td_err and returns; whoever owns the request, peer or process logs it, once. */
#ifndef TD_BASE_STATUS_H
#define TD_BASE_STATUS_H
#include <stdarg.h>

#define TD_STATUS_MAP(X) /* name, code, text */                                                    \
    X(OK, 0, "ok")                                                                                 \
    X(PENDING, 1, "completes later")                                                               \
    X(FULL, -1, "no room now, retry")                                                              \
    X(EMPTY, -2, "nothing there now")                                                              \
    X(NOMEM, -20, "out of memory")                                                                 \
    X(BAD_SHAPE, -21, "no kernel for this shape")                                                  \
    X(INVALID, -22, "invalid argument")                                                            \
    X(NOT_FOUND, -23, "not found")                                                                 \
    X(CANCELLED, -24, "cancelled")                                                                 \
    X(DEADLINE, -25, "deadline exceeded")                                                          \
    X(EXHAUSTED, -26, "resource exhausted")                                                        \
    X(DATA_LOSS, -27, "data lost or damaged")                                                      \
    X(UNSUPPORTED, -28, "not supported")                                                           \
    X(PRECONDITION, -29, "failed precondition")                                                    \
    X(TOO_LARGE, -30, "over a size limit")                                                         \
    X(PEER_LOST, -40, "peer is gone")                                                              \
    X(PROTOCOL, -41, "peer broke the protocol")                                                    \
    X(MISMATCH, -42, "peer does not match")                                                        \
    X(IO, -50, "input/output failed")                                                              \
    X(CONFIG, -51, "bad configuration")                                                            \
    X(INTERNAL, -52, "internal error")                                                             \
    X(CUDA, -60, "device failed")

typedef enum {
#define TD_STATUS_ENUM(name, code, text) TD_##name = (code),
    TD_STATUS_MAP(TD_STATUS_ENUM)
#undef TD_STATUS_ENUM
} td_status;

typedef struct {
    td_status status;
    char text[496]; /* NUL-terminated; what, where and which peer */
} td_err;

const char *td_status_name(td_status st); /* "DATA_LOSS" */
const char *td_status_text(td_status st);

/* Fills *err (NULL is fine) and returns st, so that a caller may write `return td_fail(err, TD_IO,
 * ...)`. */
td_status td_fail(td_err *err, td_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "<prefix>: " before the text of *err (filled, not NULL) and returns its status; the prefix
 * may not print *err. */
td_status td_fail_prefix(td_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Always on; never judges input from outside; the condition has no side effects. */
#define td_assert(c) ((c) ? (void)0 : td_assert_failed(#c, __FILE__, __LINE__))
void td_assert_failed(const char *what, const char *file, int line) __attribute__((noreturn));
#endif
