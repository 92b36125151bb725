/* tandem.v1.Inference from a client's side, with made-up workers behind it. */
#include "tests/common/rpc/raw.h"
#include "tests/router/asking.h"

#include <math.h>

TD_TEST_MAIN

typedef Tandem__V1__GenerateRequest generate_request;

static const asking_how generate = {.path = "/tandem.v1.Inference/Generate"};

static const world_conf with_front = {.front = true};

/* A request with token ids, 20 at most, greedy; the caller changes what it likes. */
static Tandem__V1__TokenIds prompt_ids = {
    .base = PROTOBUF_C_MESSAGE_INIT(&tandem__v1__token_ids__descriptor),
    .n_ids = 3,
    .ids = (uint32_t[]){7, 8, 9}};

static generate_request plain(void)
{
    generate_request req = TANDEM__V1__GENERATE_REQUEST__INIT;
    req.input_case = TANDEM__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    req.token_ids = &prompt_ids;
    req.max_tokens_opt_case = TANDEM__V1__GENERATE_REQUEST__MAX_TOKENS_OPT_MAX_TOKENS;
    req.max_tokens = 20;
    return req;
}

static fake_call *started(world *w, uint32_t i)
{
    RUN_UNTIL(w, world_n_calls(w) > i);
    return world_call(w, i);
}

/* Token ids of a text, without a beginning-of-sequence token; free() them. */
static uint32_t *ids_of(world *w, const char *text, uint32_t *n)
{
    int32_t *ids;
    size_t n_ids;
    TD_EQ(TD_OK,
          td_tokenizer_encode(w->model.tokenizer, text, strlen(text), 0, &ids, &n_ids, NULL));
    *n = (uint32_t)n_ids;
    return (uint32_t *)ids;
}

