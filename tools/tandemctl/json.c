#include "tools/tandemctl/json.h"

#include "tools/tandemctl/ctl.h"

#include <stdlib.h>
#include <string.h>

#define EXACT_MAX (1LL << 53)

cJSON *ctl_json_u64(uint64_t value)
{
    char text[24];
    if (value <= (uint64_t)EXACT_MAX)
        return cJSON_CreateNumber((double)value);
    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    return cJSON_CreateString(text);
}

static cJSON *json_i64(int64_t value)
{
    char text[24];
    if (value >= -EXACT_MAX && value <= EXACT_MAX)
        return cJSON_CreateNumber((double)value);
    snprintf(text, sizeof(text), "%lld", (long long)value);
    return cJSON_CreateString(text);
}

cJSON *ctl_json_text(const char *bytes, size_t n_bytes)
{
    char *out = ctl_alloc(NULL, n_bytes * 6 + 3), *p = out;
    *p++ = '"';
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\') {
            *p++ = '\\';
            *p++ = (char)c;
        } else if (c == '\n') {
            *p++ = '\\';
            *p++ = 'n';
        } else if (c < 0x20 || c == 0x7f) {
            p += sprintf(p, "\\u%04x", c);
        } else {
            *p++ = (char)c;
        }
    }
    *p++ = '"';
    *p = '\0';
    cJSON *json = cJSON_CreateRaw(out);
    free(out);
    return json;
}

cJSON *ctl_json_ids(const uint32_t *ids, size_t n)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < n; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber(ids[i]));
    return array;
}

/* One value of field f that stands at p. */
static cJSON *json_value(const ProtobufCFieldDescriptor *f, const void *p)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32: return cJSON_CreateNumber(*(const int32_t *)p);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32: return cJSON_CreateNumber(*(const uint32_t *)p);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64: return json_i64(*(const int64_t *)p);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64: return ctl_json_u64(*(const uint64_t *)p);
    case PROTOBUF_C_TYPE_FLOAT: return cJSON_CreateNumber((double)*(const float *)p);
    case PROTOBUF_C_TYPE_DOUBLE: return cJSON_CreateNumber(*(const double *)p);
    case PROTOBUF_C_TYPE_BOOL: return cJSON_CreateBool(*(const protobuf_c_boolean *)p);
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)p;
        return ctl_json_text(text, strlen(text));
    }
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *message = *(ProtobufCMessage *const *)p;
        return message != NULL ? ctl_json_message(message) : cJSON_CreateNull();
    }
    default: return cJSON_CreateNull(); /* enums and bytes: Admin's messages have none */
    }
}

static size_t value_bytes(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE: return 8;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE: return sizeof(void *);
    default: return 4;
    }
}

cJSON *ctl_json_message(const ProtobufCMessage *message)
{
    const ProtobufCMessageDescriptor *type = message->descriptor;
    cJSON *json = cJSON_CreateObject();
    for (unsigned i = 0; i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &type->fields[i];
        const char *member = (const char *)message + f->offset;
        cJSON *value;
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            size_t n = *(const size_t *)((const char *)message + f->quantifier_offset);
            const char *items = *(const char *const *)member;
            value = cJSON_CreateArray();
            for (size_t k = 0; k < n; k++)
                cJSON_AddItemToArray(value, json_value(f, items + k * value_bytes(f->type)));
        } else {
            value = json_value(f, member);
        }
        cJSON_AddItemToObject(json, f->name, value);
    }
    return json;
}

cJSON *ctl_json_error(const td_client_error *err)
{
    if (err->code == TD_CLIENT_OK)
        return cJSON_CreateNull();
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "code", cJSON_CreateString(td_client_code_name(err->code)));
    cJSON_AddItemToObject(json, "message", ctl_json_text(err->text, strlen(err->text)));
    cJSON_AddItemToObject(json, "unreachable", cJSON_CreateBool(err->unreachable));
    return json;
}

void ctl_json_print(cJSON *json)
{
    char *text = cJSON_Print(json);
    if (text == NULL) {
        fprintf(stderr, "tandemctl: out of memory\n");
        exit(CTL_FAILED);
    }
    printf("%s\n", text);
    cJSON_free(text);
    cJSON_Delete(json);
}
