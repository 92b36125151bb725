#include "tests/client/fake_router.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/loop/mailbox.h"
#include "common/serve/message.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/tandem/v1/inference.pb-c.h"
#include "proto/wire.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GENERATE_TEXT = 2, TOKENIZE_TEXT = 2, RESPONSE_TEXT = 1 };

typedef struct { /* a Generate that goes on for a while */
    fake_router *f;
    td_rpc_call *call;
    td_timer timer;
} slow_call;

static void send_piece(td_rpc_call *call, const char *text, size_t n_text, uint32_t id)
{
    Tandem__V1__GenerateResponse res = TANDEM__V1__GENERATE_RESPONSE__INIT;
    unsigned char bytes[512];
    res.token_ids = &id;
    res.n_token_ids = 1;
    size_t n = tandem__v1__generate_response__pack(&res, bytes);
    n += td_wire_put_bytes(bytes + n, RESPONSE_TEXT, text, n_text);
    td_rpc_call_send(call, bytes, n);
}

static void send_last(td_rpc_call *call, uint32_t n_prompt, uint32_t n_generated)
{
    Tandem__V1__GenerateResponse res = TANDEM__V1__GENERATE_RESPONSE__INIT;
    Tandem__V1__Usage usage = TANDEM__V1__USAGE__INIT;
    Tandem__V1__Timing timing = TANDEM__V1__TIMING__INIT;
    usage.prompt_tokens = n_prompt;
    usage.generated_tokens = n_generated;
    usage.drafted_tokens = 10;
    usage.accepted_tokens = 8;
    timing.queue_s = 0.001;
    timing.prefill_s = 0.25;
    timing.transfer_s = 0.0625;
    timing.first_token_s = 0.5;
    timing.total_s = 2;
    res.finish_reason = (char *)"stop";
    res.usage = &usage;
    res.timing = &timing;
    td_message_reply(call, &res.base);
}

/* ---- Generate ---- */

static void on_slow(td_timer *timer, void *user)
{
    slow_call *s = user;
    (void)timer;
    send_piece(s->call, "tick ", 5, 7);
}

static void on_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    fake_router *f = user;
    slow_call *s = td_rpc_call_data(call);
    (void)why;
    f->n_cancelled++;
    f->n_open--;
    if (s == NULL)
        return;
    td_timer_stop(&s->timer);
    free(s);
}

static void on_vanish(td_timer *timer, void *user)
{
    slow_call *s = user;
    (void)timer;
    td_rpc_server_close(s->f->server, NULL, NULL); /* on_cancelled frees s */
    s->f->server = NULL;
}

static void go_on(fake_router *f, td_rpc_call *call, td_timer_fn fn, int64_t ms)
{
    slow_call *s = calloc(1, sizeof(*s));
    s->f = f;
    s->call = call;
    td_rpc_call_set_data(call, s);
    td_timer_init(&s->timer, f->loop, fn, s);
    td_timer_every(&s->timer, td_now_ns() + ms * TD_NS_PER_MS, ms * TD_NS_PER_MS);
}

static void end(fake_router *f, td_rpc_call *call, td_grpc_status status, const char *text)
{
    f->n_open--;
    td_rpc_call_finish(call, status, text);
}

static void echo(fake_router *f, td_rpc_call *call, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        send_piece(call, text + i, 1, (unsigned char)text[i]);
    f->n_open--;
    send_last(call, 3, (uint32_t)n);
}

