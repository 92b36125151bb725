/* message.h - protobuf-c messages over common/rpc: pack and send, unpack with an allocation bound.
 * Loop thread. */
#ifndef TD_SERVE_MESSAGE_H
#define TD_SERVE_MESSAGE_H
#include "common/base/status.h"
#include "common/rpc/client.h"
#include "common/rpc/server.h"

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

/* TD_OK: *out is the caller's until protobuf_c_message_free_unpacked(*out, NULL). TD_INVALID: not
 * this message, or one that would take far more memory than its length. */
td_status td_message_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t len,
                            ProtobufCMessage **out, td_err *err);
/* As td_rpc_call_send(); TD_NOMEM when there is no memory to pack it. */
td_status td_message_send(td_rpc_call *call, const ProtobufCMessage *message);
/* Send and finish(OK); a refusal becomes the call's status. */
void td_message_reply(td_rpc_call *call, const ProtobufCMessage *message);
/* As td_rpc_request_start(). */
td_status td_message_start(td_rpc_client *client, const td_rpc_request_args *args,
                           const ProtobufCMessage *message, td_rpc_request **out, td_err *err);
#endif
