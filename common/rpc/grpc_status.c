#include "common/rpc/grpc_status.h"

#include <nghttp2/nghttp2.h>

const char *td_grpc_status_name(td_grpc_status code)
{
    switch (code) {
#define NAME(name, number, st)                                                                     \
    case TD_GRPC_##name: return #name;
        TD_GRPC_STATUS_MAP(NAME)
#undef NAME
    }
    return "UNKNOWN";
}

td_grpc_status td_grpc_from_status(td_status st)
{
    switch (st) {
    case TD_OK: return TD_GRPC_OK;
    case TD_INVALID:
    case TD_BAD_SHAPE: return TD_GRPC_INVALID_ARGUMENT;
    case TD_NOT_FOUND: return TD_GRPC_NOT_FOUND;
    case TD_CANCELLED: return TD_GRPC_CANCELLED;
    case TD_DEADLINE: return TD_GRPC_DEADLINE_EXCEEDED;
    case TD_FULL:
    case TD_NOMEM:
    case TD_TOO_LARGE:
    case TD_EXHAUSTED: return TD_GRPC_RESOURCE_EXHAUSTED;
    case TD_DATA_LOSS: return TD_GRPC_DATA_LOSS;
    case TD_UNSUPPORTED: return TD_GRPC_UNIMPLEMENTED;
    case TD_MISMATCH:
    case TD_PRECONDITION: return TD_GRPC_FAILED_PRECONDITION;
    case TD_PEER_LOST: return TD_GRPC_UNAVAILABLE;
    default: return TD_GRPC_INTERNAL;
    }
}

td_status td_grpc_to_status(td_grpc_status code)
{
    switch (code) {
#define STATUS(name, number, st)                                                                   \
    case TD_GRPC_##name: return st;
        TD_GRPC_STATUS_MAP(STATUS)
#undef STATUS
    }
    return TD_INTERNAL;
}

/* grpc/doc/http-grpc-status-mapping.md */
td_grpc_status td_grpc_from_http(int http_status)
{
    switch (http_status) {
    case 400: return TD_GRPC_INTERNAL;
    case 401: return TD_GRPC_UNAUTHENTICATED;
    case 403: return TD_GRPC_PERMISSION_DENIED;
    case 404: return TD_GRPC_UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504: return TD_GRPC_UNAVAILABLE;
    default: return TD_GRPC_UNKNOWN;
    }
}

/* grpc/doc/PROTOCOL-HTTP2.md, "HTTP2 Transport Mapping" */
td_grpc_status td_grpc_from_h2(uint32_t h2_error)
{
    switch (h2_error) {
    case NGHTTP2_REFUSED_STREAM: return TD_GRPC_UNAVAILABLE;
    case NGHTTP2_CANCEL: return TD_GRPC_CANCELLED;
    case NGHTTP2_ENHANCE_YOUR_CALM: return TD_GRPC_RESOURCE_EXHAUSTED;
    case NGHTTP2_INADEQUATE_SECURITY: return TD_GRPC_PERMISSION_DENIED;
    default: return TD_GRPC_INTERNAL;
    }
}