TEST(generate_streams_text_ids_usage_and_timing)
{
    world w;
    asking a;
    uint32_t n;
    world_open(&w, &with_front);
    uint32_t *ids = ids_of(&w, "and the light was good", &n);
    generate_request req = plain();
    asking_how how = generate;
    how.request_id = "job-1";
    ask(&w, &a, &how, &req.base);
    fake_call *c = started(&w, 0);
    TD_STR("job-1", c->request_id);
    TD_EQ(3, c->request->n_token_ids);
    fake_send(c, ids, 2);
    RUN_UNTIL(&w, a.n_ids == 2);
    TD_STR("job-1", a.request_id);
    fake_send(c, ids + 2, n - 2);
    fake_finish(c, "length");
    answered(&w, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("and the light was good", a.text);
    TD_EQ(n, a.n_ids);
    TD_MEM(ids, a.ids, n * sizeof(*ids));
    TD_STR("length", a.finish_reason);
    TD_EQ(3, a.usage.prompt_tokens);
    TD_EQ(n, a.usage.generated_tokens);
    TD_EQ(7, a.usage.drafted_tokens);
    TD_EQ(5, a.usage.accepted_tokens);
    TD_TRUE(a.timing.queue_s > 0 && a.timing.total_s >= a.timing.queue_s);
    free(ids);
    free(a.last);
    world_close(&w);
}

TEST(stages_add_up_to_the_first_token)
{
    world w;
    asking a;
    uint32_t id = 9;
    world_open(&w, &with_front);
    generate_request req = plain();
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    world_run_ms(&w, 50);
    fake_send(c, &id, 1);
    RUN_UNTIL(&w, a.n_ids == 1);
    double ttft = (double)(td_now_ns() - a.started_ns) / 1e9;
    fake_finish(c, "stop");
    answered(&w, &a);
    const Tandem__V1__Timing *t = &a.timing;
    double sum = t->queue_s + t->prefill_s + t->transfer_s + t->first_token_s;
    TD_TRUE(sum > 0.045 && sum <= ttft && sum > ttft - 0.04);
    TD_TRUE(t->total_s >= sum);
    free(a.last);
    world_close(&w);
}

TEST(a_text_prompt_is_tokenised_with_its_beginning_of_sequence)
{
    world w;
    asking a;
    world_open(&w, &with_front);
    generate_request req = plain();
    req.input_case = TANDEM__V1__GENERATE_REQUEST__INPUT_TEXT;
    req.text = (char *)"in the beginning";
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    TD_EQ(w.model.bos_id, c->request->token_ids[0]);
    char *text;
    size_t n;
    TD_EQ(TD_OK,
          td_tokenizer_decode(w.model.tokenizer, (int32_t *)c->request->token_ids,
                              c->request->n_token_ids, TD_DECODE_SKIP_SPECIAL, &text, &n, NULL));
    TD_STR("in the beginning", text);
    free(text);
    fake_finish(c, "stop");
    answered(&w, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    free(a.last);
    world_close(&w);
}

TEST(text_may_hold_nul_both_ways)
{
    world w;
    asking a;
    unsigned char msg[64];
    world_open(&w, &with_front);
    size_t len = td_wire_put_bytes(msg, 2, "a\0b", 3); /* GenerateRequest.text */
    ask_bytes(&w, &a, &generate, msg, len);
    fake_call *c = started(&w, 0);
    char *text;
    size_t n;
    TD_EQ(TD_OK,
          td_tokenizer_decode(w.model.tokenizer, (int32_t *)c->request->token_ids,
                              c->request->n_token_ids, TD_DECODE_SKIP_SPECIAL, &text, &n, NULL));
    TD_EQ(3, n);
    TD_MEM("a\0b", text, 3);
    free(text);
    fake_send(c, c->request->token_ids + 1, (uint32_t)c->request->n_token_ids - 1);
    fake_finish(c, "stop");
    answered(&w, &a);
    TD_EQ(3, a.n_text);
    TD_MEM("a\0b", a.text, 3);
    free(a.last);
    world_close(&w);
}

TEST(a_stop_string_ends_the_request_and_cancels_decode)
{
    world w;
    asking a;
    uint32_t n;
    char *stops[] = {(char *)"light"};
    world_open(&w, &with_front);
    uint32_t *ids = ids_of(&w, "and the light was good", &n);
    generate_request req = plain();
    req.stop = stops;
    req.n_stop = 1;
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    fake_send(c, ids, n);
    answered(&w, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("stop", a.finish_reason);
    TD_STR("and the ", a.text);
    RUN_UNTIL(&w, c->cancelled);
    TD_EQ(TD_GRPC_CANCELLED, c->why);
    free(ids);
    free(a.last);
    world_close(&w);
}

TEST(held_back_text_comes_with_the_last_message)
{
    world w;
    asking a;
    uint32_t n;
    char *stops[] = {(char *)"good grief"};
    world_open(&w, &with_front);
    uint32_t *ids = ids_of(&w, "was good", &n);
    generate_request req = plain();
    req.stop = stops;
    req.n_stop = 1;
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    fake_send(c, ids, n);
    RUN_UNTIL(&w, a.n_text > 0);
    TD_TRUE(strstr(a.text, "good") == NULL);
    fake_finish(c, "length");
    answered(&w, &a);
    TD_STR("was good", a.text);
    TD_EQ(n, a.n_ids);
    free(ids);
    free(a.last);
    world_close(&w);
}

TEST(a_lost_decode_is_invisible_before_the_first_shown_token)
{
    world w;
    asking a;
    uint32_t n;
    char *stops[] = {(char *)"good grief"};
    world_open(&w, &(world_conf){.front = true, .n_decode = 2});
    uint32_t *ids = ids_of(&w, "good", &n);
    generate_request req = plain();
    req.stop = stops;
    req.n_stop = 1;
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    fake_send(c, ids, n); /* all of it may begin the stop string: held back */
    world_run_ms(&w, 30);
    TD_EQ(0, a.n_messages);
    fake_worker *lost = c->worker;
    fake_kill(lost);
    started(&w, 1);
    fake_worker *other = lost == world_decode(&w, 0) ? world_decode(&w, 1) : world_decode(&w, 0);
    fake_send(&other->calls[0], ids, n);
    fake_finish(&other->calls[0], "stop");
    answered(&w, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_STR("good", a.text);
    TD_EQ(n, a.n_ids);
    TD_EQ(n, a.usage.generated_tokens);
    free(ids);
    free(a.last);
    world_close(&w);
}

TEST(a_lost_decode_after_that_is_unavailable)
{
    world w;
    asking a;
    uint32_t id = 300;
    world_open(&w, &(world_conf){.front = true, .n_decode = 2});
    generate_request req = plain();
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    fake_send(c, &id, 1);
    RUN_UNTIL(&w, a.n_ids == 1);
    int64_t since = td_now_ns();
    fake_kill(c->worker);
    answered(&w, &a);
    TD_EQ(TD_GRPC_UNAVAILABLE, a.status);
    TD_TRUE(a.ended_ns - since < 2 * TD_NS_PER_S);
    free(a.last);
    world_close(&w);
}

TEST(a_cancelled_call_frees_everything)
{
    world w;
    asking a, b;
    world_open(&w, &(world_conf){.front = true, .max_requests = 1});
    generate_request req = plain();
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    ask(&w, &b, &generate, &req.base); /* waits */
    RUN_UNTIL(&w, world_gauge(&w, "tandem_calls_active") == 2);
    td_rpc_request_cancel(b.req);
    td_rpc_request_cancel(a.req);
    RUN_UNTIL(&w, c->cancelled && world_gauge(&w, "tandem_calls_active") == 0);
    TD_EQ(1, world_n_calls(&w));
    world_close(&w);
}

TEST(a_deadline_while_running_ends_both_sides)
{
    world w;
    asking a;
    world_open(&w, &with_front);
    generate_request req = plain();
    asking_how how = generate;
    how.timeout_ms = 200;
    ask(&w, &a, &how, &req.base);
    fake_call *c = started(&w, 0);
    answered(&w, &a);
    TD_EQ(TD_GRPC_DEADLINE_EXCEEDED, a.status);
    RUN_UNTIL(&w, c->cancelled);
    free(a.last);
    world_close(&w);
}

TEST(a_deadline_in_the_queue_is_answered_before_it_passes)
{
    world w;
    asking a, b;
    world_open(&w, &(world_conf){.front = true, .max_requests = 1});
    generate_request req = plain();
    ask(&w, &a, &generate, &req.base);
    started(&w, 0);
    asking_how how = generate;
    how.timeout_ms = 2000;
    ask(&w, &b, &how, &req.base);
    answered(&w, &b);
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, b.status);
    TD_TRUE(strncmp(b.message, "no room: waited ", 16) == 0);
    TD_TRUE(b.ended_ns - b.started_ns >= 1850 * TD_NS_PER_MS);
    td_rpc_request_cancel(a.req);
    RUN_UNTIL(&w, world_gauge(&w, "tandem_calls_active") == 0);
    world_close(&w);
}

TEST(the_routers_own_limit_holds_for_requests_without_a_deadline)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true, .request_timeout_ms = 300});
    generate_request req = plain();
    ask(&w, &a, &generate, &req.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_DEADLINE_EXCEEDED, a.status);
    TD_TRUE(a.ended_ns - a.started_ns < 2 * TD_NS_PER_S);
    free(a.last);
    world_close(&w);
}

