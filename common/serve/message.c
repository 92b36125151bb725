#include "common/serve/message.h"

#include <stdlib.h>

#define STACK_BYTES 4096 /* most messages are tokens: no allocation for them */

static void *pack(const ProtobufCMessage *message, void *stack, size_t *len)
{
    *len = protobuf_c_message_get_packed_size(message);
    void *bytes = *len <= STACK_BYTES ? stack : malloc(*len);
    if (bytes != NULL)
        protobuf_c_message_pack(message, bytes);
    return bytes;
}

td_status td_message_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t len,
                            ProtobufCMessage **out, td_err *err)
{
    ProtobufCMessage *message = protobuf_c_message_unpack(type, NULL, len, bytes);
    if (message == NULL)
        return td_fail(err, TD_INVALID, "malformed %s of %zu bytes", type->name, len);
    *out = message;
    return TD_OK;
}

td_status td_message_send(td_rpc_call *call, const ProtobufCMessage *message)
{
    unsigned char stack[STACK_BYTES];
    size_t len;
    void *bytes = pack(message, stack, &len);
    if (bytes == NULL)
        return TD_NOMEM;
    td_status st = td_rpc_call_send(call, bytes, len);
    if (bytes != stack)
        free(bytes);
    return st;
}

void td_message_reply(td_rpc_call *call, const ProtobufCMessage *message)
{
    unsigned char stack[STACK_BYTES];
    size_t len;
    void *bytes = pack(message, stack, &len);
    if (bytes == NULL) {
        td_rpc_call_finish(call, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the answer");
        return;
    }
    td_rpc_call_reply(call, bytes, len);
    if (bytes != stack)
        free(bytes);
}

td_status td_message_start(td_rpc_client *client, const td_rpc_request_args *args,
                           const ProtobufCMessage *message, td_rpc_request **out, td_err *err)
{
    unsigned char stack[STACK_BYTES];
    size_t len;
    void *bytes = pack(message, stack, &len);
    if (bytes == NULL)
        return td_fail(err, TD_NOMEM, "no memory to pack %s", message->descriptor->name);
    td_status st = td_rpc_request_start(client, args, bytes, len, out, err);
    if (bytes != stack)
        free(bytes);
    return st;
}
