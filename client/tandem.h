/* tandem.h - libtandem, the C client of a tandem router: tandem.v1.Inference, tandem.v1.Admin and
 * the health check. Needs no other header of tandem, unless the answers of Admin are looked into.
 *
 * A call blocks until it is answered, its deadline passes, the router falls silent or
 * td_client_cancel() ends it. One thread at a time per client; no calls from within its callbacks.
 * Connections are made when a call needs one, and again when they broke. Opening a client makes the
 * process ignore SIGPIPE. */
#ifndef TD_CLIENT_TANDEM_H
#define TD_CLIENT_TANDEM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_client td_client;

typedef enum { /* gRPC's status codes, same numbers */
               TD_CLIENT_OK = 0,
               TD_CLIENT_CANCELLED = 1,
               TD_CLIENT_UNKNOWN = 2,
               TD_CLIENT_INVALID_ARGUMENT = 3,
               TD_CLIENT_DEADLINE_EXCEEDED = 4,
               TD_CLIENT_NOT_FOUND = 5,
               TD_CLIENT_ALREADY_EXISTS = 6,
               TD_CLIENT_PERMISSION_DENIED = 7,
               TD_CLIENT_RESOURCE_EXHAUSTED = 8,
               TD_CLIENT_FAILED_PRECONDITION = 9,
               TD_CLIENT_ABORTED = 10,
               TD_CLIENT_OUT_OF_RANGE = 11,
               TD_CLIENT_UNIMPLEMENTED = 12,
               TD_CLIENT_INTERNAL = 13,
               TD_CLIENT_UNAVAILABLE = 14,
               TD_CLIENT_DATA_LOSS = 15,
               TD_CLIENT_UNAUTHENTICATED = 16,
} td_client_code;

typedef struct {
    td_client_code code;
    bool unreachable; /* the router itself could not be reached, or its connection broke */
    char text[1100];  /* UTF-8; never prompt or generated text */
} td_client_error;

typedef struct {              /* 0 and NULL take the default in brackets */
    const char *router;       /* "host:port" [127.0.0.1:7400] */
    int64_t timeout_ms;       /* of every call [0: none but the router's own] */
    int64_t connect_ms;       /* [5 s] to reach the router */
    size_t max_message_bytes; /* [64 MiB] of one message, either way */
    /* A router that is silent while a call runs is pinged after keepalive_ms [10 s]; if nothing
     * comes for keepalive_reply_ms [5 s] more, it is unreachable. */
    int64_t keepalive_ms, keepalive_reply_ms;
} td_client_conf;

/* err (NULL is fine, everywhere) says what was wrong; only INVALID_ARGUMENT (address) and
 * RESOURCE_EXHAUSTED (memory, descriptors). Nothing has been sent when it returns. */
td_client_code td_client_open(const td_client_conf *conf, td_client **out, td_client_error *err);
void td_client_close(td_client *client);                           /* no call runs; NULL is fine */
void td_client_set_timeout(td_client *client, int64_t timeout_ms); /* of the calls that follow */
/* Ends the running call with CANCELLED, or the next one if none runs. From any thread and from a
 * signal handler. */
void td_client_cancel(td_client *client);
const char *td_client_code_name(td_client_code code); /* "RESOURCE_EXHAUSTED" */

/* ---- Inference ---- */

typedef struct { /* bytes that may hold NUL */
    const char *bytes;
    size_t n_bytes;
} td_client_bytes;

typedef struct {          /* one message of the stream; valid during the callback only */
    td_client_bytes text; /* whole UTF-8 characters */
    const uint32_t *ids;  /* [n_ids] */
    size_t n_ids;
} td_client_piece;