static void refused(world *w, const generate_request *req, td_grpc_status want, const char *says)
{
    asking a;
    ask(w, &a, &generate, &req->base);
    answered(w, &a);
    if (a.status != want || strstr(a.message, says) == NULL)
        fail_msg("want %d \"%s\", got %d \"%s\"", want, says, a.status, a.message);
    free(a.last);
}

TEST(bad_requests_are_refused_and_nothing_else_suffers)
{
    world w;
    asking good;
    world_open(&w, &with_front);
    generate_request req = plain();
    ask(&w, &good, &generate, &req.base);
    fake_call *c = started(&w, 0);
    req.model = (char *)"other";
    refused(&w, &req, TD_GRPC_NOT_FOUND, "\"other\" is not served here");
    req = plain();
    req.input_case = TANDEM__V1__GENERATE_REQUEST__INPUT__NOT_SET;
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "one of text and token_ids is required");
    req.input_case = TANDEM__V1__GENERATE_REQUEST__INPUT_TEXT;
    req.text = (char *)"";
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "the prompt is empty");
    req.text = (char *)"bad \xff utf-8";
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "not UTF-8 at byte 4");
    Tandem__V1__TokenIds ids = TANDEM__V1__TOKEN_IDS__INIT;
    req = plain();
    req.token_ids = &ids;
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "the prompt is empty");
    uint32_t wild[] = {1, UINT32_MAX};
    ids.ids = wild;
    ids.n_ids = 2;
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "token_ids[1] is 4294967295");
    req = plain();
    req.temperature_opt_case = TANDEM__V1__GENERATE_REQUEST__TEMPERATURE_OPT_TEMPERATURE;
    req.temperature = NAN;
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "temperature is ");
    req = plain();
    req.max_tokens = 1000000;
    refused(&w, &req, TD_GRPC_INVALID_ARGUMENT, "exceed the context of 8192");
    req = plain();
    req.max_tokens = 8000; /* 64 pages of 64 tokens */
    refused(&w, &req, TD_GRPC_OUT_OF_RANGE, "can never fit");
    asking a;
    asking_how how = generate;
    how.request_id = "not a good one";
    req = plain();
    ask(&w, &a, &how, &req.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
    TD_TRUE(strstr(a.message, "x-request-id") != NULL);
    TD_EQ(32, strlen(a.request_id)); /* one is made for the refusal */
    free(a.last);
    how.request_id = "a-good-one";
    req.model = (char *)"other";
    ask(&w, &a, &how, &req.base);
    answered(&w, &a);
    TD_STR("a-good-one", a.request_id); /* a refusal carries it, too */
    free(a.last);
    ask_bytes(&w, &a, &generate, "\x0a\xff", 2);
    answered(&w, &a);
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
    TD_TRUE(strstr(a.message, "malformed tandem.v1.GenerateRequest") != NULL);
    free(a.last);
    fake_finish(c, "stop"); /* the good one is as it was */
    answered(&w, &good);
    TD_EQ(TD_GRPC_OK, good.status);
    free(good.last);
    TD_EQ(1, world_n_calls(&w));
    world_close(&w);
}

