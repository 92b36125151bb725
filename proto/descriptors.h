/* descriptors.h - the FileDescriptorSet of every .proto here, as protoc-c wrote it at build time.
 */
#ifndef TD_PROTO_DESCRIPTORS_H
#define TD_PROTO_DESCRIPTORS_H
#include <stddef.h>

extern const unsigned char td_proto_descriptors[];
extern const size_t td_proto_descriptors_bytes;
#endif
