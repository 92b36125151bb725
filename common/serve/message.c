#include "common/serve/message.h"

#include <stdbool.h>
#include <stdlib.h>

#define STACK_BYTES 4096 /* most messages are tokens: no allocation for them */
/* An empty string costs its sender two bytes and us a hundred. Honest messages are below it: packed
 * integers take 4 bytes for each on the wire, those that are not packed about 20. */
#define UNPACK_FACTOR 32
#define UNPACK_BASE_BYTES 65536

static void *pack(const ProtobufCMessage *message, void *stack, size_t *len)
{
    *len = protobuf_c_message_get_packed_size(message);
    void *bytes = *len <= STACK_BYTES ? stack : malloc(*len);
    if (bytes != NULL)
        protobuf_c_message_pack(message, bytes);
    return bytes;
}

typedef struct {
    size_t left;
    bool refused;
} allowance;

static void *allot(void *data, size_t n)
{
    allowance *a = data;
    if (n > a->left) {
        a->refused = true;
        return NULL;
    }
    a->left -= n; /* what is freed on the way is not counted back: the bound is one of the sum */
    return malloc(n);
}

static void give_back(void *data, void *bytes)
{
    (void)data;
    free(bytes);
}

/* TD_INVALID becomes INVALID_ARGUMENT. gRPC's own table has INTERNAL for a request that cannot be
 * parsed; but that says the server is at fault and alarms its operators, while it is the caller who
 * must change something. */
td_status td_message_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t len,
                            ProtobufCMessage **out, td_err *err)
{
    allowance a = {.left = UNPACK_BASE_BYTES + UNPACK_FACTOR * len};
    ProtobufCAllocator allocator = {allot, give_back, &a};
    ProtobufCMessage *message = protobuf_c_message_unpack(type, &allocator, len, bytes);
    if (message == NULL)
        return td_fail(err, TD_INVALID, "%s %s of %zu bytes",
                       a.refused ? "too many small fields in a" : "malformed", type->name, len);
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