TEST(a_draining_front_refuses_and_finishes)
{
    world w;
    asking a, b;
    world_open(&w, &with_front);
    generate_request req = plain();
    ask(&w, &a, &generate, &req.base);
    fake_call *c = started(&w, 0);
    td_front_drain(w.front);
    ask(&w, &b, &generate, &req.base);
    answered(&w, &b);
    TD_EQ(TD_GRPC_UNAVAILABLE, b.status);
    TD_EQ(1, td_front_active(w.front));
    fake_finish(c, "stop");
    answered(&w, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    free(a.last);
    world_close(&w);
}

TEST(more_calls_than_the_front_takes_are_refused)
{
    world w;
    asking a[3];
    world_open(&w, &(world_conf){.front = true, .router_max_requests = 2});
    generate_request req = plain();
    for (int i = 0; i < 3; i++)
        ask(&w, &a[i], &generate, &req.base);
    answered(&w, &a[2]);
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, a[2].status);
    for (int i = 0; i < 2; i++)
        td_rpc_request_cancel(a[i].req);
    RUN_UNTIL(&w, world_gauge(&w, "tandem_calls_active") == 0);
    world_close(&w);
}

/* A Generate whose client opens no window for the answer. */
static fake_call *ask_unread(world *w, raw_client *raw, const generate_request *req)
{
    enum { WINDOW_SIZE = 4 /* SETTINGS_INITIAL_WINDOW_SIZE */ };
    static const uint8_t no_window[] = {0, WINDOW_SIZE, 0, 0, 0, 0};
    uint8_t msg[64];
    raw_connect(raw, td_rpc_server_port(w->server));
    raw_hello(raw);
    TD_TRUE(raw_frame(raw, NGHTTP2_SETTINGS, 0, 0, no_window, sizeof(no_window)));
    TD_TRUE(raw_request(raw, 1, 0, generate.path, NULL, 0));
    size_t len = tandem__v1__generate_request__pack(req, msg);
    TD_TRUE(raw_message(raw, 1, NGHTTP2_FLAG_END_STREAM, 0, msg, (uint32_t)len));
    return started(w, 0);
}

static int64_t counted(world *w, const char *name, const char *labels)
{
    return td_metric_value(td_metrics_get(w->metrics, TD_COUNTER, name, labels, ""));
}

TEST(an_answer_whose_last_message_is_not_taken_is_no_success)
{
    static raw_client raw;
    world w;
    uint32_t id = 300;
    world_open(&w, &(world_conf){.front = true, .backlog_bytes = 32});
    generate_request req = plain();
    fake_call *c = ask_unread(&w, &raw, &req);
    fake_send(c, &id, 1);
    world_run_ms(&w, 20);
    fake_finish(c, "stop"); /* usage and timing are too much for what is left of 32 bytes */
    RUN_UNTIL(&w, td_front_active(w.front) == 0);
    TD_EQ(0, counted(&w, "tandem_requests_total", "status=\"ok\""));
    TD_EQ(1, counted(&w, "tandem_requests_total", "status=\"failed\""));
    TD_EQ(0, counted(&w, "tandem_generated_tokens_total", ""));
    raw_close(&raw);
    world_close(&w);
}

TEST(a_client_that_does_not_read_is_cut_off_and_others_are_not)
{
    enum { IDS = 50 };
    static raw_client raw;
    world w;
    asking good;
    uint32_t many[IDS], n_sent = 0;
    world_open(&w, &(world_conf){.front = true, .backlog_bytes = 16384, .pages = 256});
    generate_request req = plain();
    req.max_tokens = 4000;
    fake_call *c = ask_unread(&w, &raw, &req);
    ask(&w, &good, &generate, &req.base);
    fake_call *other = started(&w, 1);
    for (int i = 0; i < IDS; i++)
        many[i] = 300;
    while (!c->cancelled && n_sent + IDS <= 4000) {
        fake_send(c, many, IDS);
        n_sent += IDS;
        world_turn(&w);
        world_turn(&w);
    }
    TD_TRUE(c->cancelled);
    td_rpc_server_stats stats;
    td_rpc_server_get_stats(w.server, &stats);
    TD_EQ(1, stats.n_cut_off);
    fake_send(other, many, IDS);
    fake_finish(other, "stop");
    answered(&w, &good);
    TD_EQ(TD_GRPC_OK, good.status);
    TD_EQ(IDS, good.n_ids);
    free(good.last);
    raw_close(&raw);
    world_close(&w);
}
