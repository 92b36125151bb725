/* ctl.h - what tandemctl's commands share: the command table's row, exit codes, how an error is
 * reported. A tool: short of memory, it exits. */
#ifndef TD_TOOLS_TANDEMCTL_CTL_H
#define TD_TOOLS_TANDEMCTL_CTL_H
#include "client/tandem.h"
#include "tools/tandemctl/options.h"

#define CTL_EXIT_MAP(X) /* name, code, for --help and docs/tandemctl.md */                         \
    X(OK, 0, "done")                                                                               \
    X(FAILED, 1, "failed: INTERNAL, UNKNOWN, CANCELLED by the router, ABORTED, or output broke")   \
    X(USAGE, 2, "bad command line")                                                                \
    X(UNREACHABLE, 3, "the router cannot be reached, or its connection broke")                     \
    X(REFUSED, 4,                                                                                  \
      "refused: INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, OUT_OF_RANGE, "                  \
      "UNIMPLEMENTED, ...")                                                                        \
    X(EXHAUSTED, 5, "no room: RESOURCE_EXHAUSTED")                                                 \
    X(DEADLINE, 6, "out of time: DEADLINE_EXCEEDED")                                               \
    X(DATA_LOSS, 7, "KV pages were damaged: DATA_LOSS")                                            \
    X(DEGRADED, 8, "no ready pair of workers, one was lost (UNAVAILABLE), or did not answer")

typedef enum {
#define CTL_EXIT_ENUM(name, code, text) CTL_##name = (code),
    CTL_EXIT_MAP(CTL_EXIT_ENUM)
#undef CTL_EXIT_ENUM
        CTL_SIGNAL = 128, /* + the signal's number */
} ctl_exit;

typedef struct {
    const char *router;
    int64_t timeout_ms; /* 0: the command's default */
    bool json, help, version;
    td_client *client; /* NULL for a command that needs none yet; ctl_connect() */
    ctl_arguments args;
    const void *options; /* of the command's own type */
} ctl;

typedef struct {
    const char *name;      /* "generate", "kv links" */
    const char *arguments; /* "[PROMPT | -]" */
    const char *about;
    const ctl_option *options; /* [n_options] */
    size_t n_options, options_bytes;
    uint32_t max_args;
    int64_t timeout_ms; /* default; 0: none */
    int (*run)(ctl *c);
} ctl_command;

extern const ctl_command ctl_generate, ctl_tokenize, ctl_detokenize, ctl_model, ctl_health,
    ctl_status, ctl_kv_links, ctl_kv_transfers;

/* Opens c->client and lets SIGINT and SIGTERM cancel its calls; CTL_OK, or an exit code with the
 * error told. */
int ctl_connect(ctl *c);
void ctl_disconnect(ctl *c); /* never connected: fine */
/* Says what went wrong (stderr; with --json as {"error": ...} on stdout) and returns the exit code.
 */
int ctl_fail(const ctl *c, const td_client_error *err);
int ctl_exit_code(const td_client_error *err);
/* "tandemctl: ..." on stderr; returns CTL_USAGE. */
int ctl_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Flushes stdout; CTL_FAILED if it could not be written. */
int ctl_flush(void);
void *ctl_alloc(void *old, size_t n_bytes); /* realloc() that exits */
#endif