static void answer(fake_router *f, td_rpc_call *call, const char *text, size_t n)
{
    char word[16] = "", rest[256] = "";
    int code = 0;
    if (n < 256)
        sscanf(text, "%15s %d %255[^\n]", word, &code, rest);
    if (strcmp(word, "fail") == 0) {
        end(f, call, (td_grpc_status)code, rest);
    } else if (strcmp(word, "late") == 0) {
        send_piece(call, "part", 4, 1);
        end(f, call, (td_grpc_status)code, "late");
    } else if (strcmp(word, "stop") == 0) {
        f->stopped = true;
        while (f->stopped)
            td_sleep_ms(2);
    } else if (strcmp(word, "slow") == 0) {
        send_piece(call, "tick ", 5, 7);
        go_on(f, call, on_slow, 10);
    } else if (strcmp(word, "vanish") == 0) {
        send_piece(call, "part", 4, 1);
        go_on(f, call, on_vanish, 20);
    } else if (strcmp(word, "nolast") == 0) {
        send_piece(call, "part", 4, 1);
        end(f, call, TD_GRPC_OK, NULL);
    } else if (strcmp(word, "junk") == 0) {
        td_rpc_call_send(call, "\xff\xff\xff", 3);
        end(f, call, TD_GRPC_OK, NULL);
    } else if (strcmp(word, "many") == 0) {
        for (int i = 0; i < code; i++)
            send_piece(call, "0123456789", 10, 5);
        f->n_open--;
        send_last(call, 3, (uint32_t)code);
    } else if (strcmp(word, "hang") != 0) {
        echo(f, call, text, n);
    }
}

static void on_generate(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_router *f = user;
    const char *id = td_rpc_call_header(call, "x-request-id"), *bytes;
    size_t pos = 0, n;
    char text[4096] = "ids";
    f->n_calls++;
    f->n_open++;
    pthread_mutex_lock(&f->lock);
    snprintf(f->last.request_id, sizeof(f->last.request_id), "%s", id != NULL ? id : "made-up");
    f->last.n_request = len < sizeof(f->last.request) ? len : 0;
    memcpy(f->last.request, msg, f->last.n_request);
    pthread_mutex_unlock(&f->lock);
    td_rpc_call_set_header(call, "x-request-id", id != NULL ? id : "made-up");
    size_t n_text = 3;
    if (td_wire_next_bytes(msg, len, GENERATE_TEXT, &pos, &bytes, &n) && n < sizeof(text)) {
        memcpy(text, bytes, n);
        text[n] = '\0';
        n_text = n;
    }
    answer(f, call, text, n_text);
}

/* ---- the rest of Inference ---- */

static void on_tokenize(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    Tandem__V1__TokenizeResponse res = TANDEM__V1__TOKENIZE_RESPONSE__INIT;
    uint32_t ids[4096];
    size_t pos = 0, n = 0;
    const char *bytes = "";
    (void)user;
    td_wire_next_bytes(msg, len, TOKENIZE_TEXT, &pos, &bytes, &n);
    for (size_t i = 0; i < n && i < 4096; i++)
        ids[i] = (unsigned char)bytes[i];
    res.token_ids = ids;
    res.n_token_ids = n;
    td_message_reply(call, &res.base);
}

static void on_detokenize(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    Tandem__V1__DetokenizeRequest *req = tandem__v1__detokenize_request__unpack(NULL, len, msg);
    unsigned char out[5000];
    char text[4096];
    size_t n = req != NULL ? req->n_token_ids : 0;
    (void)user;
    for (size_t i = 0; i < n && i < sizeof(text); i++)
        text[i] = (char)req->token_ids[i];
    td_rpc_call_reply(call, out, td_wire_put_bytes(out, RESPONSE_TEXT, text, n));
    tandem__v1__detokenize_request__free_unpacked(req, NULL);
}

static void on_get_model(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    Tandem__V1__GetModelResponse res = TANDEM__V1__GET_MODEL_RESPONSE__INIT;
    uint32_t eos[] = {1, 2};
    (void)user;
    if (len > 0) { /* a model was named */
        td_rpc_call_finish(call, TD_GRPC_NOT_FOUND, "no such model");
        return;
    }
    (void)msg;
    res.model = (char *)"made-up";
    res.vocab_size = 256;
    res.context_length = 4096;
    res.eos_token_ids = eos;
    res.n_eos_token_ids = 2;
    res.has_tokenizer = 1;
    res.default_max_tokens = 64;
    td_message_reply(call, &res.base);
}

/* ---- Admin and health ---- */

