#include "common/serve/reflection.h"

#include "common/serve/message.h"
#include "proto/descriptors.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/grpc/reflection/v1alpha/reflection.pb-c.h"
#include "proto/tandem/internal/descriptors.pb-c.h"

#include <stdlib.h>
#include <string.h>

/* v1 and v1alpha have the same messages but for their package name, field by field, so one
 * implementation on v1's types answers both: the bytes on the wire are equal. */
typedef Grpc__Reflection__V1__ServerReflectionRequest ref_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse ref_response;

struct td_reflection {
    Tandem__Internal__FileSet *set;
    Tandem__Internal__File **files; /* [set->n_file] */
    const char *const *services;
    uint32_t n_services;
};

td_status td_reflection_create(const char *const *services, uint32_t n_services,
                               td_reflection **out, td_err *err)
{
    td_reflection *r = calloc(1, sizeof(*r));
    if (r == NULL)
        goto fail;
    r->services = services;
    r->n_services = n_services;
    r->set =
        tandem__internal__file_set__unpack(NULL, td_proto_descriptors_bytes, td_proto_descriptors);
    if (r->set == NULL)
        goto fail;
    r->files = calloc(r->set->n_file, sizeof(Tandem__Internal__File *));
    if (r->files == NULL)
        goto fail;
    for (size_t i = 0; i < r->set->n_file; i++) {
        r->files[i] =
            tandem__internal__file__unpack(NULL, r->set->file[i].len, r->set->file[i].data);
        if (r->files[i] == NULL)
            goto fail;
    }
    *out = r;
    return TD_OK;
fail:
    td_reflection_destroy(r);
    return td_fail(err, TD_NOMEM, "reflection: no memory for the descriptors");
}

void td_reflection_destroy(td_reflection *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; r->files != NULL && i < r->set->n_file; i++)
        if (r->files[i] != NULL)
            tandem__internal__file__free_unpacked(r->files[i], NULL);
    free(r->files);
    if (r->set != NULL)
        tandem__internal__file_set__free_unpacked(r->set, NULL);
    free(r);
}

/* If symbol starts with name at a component's end: the rest ("" when nothing is left). Otherwise
 * NULL. */
static const char *after_name(const char *symbol, const char *name)
{
    size_t n = strlen(name);
    if (strncmp(symbol, name, n) != 0)
        return NULL;
    return symbol[n] == '.' ? symbol + n + 1 : symbol[n] == '\0' ? symbol + n : NULL;
}

static bool leaf_defines(Tandem__Internal__Leaf *const *leaves, size_t n, const char *symbol)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(symbol, leaves[i]->name) == 0)
            return true;
    return false;
}

/* Nesting in our own descriptors is shallow; the symbol gets shorter with every level. */
static bool message_defines(Tandem__Internal__Message *const *types, size_t n, const char *symbol)
{
    for (size_t i = 0; i < n; i++) {
        const char *rest = after_name(symbol, types[i]->name);
        if (rest == NULL)
            continue;
        if (rest[0] == '\0' ||
            message_defines(types[i]->nested_type, types[i]->n_nested_type, rest) ||
            leaf_defines(types[i]->enum_type, types[i]->n_enum_type, rest))
            return true;
    }
    return false;
}

/* symbol is a message's name, and not that of something within one. */
static bool names_message(Tandem__Internal__Message *const *types, size_t n, const char *symbol)
{
    for (size_t i = 0; i < n; i++) {
        const char *rest = after_name(symbol, types[i]->name);
        if (rest != NULL && (rest[0] == '\0' ||
                             names_message(types[i]->nested_type, types[i]->n_nested_type, rest)))
            return true;
    }
    return false;
}

static bool file_defines(const Tandem__Internal__File *file, const char *symbol)
{
    const char *rest = after_name(symbol, file->package);
    if (rest == NULL || rest[0] == '\0')
        return false;
    if (message_defines(file->message_type, file->n_message_type, rest) ||
        leaf_defines(file->enum_type, file->n_enum_type, rest))
        return true;
    for (size_t i = 0; i < file->n_service; i++) {
        const char *method = after_name(rest, file->service[i]->name);
        if (method == NULL)
            continue;
        if (method[0] == '\0' ||
            leaf_defines(file->service[i]->method, file->service[i]->n_method, method))
            return true;
    }
    return false;
}

/* Index of the file, or -1. */
static int find_file(const td_reflection *r, const char *name, const char *symbol)
{
    for (size_t i = 0; i < r->set->n_file; i++) {
        if (name != NULL && strcmp(r->files[i]->name, name) == 0)
            return (int)i;
        if (symbol != NULL && file_defines(r->files[i], symbol))
            return (int)i;
    }
    return -1;
}

