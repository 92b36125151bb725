/* headers.h - what gRPC puts into HTTP/2 headers: bounded metadata, timeouts, percent-encoded
 * messages. For the files of this folder. */
#ifndef TD_RPC_HEADERS_H
#define TD_RPC_HEADERS_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Names and values of one header block, "name\0value\0..." in one allocation. Zeroed is empty. */
typedef struct {
    char *bytes;
    uint32_t len, cap, n_headers;
    bool overflow; /* something was left out, for the bound or for memory */
} td_meta;

/* Left out (and overflow set) when the block would exceed max_bytes, counted as HTTP/2 does: 32
 * more per header. */
void td_meta_add(td_meta *meta, const void *name, size_t name_len, const void *value,
                 size_t value_len, size_t max_bytes);
const char *td_meta_get(const td_meta *meta,
                        const char *name); /* the first of that name, or NULL */
/* Walks: *pos starts at 0; false at the end. */
bool td_meta_next(const td_meta *meta, uint32_t *pos, const char **name, const char **value);
void td_meta_clear(td_meta *meta); /* frees */

/* "250m": at most 8 digits and a unit of HMSmun. false: malformed. */
bool td_grpc_timeout_parse(const char *text, int64_t *out_ns);
/* Rounded up, so that the server never gives up before the client. */
void td_grpc_timeout_format(int64_t ns, char out[static 16]);

enum { TD_GRPC_MESSAGE_MAX = 1024, TD_GRPC_MESSAGE_ENCODED_MAX = 3 * TD_GRPC_MESSAGE_MAX + 1 };
/* UTF-8, cut at TD_GRPC_MESSAGE_MAX bytes between two characters. Returns the encoded length. */
size_t td_grpc_message_encode(const char *text, char out[static TD_GRPC_MESSAGE_ENCODED_MAX]);
/* What is not validly encoded stays as it is. Always NUL-terminated; cut to fit. */
void td_grpc_message_decode(const char *text, char *out, size_t out_size);

/* "application/grpc", alone or before '+' or ';'. */
bool td_grpc_content_type_ok(const char *value);
bool td_header_name_ok(
    const char *name); /* lower-case token, not a pseudo header, not ours to set */
bool td_header_value_ok(const char *value); /* printable ASCII and inner spaces */
#endif