static void on_get_status(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_router *f = user;
    Tandem__V1__GetStatusResponse res = TANDEM__V1__GET_STATUS_RESPONSE__INIT;
    Tandem__V1__RouterStatus router = TANDEM__V1__ROUTER_STATUS__INIT;
    Tandem__V1__WorkerEntry prefill = TANDEM__V1__WORKER_ENTRY__INIT,
                            decode = TANDEM__V1__WORKER_ENTRY__INIT,
                            *workers[] = {&prefill, &decode};
    Tandem__V1__WorkerStatus status = TANDEM__V1__WORKER_STATUS__INIT;
    Tandem__V1__PageCount counts[2] = {TANDEM__V1__PAGE_COUNT__INIT, TANDEM__V1__PAGE_COUNT__INIT},
                          *pages[] = {&counts[0], &counts[1]};
    (void)msg;
    (void)len;
    router.version = (char *)"1.2.3";
    router.state = (char *)"ready";
    router.incarnation = (char *)"00000000000000aa";
    router.uptime_s = 3700;
    counts[0] = (Tandem__V1__PageCount){counts[0].base, (char *)"free", 1000};
    counts[1] = (Tandem__V1__PageCount){counts[1].base, (char *)"held", 24};
    status.state = (char *)"ready";
    status.version = (char *)"1.2.3";
    status.tokens_active = 1ULL << 60;
    status.pages = pages;
    status.n_pages = 2;
    prefill.role = (char *)"prefill";
    prefill.address = (char *)"10.0.0.1:7410";
    prefill.reachable = 1;
    prefill.status = &status;
    decode.role = (char *)"decode";
    decode.address = (char *)"10.0.0.2:7420";
    decode.reachable = !f->no_pair;
    decode.status = f->no_pair ? NULL : &status;
    decode.heartbeat_age_s = f->no_pair ? -1 : 0.125;
    decode.why = (char *)(f->no_pair ? "connection\x1b refused" : "");
    res.router = &router;
    res.workers = workers;
    res.n_workers = 2;
    td_message_reply(call, &res.base);
}

static char *const missed[] = {(char *)"10.0.0.9:7420: connection refused"};

static void on_list_links(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_router *f = user;
    Tandem__V1__ListLinksResponse res = TANDEM__V1__LIST_LINKS_RESPONSE__INIT;
    Tandem__V1__LinkEntry entry = TANDEM__V1__LINK_ENTRY__INIT, *entries[] = {&entry};
    Tandem__V1__Link link = TANDEM__V1__LINK__INIT;
    (void)msg;
    (void)len;
    link.peer = (char *)"10.0.0.1:7410";
    link.role = (char *)"reader";
    link.transport = (char *)"shm";
    link.state = (char *)"up";
    link.bytes = 3ULL << 30;
    link.gets = (1ULL << 53) + 1;
    link.rate_bytes_per_s = 1536;
    entry.worker = (char *)"10.0.0.2:7420";
    entry.link = &link;
    res.links = entries;
    res.n_links = 1;
    res.unreachable = (char **)missed;
    res.n_unreachable = f->unreached ? 1 : 0;
    res.omitted = f->cut ? 7 : 0;
    td_message_reply(call, &res.base);
}

static void on_list_transfers(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_router *f = user;
    Tandem__V1__ListTransfersRequest *req =
        tandem__v1__list_transfers_request__unpack(NULL, len, msg);
    Tandem__V1__ListTransfersResponse res = TANDEM__V1__LIST_TRANSFERS_RESPONSE__INIT;
    Tandem__V1__TransferEntry entry = TANDEM__V1__TRANSFER_ENTRY__INIT, *entries[] = {&entry};
    Tandem__V1__Transfer transfer = TANDEM__V1__TRANSFER__INIT;
    bool live_only = req != NULL && req->live_only;
    pthread_mutex_lock(&f->lock);
    f->last.live_only = live_only;
    pthread_mutex_unlock(&f->lock);
    tandem__v1__list_transfers_request__free_unpacked(req, NULL);
    transfer.request_id = (char *)"job-9";
    transfer.stage = (char *)"drawing";
    transfer.pages = 3;
    transfer.pages_total = 8;
    transfer.bytes = 1 << 20;
    transfer.bytes_total = 3 << 20;
    transfer.age_s = 0.5;
    entry.worker = (char *)"10.0.0.2:7420";
    entry.transfer = &transfer;
    res.transfers = entries;
    res.n_transfers = live_only ? 0 : 1;
    res.omitted = f->cut ? 7 : 0;
    td_message_reply(call, &res.base);
}

