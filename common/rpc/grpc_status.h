/* grpc_status.h - the 17 status codes of gRPC and how they relate to td_status and HTTP. */
#ifndef TD_RPC_GRPC_STATUS_H
#define TD_RPC_GRPC_STATUS_H
#include "common/base/status.h"

#include <stdint.h>

#define TD_GRPC_STATUS_MAP(X) /* name, code, the td_status it means to a caller */                 \
    X(OK, 0, TD_OK)                                                                                \
    X(CANCELLED, 1, TD_CANCELLED)                                                                  \
    X(UNKNOWN, 2, TD_INTERNAL)                                                                     \
    X(INVALID_ARGUMENT, 3, TD_INVALID)                                                             \
    X(DEADLINE_EXCEEDED, 4, TD_DEADLINE)                                                           \
    X(NOT_FOUND, 5, TD_NOT_FOUND)                                                                  \
    X(ALREADY_EXISTS, 6, TD_PRECONDITION)                                                          \
    X(PERMISSION_DENIED, 7, TD_PRECONDITION)                                                       \
    X(RESOURCE_EXHAUSTED, 8, TD_EXHAUSTED)                                                         \
    X(FAILED_PRECONDITION, 9, TD_PRECONDITION)                                                     \
    X(ABORTED, 10, TD_CANCELLED)                                                                   \
    X(OUT_OF_RANGE, 11, TD_INVALID)                                                                \
    X(UNIMPLEMENTED, 12, TD_UNSUPPORTED)                                                           \
    X(INTERNAL, 13, TD_INTERNAL)                                                                   \
    X(UNAVAILABLE, 14, TD_PEER_LOST)                                                               \
    X(DATA_LOSS, 15, TD_DATA_LOSS)                                                                 \
    X(UNAUTHENTICATED, 16, TD_PRECONDITION)

typedef enum {
#define TD_GRPC_ENUM(name, code, st) TD_GRPC_##name = (code),
    TD_GRPC_STATUS_MAP(TD_GRPC_ENUM)
#undef TD_GRPC_ENUM
} td_grpc_status;

const char *td_grpc_status_name(td_grpc_status code); /* "RESOURCE_EXHAUSTED" */
td_grpc_status
td_grpc_from_status(td_status st); /* what a server answers when a call ended with st */
td_status td_grpc_to_status(td_grpc_status code);  /* what a client's caller sees */
td_grpc_status td_grpc_from_http(int http_status); /* an answer without grpc-status */
td_grpc_status td_grpc_from_h2(uint32_t h2_error); /* RST_STREAM's error code */
#endif
