#include "tools/tandemctl/ctl.h"

#include "tools/tandemctl/json.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static td_client *volatile signalled_client; /* what the handler cancels; NULL: nothing */
static volatile sig_atomic_t signal_number;

/* Once: a second signal ends the process. */
static void on_signal(int number)
{
    signal_number = number;
    if (signalled_client != NULL)
        td_client_cancel(signalled_client);
}

int ctl_connect(ctl *c)
{
    td_client_conf conf = {.router = c->router, .timeout_ms = c->timeout_ms};
    td_client_error err;
    td_client_code code = td_client_open(&conf, &c->client, &err);
    if (code == TD_CLIENT_INVALID_ARGUMENT)
        return ctl_usage("--router: %s", err.text);
    if (code != TD_CLIENT_OK)
        return ctl_fail(c, &err);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    signalled_client = c->client;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return CTL_OK;
}

void ctl_disconnect(ctl *c)
{
    signalled_client = NULL; /* a signal may still come */
    td_client_close(c->client);
    c->client = NULL;
}

int ctl_exit_code(const td_client_error *err)
{
    if (err->code == TD_CLIENT_CANCELLED && signal_number != 0)
        return CTL_SIGNAL + signal_number;
    if (err->unreachable)
        return CTL_UNREACHABLE;
    switch (err->code) {
    case TD_CLIENT_OK: return CTL_OK;
    case TD_CLIENT_INVALID_ARGUMENT:
    case TD_CLIENT_NOT_FOUND:
    case TD_CLIENT_ALREADY_EXISTS:
    case TD_CLIENT_PERMISSION_DENIED:
    case TD_CLIENT_FAILED_PRECONDITION:
    case TD_CLIENT_OUT_OF_RANGE:
    case TD_CLIENT_UNIMPLEMENTED:
    case TD_CLIENT_UNAUTHENTICATED: return CTL_REFUSED;
    case TD_CLIENT_RESOURCE_EXHAUSTED: return CTL_EXHAUSTED;
    case TD_CLIENT_DEADLINE_EXCEEDED: return CTL_DEADLINE;
    case TD_CLIENT_DATA_LOSS: return CTL_DATA_LOSS;
    case TD_CLIENT_UNAVAILABLE: return CTL_DEGRADED;
    default: return CTL_FAILED;
    }
}

int ctl_fail(const ctl *c, const td_client_error *err)
{
    if (c->json) {
        cJSON *json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "error", ctl_json_error(err));
        ctl_json_print(json);
    } else {
        fprintf(stderr, "tandemctl: %s: %s\n",
                err->unreachable ? "router unreachable" : td_client_code_name(err->code),
                err->text);
    }
    int flushed = ctl_flush();
    int code = ctl_exit_code(err);
    return code != CTL_OK ? code : flushed;
}

int ctl_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("tandemctl: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return CTL_USAGE;
}

int ctl_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CTL_OK;
    fprintf(stderr, "tandemctl: cannot write: %s\n", strerror(errno));
    return CTL_FAILED;
}

void *ctl_alloc(void *old, size_t n_bytes)
{
    void *p = realloc(old, n_bytes > 0 ? n_bytes : 1);
    if (p == NULL) {
        fprintf(stderr, "tandemctl: out of memory\n");
        exit(CTL_FAILED);
    }
    return p;
}