typedef struct {          /* zeroed: a prompt is all it needs */
    const char *model;    /* NULL: the one that is served */
    td_client_bytes text; /* the prompt as UTF-8 text, or ... */
    const uint32_t *ids;  /* [n_ids] ... as token ids, when not NULL */
    size_t n_ids;
    bool has_temperature, has_top_p, has_top_k, has_seed, has_max_tokens; /* else as proto says */
    float temperature, top_p;
    uint32_t top_k, max_tokens, min_tokens;
    uint64_t seed;
    const td_client_bytes *stops; /* [n_stops] */
    size_t n_stops;
    const uint32_t *stop_ids; /* [n_stop_ids] */
    size_t n_stop_ids;
    bool ignore_eos;
    const char *request_id; /* NULL: the router makes one */
    /* As text and ids arrive. false: enough, the request is cancelled. May be NULL. */
    bool (*on_piece)(void *user, const td_client_piece *piece);
    void *user;
} td_client_request;

typedef struct {
    char request_id[129];   /* "": the router had not answered yet */
    char finish_reason[32]; /* "stop", "length" */
    uint32_t prompt_tokens, generated_tokens, drafted_tokens, accepted_tokens;
    double queue_s, prefill_s, transfer_s, first_token_s, total_s; /* the router's account */
    double ttft_s, wall_s; /* measured here: to the first piece (0: none came), to the end */
    uint64_t n_pieces, n_ids;
} td_client_result;

/* out is filled in any case, as far as the request came. */
td_client_code td_client_generate(td_client *client, const td_client_request *request,
                                  td_client_result *out, td_client_error *err);

typedef struct {
    const char *model; /* NULL: the one that is served */
    td_client_bytes text;
    bool no_special; /* without the beginning-of-sequence token */
} td_client_text;

/* *ids is malloc'ed and the caller's. */
td_client_code td_client_tokenize(td_client *client, const td_client_text *text, uint32_t **ids,
                                  size_t *n_ids, td_client_error *err);

typedef struct {
    const char *model;   /* NULL: the one that is served */
    const uint32_t *ids; /* [n_ids] */
    size_t n_ids;
    bool keep_special; /* special tokens leave their text */
} td_client_ids;

/* *text is malloc'ed, NUL-terminated and the caller's. */
td_client_code td_client_detokenize(td_client *client, const td_client_ids *ids, char **text,
                                    size_t *n_bytes, td_client_error *err);

typedef struct {
    char name[256];
    uint32_t vocab_size, context_length, default_max_tokens;
    uint32_t bos_id, eos_ids[16], n_eos;
    bool has_tokenizer;
} td_client_model;

td_client_code td_client_get_model(td_client *client, const char *model, td_client_model *out,
                                   td_client_error *err);

/* ---- Admin: the answers are protobuf-c's structs, see <tandem/v1/admin.pb-c.h> ---- */

struct Tandem__V1__GetStatusResponse;
struct Tandem__V1__ListLinksResponse;
struct Tandem__V1__ListTransfersResponse;

/* *out is the caller's until td_client_free_answer(). */
td_client_code td_client_status(td_client *client, struct Tandem__V1__GetStatusResponse **out,
                                td_client_error *err);
td_client_code td_client_list_links(td_client *client, struct Tandem__V1__ListLinksResponse **out,
                                    td_client_error *err);
td_client_code td_client_list_transfers(td_client *client, bool live_only,
                                        struct Tandem__V1__ListTransfersResponse **out,
                                        td_client_error *err);
void td_client_free_answer(void *answer); /* NULL is fine */

/* ---- grpc.health.v1 ---- */

typedef enum { /* the protocol's numbers */
               TD_CLIENT_HEALTH_UNKNOWN = 0,
               TD_CLIENT_SERVING = 1, /* there is a ready pair of prefill and decode */
               TD_CLIENT_NOT_SERVING = 2,
} td_client_serving;

/* service: NULL or "" for the whole; NOT_FOUND: it has no such service. */
td_client_code td_client_health(td_client *client, const char *service, td_client_serving *out,
                                td_client_error *err);

#ifdef __cplusplus
}
#endif
#endif
