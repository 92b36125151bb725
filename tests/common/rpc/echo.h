/* echo.h - a service for tests: every kind of method and every way to end a call. */
#ifndef TD_TESTS_RPC_ECHO_H
#define TD_TESTS_RPC_ECHO_H
#include "common/rpc/server.h"

enum { ECHO_METHODS = 8 };

/* Request of /test.Echo/Stream. */
typedef struct {
    uint32_t n_messages, n_bytes; /* of each; message i starts with i as a uint32 */
    uint32_t rude;                /* 1: sends all at once, whatever is queued */
    uint32_t pause_ms;            /* between two messages */
} echo_stream_args;

typedef struct {
    td_loop *loop;
    td_rpc_method methods[ECHO_METHODS];
    int n_live; /* calls with state of their own */
    int n_cancelled;
    td_grpc_status last_cancel;
    int n_half_closed;
    td_status last_send; /* what a rude stream got */
    uint64_t n_sent;
} echo_service;

/* Unary: echoes; with x-request-id comes x-echo. Stream: see above. Bidi: echoes each, ends at
 * half-close. Hang: never answers. Fail: the request is "<code> <text>". Wait: answers "deadline"
 * in ms, or "none". Swallow: client streaming, answers with the number of bytes. Early: bidi, ends
 * at the first message whatever follows. */
void echo_init(echo_service *echo, td_loop *loop);
#endif
