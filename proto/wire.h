/* wire.h - the few places where protobuf-c's NUL-terminated strings would lose bytes: text may hold
 * U+0000. Reads and writes length-delimited fields of a serialised message directly. */
#ifndef TD_PROTO_WIRE_H
#define TD_PROTO_WIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The next length-delimited field with that number at or after *pos in a message that unpacked well
 * before; false: there is none (or the bytes are no message). *pos moves behind it. */
bool td_wire_next_bytes(const void *msg, size_t len, uint32_t field, size_t *pos,
                        const char **bytes, size_t *n_bytes);
/* Appends the field to out, which has room for TD_WIRE_HEAD_BYTES + n_bytes; returns the bytes
 * written. */
#define TD_WIRE_HEAD_BYTES 15
size_t td_wire_put_bytes(unsigned char *out, uint32_t field, const char *bytes, size_t n_bytes);
#endif