static void answer_error(td_rpc_call *call, ref_response *res, td_grpc_status code, char *text)
{
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = (int32_t)code;
    error.error_message = text;
    res->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    res->error_response = &error; /* cppcheck-suppress autoVariables ; taken back below */
    td_message_send(call, &res->base);
    res->error_response = NULL;
}

static void answer_file(const td_reflection *r, td_rpc_call *call, ref_response *res, int index)
{
    if (index < 0) {
        answer_error(call, res, TD_GRPC_NOT_FOUND, "reflection: no file defines that");
        return;
    }
    Grpc__Reflection__V1__FileDescriptorResponse file =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    file.n_file_descriptor_proto = 1;
    file.file_descriptor_proto = &r->set->file[index];
    res->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    res->file_descriptor_response = &file; /* cppcheck-suppress autoVariables ; taken back below */
    td_message_send(call, &res->base);
    res->file_descriptor_response = NULL;
}

static void answer_list(const td_reflection *r, td_rpc_call *call, ref_response *res)
{
    enum { MAX = 16 };
    td_assert(r->n_services <= MAX);
    Grpc__Reflection__V1__ServiceResponse rows[MAX];
    Grpc__Reflection__V1__ServiceResponse *pointers[MAX];
    Grpc__Reflection__V1__ListServiceResponse list =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    for (uint32_t i = 0; i < r->n_services; i++) {
        rows[i] =
            (Grpc__Reflection__V1__ServiceResponse)GRPC__REFLECTION__V1__SERVICE_RESPONSE__INIT;
        rows[i].name = (char *)r->services[i];
        pointers[i] = &rows[i];
    }
    list.n_service = r->n_services;
    list.service = pointers;
    res->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    res->list_services_response = &list; /* cppcheck-suppress autoVariables ; taken back below */
    td_message_send(call, &res->base);
    res->list_services_response = NULL;
}

static bool is_message(const td_reflection *r, const char *symbol)
{
    for (size_t i = 0; i < r->set->n_file; i++) {
        const Tandem__Internal__File *file = r->files[i];
        const char *rest = after_name(symbol, file->package);
        if (rest != NULL && names_message(file->message_type, file->n_message_type, rest))
            return true;
    }
    return false;
}

static void answer_extensions(const td_reflection *r, td_rpc_call *call, ref_response *res,
                              char *type)
{
    if (!is_message(r, type)) {
        answer_error(call, res, TD_GRPC_NOT_FOUND, "reflection: no such message type");
        return;
    }
    Grpc__Reflection__V1__ExtensionNumberResponse none =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    none.base_type_name = type;
    res->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    res->all_extension_numbers_response =
        &none; /* cppcheck-suppress autoVariables ; taken back below */
    td_message_send(call, &res->base);
    res->all_extension_numbers_response = NULL;
}

static void on_message(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    td_reflection *r = user;
    ProtobufCMessage *message;
    td_err err;
    if (td_message_unpack(&grpc__reflection__v1__server_reflection_request__descriptor, msg, len,
                          &message, &err) != TD_OK) {
        td_rpc_call_fail(call, &err);
        return;
    }
    ref_request *req = (ref_request *)message;
    ref_response res = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    res.valid_host = req->host;
    res.original_request = req;
    switch (req->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        answer_file(r, call, &res, find_file(r, req->file_by_filename, NULL));
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        answer_file(r, call, &res, find_file(r, NULL, req->file_containing_symbol));
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        answer_list(r, call, &res);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        answer_extensions(r, call, &res, req->all_extension_numbers_of_type);
        break;
    default: answer_error(call, &res, TD_GRPC_NOT_FOUND, "reflection: no extensions here"); break;
    }
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_half_close(td_rpc_call *call, void *user)
{
    (void)user;
    td_rpc_call_finish(call, TD_GRPC_OK, NULL);
}

static void on_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    (void)call;
    (void)user;
    (void)why;
}

void td_reflection_methods(td_reflection *r, td_rpc_method *rows)
{
    static const char *const paths[TD_REFLECTION_N_METHODS] = {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    };
    for (int i = 0; i < TD_REFLECTION_N_METHODS; i++)
        rows[i] = (td_rpc_method){.path = paths[i],
                                  .kind = TD_RPC_BIDI,
                                  .on_message = on_message,
                                  .on_half_close = on_half_close,
                                  .on_cancelled = on_cancelled,
                                  .user = r};
}
