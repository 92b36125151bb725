/* Messages are unpacked within a bound: what is small on the wire cannot be made large in memory.
 */
#include "common/serve/message.h"
#include "proto/tandem/v1/admin.pb-c.h"
#include "proto/tandem/v1/inference.pb-c.h"
#include "tests/td_test.h"

TD_TEST_MAIN

static const ProtobufCMessageDescriptor *const type = &tandem__v1__generate_request__descriptor;

TEST(a_message_comes_back_as_it_was)
{
    uint8_t bytes[100];
    ProtobufCMessage *message;
    Tandem__V1__GenerateRequest req = TANDEM__V1__GENERATE_REQUEST__INIT;
    req.model = (char *)"tiny";
    req.min_tokens = 3;
    size_t n = tandem__v1__generate_request__pack(&req, bytes);
    TD_EQ(TD_OK, td_message_unpack(type, bytes, n, &message, NULL));
    TD_STR("tiny", ((Tandem__V1__GenerateRequest *)message)->model);
    TD_EQ(3, ((Tandem__V1__GenerateRequest *)message)->min_tokens);
    protobuf_c_message_free_unpacked(message, NULL);
}

TEST(what_is_no_message_is_refused_and_named)
{
    ProtobufCMessage *message;
    td_err err;
    TD_EQ(TD_INVALID, td_message_unpack(type, "\xff\xff\xff", 3, &message, &err));
    TD_TRUE(strstr(err.text, "malformed tandem.v1.GenerateRequest of 3 bytes") != NULL);
    TD_EQ(TD_INVALID, td_message_unpack(type,
                                        "\x0a\x05"
                                        "abc",
                                        5, &message, &err)); /* cut */
}

/* A million token ids, packed, are well within the bound. */
TEST(long_packed_lists_are_fine)
{
    enum { N = 1 << 20 };
    Tandem__V1__TokenIds ids = TANDEM__V1__TOKEN_IDS__INIT;
    ids.n_ids = N;
    ids.ids = calloc(N, sizeof(*ids.ids));
    size_t n = tandem__v1__token_ids__get_packed_size(&ids);
    uint8_t *bytes = malloc(n);
    ProtobufCMessage *message;
    tandem__v1__token_ids__pack(&ids, bytes);
    TD_EQ(TD_OK, td_message_unpack(&tandem__v1__token_ids__descriptor, bytes, n, &message, NULL));
    TD_EQ(N, ((Tandem__V1__TokenIds *)message)->n_ids);
    protobuf_c_message_free_unpacked(message, NULL);
    free(bytes);
    free(ids.ids);
}

/* An empty submessage is two bytes on the wire and more than a hundred in memory. */
TEST(a_million_empty_fields_are_refused)
{
    enum { N = 1 << 20 };
    uint8_t *bytes = malloc(2 * N);
    ProtobufCMessage *message;
    td_err err;
    for (size_t i = 0; i < N; i++)
        memcpy(bytes + 2 * i, "\x12\x00", 2); /* GetStatusResponse.workers */
    TD_EQ(TD_INVALID, td_message_unpack(&tandem__v1__get_status_response__descriptor, bytes, 2 * N,
                                        &message, &err));
    TD_TRUE(strstr(err.text, "too many small fields") != NULL);
    free(bytes);
}
