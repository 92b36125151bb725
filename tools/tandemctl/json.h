/* json.h - what --json prints. */
#ifndef TD_TOOLS_TANDEMCTL_JSON_H
#define TD_TOOLS_TANDEMCTL_JSON_H
#include "client/tandem.h"

#include <cJSON.h>
#include <protobuf-c/protobuf-c.h>

/* Every field by its name in proto/, zero or not; an absent message is null. */
cJSON *ctl_json_message(const ProtobufCMessage *message);
/* A JSON string of UTF-8 bytes that may hold NUL (cJSON's own strings cannot). */
cJSON *ctl_json_text(const char *bytes, size_t n_bytes);
cJSON *ctl_json_u64(uint64_t value); /* a string above 2^53 */
cJSON *ctl_json_ids(const uint32_t *ids, size_t n);
cJSON *ctl_json_error(const td_client_error *err); /* null when the code is OK */
void ctl_json_print(cJSON *json);                  /* to stdout; takes it over */
#endif