static void on_check(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_router *f = user;
    Grpc__Health__V1__HealthCheckResponse res = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    (void)msg;
    if (len > 0) { /* a service was named */
        td_rpc_call_finish(call, TD_GRPC_NOT_FOUND, "no such service");
        return;
    }
    res.status = f->not_serving
                     ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
                     : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    td_message_reply(call, &res.base);
}

/* ---- the thread ---- */

static void on_stop(void *user, const void *msg, size_t len)
{
    fake_router *f = user;
    (void)msg;
    (void)len;
    td_mailbox_close(f->box);
    td_rpc_server_close(f->server, NULL, NULL);
}

static void *run(void *arg)
{
    fake_router *f = arg;
    td_loop_run(f->loop);
    return NULL;
}

#define MUST(call)                                                                                 \
    do {                                                                                           \
        td_err err_;                                                                               \
        td_err *err = &err_;                                                                       \
        if ((call) != TD_OK) {                                                                     \
            fprintf(stderr, "fake router: %s\n", err->text);                                       \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define UNARY(p, handler)                                                                          \
    (td_rpc_method)                                                                                \
    {                                                                                              \
        .path = p, .kind = TD_RPC_UNARY, .on_message = handler, .user = f                          \
    }

void fake_router_start(fake_router *f)
{
    td_rpc_server_conf conf = {.methods = f->methods,
                               .n_methods = 8,
                               .name = "fake",
                               .idle_ms = f->idle_ms,
                               .max_backlog_bytes = (size_t)16 << 20};
    f->methods[0] = (td_rpc_method){.path = "/tandem.v1.Inference/Generate",
                                    .kind = TD_RPC_SERVER_STREAMING,
                                    .on_message = on_generate,
                                    .on_cancelled = on_cancelled,
                                    .user = f};
    f->methods[1] = UNARY("/tandem.v1.Inference/Tokenize", on_tokenize);
    f->methods[2] = UNARY("/tandem.v1.Inference/Detokenize", on_detokenize);
    f->methods[3] = UNARY("/tandem.v1.Inference/GetModel", on_get_model);
    f->methods[4] = UNARY("/tandem.v1.Admin/GetStatus", on_get_status);
    f->methods[5] = UNARY("/tandem.v1.Admin/ListLinks", on_list_links);
    f->methods[6] = UNARY("/tandem.v1.Admin/ListTransfers", on_list_transfers);
    f->methods[7] = UNARY("/grpc.health.v1.Health/Check", on_check);
    td_log_init("test", TD_LOG_ERROR, 0);
    MUST(td_addr_parse("127.0.0.1:0", &conf.listen, err));
    conf.listen.port = f->port;
    MUST(td_loop_create(&f->loop, err));
    MUST(td_mailbox_open(f->loop, 4096, on_stop, f, &f->box, err));
    MUST(td_rpc_server_open(f->loop, &conf, &f->server, err));
    f->port = td_rpc_server_port(f->server);
    snprintf(f->address, sizeof(f->address), "127.0.0.1:%u", f->port);
    pthread_mutex_init(&f->lock, NULL);
    if (pthread_create(&f->thread, NULL, run, f) != 0)
        abort();
}

const fake_last *fake_router_last(fake_router *f)
{
    static fake_last copy;
    pthread_mutex_lock(&f->lock);
    copy = f->last;
    pthread_mutex_unlock(&f->lock);
    return &copy;
}

void fake_router_stop(fake_router *f)
{
    if (td_mailbox_push(f->box, "q", 1) != TD_OK)
        abort();
    pthread_join(f->thread, NULL);
    td_loop_destroy(f->loop);
    pthread_mutex_destroy(&f->lock);
}
