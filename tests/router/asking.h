/* asking.h - what a client sees of one call to the front of a world. Include in one file of a test
 * program. */
#ifndef TD_TESTS_ROUTER_ASKING_H
#define TD_TESTS_ROUTER_ASKING_H
#include "common/serve/message.h"
#include "proto/wire.h"
#include "tests/router/world.h"

typedef struct {
    td_rpc_request *req; /* NULL: over */
    td_grpc_status status;
    char message[1200];
    char request_id[128];
    char text[65536]; /* of every message's field 1 */
    size_t n_text;
    uint32_t ids[1024];
    uint32_t n_ids, n_messages;
    char finish_reason[32];
    Tandem__V1__Usage usage;
    Tandem__V1__Timing timing;
    unsigned char *last; /* [n_last] the last message; free() */
    size_t n_last;
    int64_t started_ns, ended_ns;
} asking;

static inline void asking_headers(td_rpc_request *req, void *user)
{
    asking *a = user;
    const char *id = td_rpc_request_header(req, "x-request-id");
    snprintf(a->request_id, sizeof(a->request_id), "%s", id != NULL ? id : "");
}

static inline void asking_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    asking *a = user;
    (void)req;
    a->n_messages++;
    a->last = realloc(a->last, len + 1);
    memcpy(a->last, msg, len);
    a->n_last = len;
}

/* Of Generate: adds up what came. */
static inline void asking_piece(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    asking *a = user;
    size_t pos = 0, n;
    const char *bytes;
    asking_message(req, user, msg, len);
    while (td_wire_next_bytes(msg, len, 1, &pos, &bytes, &n)) {
        memcpy(a->text + a->n_text, bytes, n);
        a->n_text += n;
        a->text[a->n_text] = '\0';
    }
    Tandem__V1__GenerateResponse *res = tandem__v1__generate_response__unpack(NULL, len, msg);
    TD_TRUE(res != NULL);
    TD_STR("", a->finish_reason); /* nothing follows the last message */
    if (res->n_token_ids > 0)
        memcpy(a->ids + a->n_ids, res->token_ids, res->n_token_ids * sizeof(uint32_t));
    a->n_ids += (uint32_t)res->n_token_ids;
    snprintf(a->finish_reason, sizeof(a->finish_reason), "%s", res->finish_reason);
    if (res->usage != NULL)
        a->usage = *res->usage;
    if (res->timing != NULL)
        a->timing = *res->timing;
    tandem__v1__generate_response__free_unpacked(res, NULL);
}

static inline void asking_finish(td_rpc_request *req, void *user, td_grpc_status status,
                                 const char *message)
{
    asking *a = user;
    (void)req;
    a->req = NULL;
    a->status = status;
    a->ended_ns = td_now_ns();
    snprintf(a->message, sizeof(a->message), "%s", message);
}

typedef struct {
    const char *path;
    const char *request_id;
    int64_t timeout_ms; /* 0: none */
} asking_how;

static inline void ask_bytes(world *w, asking *a, const asking_how *how, const void *msg, size_t n)
{
    td_err err = {0};
    memset(a, 0, sizeof(*a));
    td_rpc_header header = {"x-request-id", how->request_id};
    a->started_ns = td_now_ns();
    td_rpc_request_args args = {
        .path = how->path,
        .deadline_ns = how->timeout_ms > 0 ? a->started_ns + how->timeout_ms * TD_NS_PER_MS : 0,
        .headers = &header,
        .n_headers = how->request_id != NULL,
        .on_headers = asking_headers,
        .on_message = strstr(how->path, "/Generate") != NULL ? asking_piece : asking_message,
        .on_finish = asking_finish,
        .user = a,
    };
    TD_EQ(TD_OK, td_rpc_request_start(w->client, &args, msg, n, &a->req, &err));
}

/* Packs message; extra[n_extra] are fields put behind it as they are. */
static inline void ask(world *w, asking *a, const asking_how *how, const ProtobufCMessage *message)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    unsigned char *bytes = malloc(n + 1);
    protobuf_c_message_pack(message, bytes);
    ask_bytes(w, a, how, bytes, n);
    free(bytes);
}

static inline void answered(world *w, asking *a)
{
    RUN_UNTIL(w, a->req == NULL);
}
#endif
