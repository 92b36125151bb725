/* libtandem against a made-up router on a thread of its own. */
#include "client/tandem.h"
#include "common/base/clock.h"
#include "proto/tandem/v1/inference.pb-c.h"
#include "tests/client/fake_router.h"
#include "tests/td_test.h"

#include <arpa/inet.h>
#include <math.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

TD_TEST_MAIN

static fake_router router;
static td_client *client;

static void open_both(void)
{
    td_client_error err;
    fake_router_start(&router);
    td_client_conf conf = {.router = router.address};
    TD_EQ(TD_CLIENT_OK, td_client_open(&conf, &client, &err));
}

static void close_both(void)
{
    td_client_close(client);
    fake_router_stop(&router);
    TD_EQ(0, router.n_open); /* no call was forgotten */
}

/* The last Generate request holds these bytes. */
static bool was_sent(const char *bytes, size_t n)
{
    const fake_last *last = fake_router_last(&router);
    return memmem(last->request, last->n_request, bytes, n) != NULL;
}

static td_client_bytes text_of(const char *text)
{
    return (td_client_bytes){text, strlen(text)};
}

typedef struct {
    char text[4096];
    size_t n_text;
    uint32_t ids[512];
    size_t n_ids;
    int n_pieces, stop_after;
} kept;

static bool keep(void *user, const td_client_piece *p)
{
    kept *k = user;
    memcpy(k->text + k->n_text, p->text.bytes, p->text.n_bytes);
    k->n_text += p->text.n_bytes;
    for (size_t i = 0; i < p->n_ids; i++)
        k->ids[k->n_ids++] = p->ids[i];
    return ++k->n_pieces != k->stop_after;
}

static td_client_code generate(const char *prompt, kept *k, td_client_result *out,
                               td_client_error *err)
{
    int stop_after = k->stop_after;
    memset(k, 0, sizeof(*k));
    k->stop_after = stop_after;
    td_client_request request = {.text = text_of(prompt), .on_piece = keep, .user = k};
    return td_client_generate(client, &request, out, err);
}

static double since(int64_t ns)
{
    return (double)(td_now_ns() - ns) / 1e9;
}

TEST(generate_hands_on_pieces_then_usage_and_timing)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_OK, generate("hello", &k, &r, &err));
    TD_EQ(TD_CLIENT_OK, err.code);
    TD_MEM("hello", k.text, 5);
    TD_EQ(5, k.n_ids);
    TD_EQ('o', k.ids[4]);
    TD_STR("stop", r.finish_reason);
    TD_STR("made-up", r.request_id);
    TD_EQ(3, r.prompt_tokens);
    TD_EQ(5, r.generated_tokens);
    TD_EQ(10, r.drafted_tokens);
    TD_EQ(8, r.accepted_tokens);
    TD_TRUE(r.prefill_s == 0.25 && r.total_s == 2);
    TD_TRUE(r.ttft_s > 0 && r.wall_s >= r.ttft_s && r.n_pieces == 5 && r.n_ids == 5);
    close_both();
}

TEST(text_may_hold_nul_in_prompt_stop_and_answer)
{
    kept k = {.stop_after = 0};
    td_client_bytes stop = {"x\0y", 3};
    td_client_result r;
    td_client_error err;
    open_both();
    td_client_request request = {
        .text = {"a\0b", 3}, .stops = &stop, .n_stops = 1, .on_piece = keep, .user = &k};
    TD_EQ(TD_CLIENT_OK, td_client_generate(client, &request, &r, &err));
    TD_EQ(3, k.n_text);
    TD_MEM("a\0b", k.text, 3);
    TD_TRUE(was_sent("\x52\x03x\0y", 5)); /* field 10 */
    close_both();
}

TEST(every_field_travels)
{
    const uint32_t ids[] = {5, 6}, stop_ids[] = {9};
    td_client_bytes stops[] = {text_of("one"), text_of("two")};
    td_client_result r;
    td_client_error err;
    open_both();
    td_client_request request = {.model = "m",
                                 .ids = ids,
                                 .n_ids = 2,
                                 .has_temperature = true,
                                 .has_top_p = true,
                                 .has_top_k = true,
                                 .has_seed = true,
                                 .has_max_tokens = true,
                                 .temperature = 0.0f,
                                 .top_p = 0.5f,
                                 .top_k = 0,
                                 .seed = UINT64_MAX,
                                 .max_tokens = 17,
                                 .min_tokens = 3,
                                 .stops = stops,
                                 .n_stops = 2,
                                 .stop_ids = stop_ids,
                                 .n_stop_ids = 1,
                                 .ignore_eos = true,
                                 .request_id = "job-3"};
    TD_EQ(TD_CLIENT_OK, td_client_generate(client, &request, &r, &err));
    TD_STR("job-3", r.request_id);
    const fake_last *last = fake_router_last(&router);
    Tandem__V1__GenerateRequest *q =
        tandem__v1__generate_request__unpack(NULL, last->n_request, last->request);
    TD_TRUE(q != NULL);
    TD_STR("m", q->model);
    TD_EQ(TANDEM__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS, q->input_case);
    TD_EQ(6, q->token_ids->ids[1]);
    TD_EQ(TANDEM__V1__GENERATE_REQUEST__TEMPERATURE_OPT_TEMPERATURE, q->temperature_opt_case);
    TD_EQ(TANDEM__V1__GENERATE_REQUEST__TOP_K_OPT_TOP_K, q->top_k_opt_case);
    TD_TRUE(q->temperature == 0.0f && q->top_p == 0.5f && q->seed == UINT64_MAX);
    TD_EQ(17, q->max_tokens);
    TD_EQ(3, q->min_tokens);
    TD_EQ(2, q->n_stop);
    TD_STR("two", q->stop[1]);
    TD_EQ(9, q->stop_token_ids[0]);
    TD_TRUE(q->ignore_eos);
    tandem__v1__generate_request__free_unpacked(q, NULL);
    close_both();
}

TEST(absent_fields_stay_absent)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    open_both();
    TD_EQ(TD_CLIENT_OK, generate("x", &k, &r, NULL));
    TD_EQ(3, fake_router_last(&router)->n_request); /* the text alone */
    close_both();
}

TEST(errors_carry_their_status)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    open_both();
    for (int code = 1; code <= 16; code++) {
        td_client_error err;
        char prompt[64];
        snprintf(prompt, sizeof(prompt), "fail %d because of %d", code, code);
        TD_EQ(code, generate(prompt, &k, &r, &err));
        TD_EQ(code, err.code);
        TD_TRUE(!err.unreachable);
        TD_STR(strstr(prompt, "because"), err.text);
    }
    TD_STR("DATA_LOSS", td_client_code_name(TD_CLIENT_DATA_LOSS));
    TD_STR("OK", td_client_code_name(TD_CLIENT_OK));
    close_both();
}

TEST(what_came_before_an_error_is_handed_on)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_DATA_LOSS, generate("late 15", &k, &r, &err));
    TD_MEM("part", k.text, 4);
    TD_EQ(1, r.n_pieces);
    TD_STR("made-up", r.request_id);
    close_both();
}

TEST(answers_that_make_no_sense_are_internal_errors)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_INTERNAL, generate("nolast", &k, &r, &err));
    TD_EQ(TD_CLIENT_INTERNAL, generate("junk", &k, &r, &err));
    TD_EQ(TD_CLIENT_OK, generate("fine", &k, &r, &err));
    close_both();
}

static void wait_until_none_open(void)
{
    int64_t start = td_now_ns();
    while (router.n_open > 0 && since(start) < 5)
        td_sleep_ms(1);
    TD_EQ(0, router.n_open);
}

TEST(a_callback_that_has_enough_cancels)
{
    kept k = {.stop_after = 3};
    td_client_result r;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_CANCELLED, generate("slow", &k, &r, &err));
    TD_EQ(3, k.n_pieces);
    wait_until_none_open(); /* the router was told, though no call runs */
    TD_EQ(1, router.n_cancelled);
    close_both();
}

static void on_alarm(int number)
{
    (void)number;
    td_client_cancel(client);
}

TEST(a_signal_handler_may_cancel)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    struct itimerval soon = {.it_value.tv_usec = 100000};
    open_both();
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_alarm}, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    TD_EQ(TD_CLIENT_CANCELLED, generate("slow", &k, &r, &err));
    TD_TRUE(k.n_pieces > 1);
    wait_until_none_open();
    TD_EQ(TD_CLIENT_OK, generate("fine", &k, &r, &err)); /* it was taken */
    close_both();
}

static void *cancel_soon(void *arg)
{
    (void)arg;
    td_sleep_ms(50);
    td_client_cancel(client);
    return NULL;
}

TEST(another_thread_may_cancel)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    pthread_t thread;
    open_both();
    TD_EQ(0, pthread_create(&thread, NULL, cancel_soon, NULL));
    int64_t start = td_now_ns();
    TD_EQ(TD_CLIENT_CANCELLED, generate("hang", &k, &r, &err));
    TD_TRUE(since(start) < 5);
    pthread_join(thread, NULL);
    wait_until_none_open();
    close_both();
}

TEST(a_cancel_between_calls_ends_the_next)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    td_client_cancel(client);
    TD_EQ(TD_CLIENT_CANCELLED, generate("fine", &k, &r, &err));
    TD_EQ(0, router.n_calls);
    TD_EQ(TD_CLIENT_OK, generate("fine", &k, &r, &err));
    close_both();
}

TEST(a_deadline_ends_the_call_on_both_sides)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    td_client_set_timeout(client, 150);
    int64_t start = td_now_ns();
    TD_EQ(TD_CLIENT_DEADLINE_EXCEEDED, generate("hang", &k, &r, &err));
    TD_TRUE(since(start) >= 0.149 && since(start) < 3);
    TD_TRUE(!err.unreachable);
    wait_until_none_open();
    td_client_set_timeout(client, 0);
    TD_EQ(TD_CLIENT_OK, generate("fine", &k, &r, &err));
    close_both();
}

static td_client_code status_of(const td_client_conf *conf, td_client_error *err)
{
    Tandem__V1__GetStatusResponse *s;
    td_client *c;
    TD_EQ(TD_CLIENT_OK, td_client_open(conf, &c, err));
    td_client_code code = td_client_status(c, &s, err);
    td_client_close(c);
    return code;
}

/* A socket that listens and never says a word. */
static int mute_listener(char address[32])
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(sa);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    TD_EQ(0, bind(fd, (struct sockaddr *)&sa, sizeof(sa)));
    TD_EQ(0, listen(fd, 8));
    TD_EQ(0, getsockname(fd, (struct sockaddr *)&sa, &len));
    snprintf(address, 32, "127.0.0.1:%u", ntohs(sa.sin_port));
    return fd;
}

TEST(a_router_that_is_not_there_is_unreachable)
{
    td_client_error err;
    char address[32];
    int64_t start = td_now_ns();
    TD_EQ(TD_CLIENT_UNAVAILABLE, status_of(&(td_client_conf){.router = "127.0.0.1:1"}, &err));
    TD_TRUE(err.unreachable && strstr(err.text, "127.0.0.1:1: ") != NULL);
    TD_TRUE(since(start) < 2); /* nobody there: known at once */
    int fd = mute_listener(address);
    start = td_now_ns();
    TD_EQ(TD_CLIENT_UNAVAILABLE,
          status_of(&(td_client_conf){.router = address, .connect_ms = 200}, &err));
    TD_TRUE(err.unreachable && since(start) >= 0.15 && since(start) < 3);
    start = td_now_ns();
    TD_EQ(TD_CLIENT_DEADLINE_EXCEEDED,
          status_of(&(td_client_conf){.router = address, .timeout_ms = 100}, &err));
    TD_TRUE(err.unreachable && since(start) < 3);
    close(fd);
}

TEST(connecting_may_be_cancelled)
{
    td_client_error err;
    Tandem__V1__GetStatusResponse *s;
    char address[32];
    int fd = mute_listener(address);
    pthread_t thread;
    TD_EQ(TD_CLIENT_OK, td_client_open(&(td_client_conf){.router = address}, &client, &err));
    TD_EQ(0, pthread_create(&thread, NULL, cancel_soon, NULL));
    int64_t start = td_now_ns();
    TD_EQ(TD_CLIENT_CANCELLED, td_client_status(client, &s, &err));
    TD_TRUE(since(start) < 3);
    pthread_join(thread, NULL);
    td_client_close(client);
    close(fd);
}

TEST(a_router_that_stops_answering_is_unreachable)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    fake_router_start(&router);
    td_client_conf conf = {
        .router = router.address, .keepalive_ms = 300, .keepalive_reply_ms = 300};
    TD_EQ(TD_CLIENT_OK, td_client_open(&conf, &client, &err));
    td_client_set_timeout(client, 20000); /* what would end it otherwise */
    int64_t start = td_now_ns();
    TD_EQ(TD_CLIENT_UNAVAILABLE, generate("stop", &k, &r, &err));
    TD_TRUE(err.unreachable && strstr(err.text, "silent") != NULL);
    TD_TRUE(since(start) >= 0.5 && since(start) < 8);
    router.stopped = false;
    TD_EQ(TD_CLIENT_OK, generate("back", &k, &r, &err));
    close_both();
}

TEST(a_router_that_is_slow_but_there_is_waited_for)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    fake_router_start(&router);
    td_client_conf conf = {
        .router = router.address, .keepalive_ms = 200, .keepalive_reply_ms = 2000};
    TD_EQ(TD_CLIENT_OK, td_client_open(&conf, &client, &err));
    td_client_set_timeout(client, 1500);
    TD_EQ(TD_CLIENT_DEADLINE_EXCEEDED, generate("hang", &k, &r, &err)); /* PINGs are answered */
    close_both();
}

TEST(a_router_that_breaks_off_is_unreachable)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_UNAVAILABLE, generate("vanish", &k, &r, &err));
    TD_TRUE(err.unreachable);
    TD_MEM("part", k.text, 4);
    close_both();
}

TEST(a_restarted_router_is_found_again)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_OK, generate("one", &k, &r, &err));
    fake_router_stop(&router);
    TD_EQ(TD_CLIENT_UNAVAILABLE, generate("two", &k, &r, &err));
    TD_TRUE(err.unreachable);
    fake_router_start(&router);
    TD_EQ(TD_CLIENT_OK, generate("three", &k, &r, &err));
    fake_router_stop(&router);
    fake_router_start(&router);
    TD_EQ(TD_CLIENT_OK, generate("four", &k, &r, &err));
    close_both();
}

TEST(a_connection_that_the_router_closed_for_idleness_is_made_anew)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    router.idle_ms = 50;
    open_both();
    for (int i = 0; i < 3; i++) {
        TD_EQ(TD_CLIENT_OK, generate("again", &k, &r, &err));
        td_sleep_ms(150);
    }
    close_both();
}

TEST(text_becomes_ids_and_ids_text)
{
    uint32_t *ids;
    char *text;
    size_t n_ids, n_text;
    td_client_error err;
    open_both();
    td_client_text in = {.text = {"a\0c", 3}};
    TD_EQ(TD_CLIENT_OK, td_client_tokenize(client, &in, &ids, &n_ids, &err));
    TD_EQ(3, n_ids);
    TD_EQ('c', ids[2]);
    td_client_ids back = {.ids = ids, .n_ids = n_ids};
    TD_EQ(TD_CLIENT_OK, td_client_detokenize(client, &back, &text, &n_text, &err));
    TD_EQ(3, n_text);
    TD_MEM("a\0c", text, 4);
    free(ids);
    free(text);
    close_both();
}

TEST(the_model_is_told)
{
    td_client_model m;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_OK, td_client_get_model(client, NULL, &m, &err));
    TD_STR("made-up", m.name);
    TD_EQ(4096, m.context_length);
    TD_EQ(2, m.n_eos);
    TD_EQ(2, m.eos_ids[1]);
    TD_TRUE(m.has_tokenizer);
    TD_EQ(TD_CLIENT_NOT_FOUND, td_client_get_model(client, "other", &m, &err));
    close_both();
}

TEST(admin_answers_are_handed_out_whole)
{
    Tandem__V1__GetStatusResponse *status;
    Tandem__V1__ListLinksResponse *links;
    Tandem__V1__ListTransfersResponse *transfers;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_OK, td_client_status(client, &status, &err));
    TD_EQ(2, status->n_workers);
    TD_EQ(24, status->workers[1]->status->pages[1]->pages);
    td_client_free_answer(status);
    TD_EQ(TD_CLIENT_OK, td_client_list_links(client, &links, &err));
    TD_STR("shm", links->links[0]->link->transport);
    td_client_free_answer(links);
    TD_EQ(TD_CLIENT_OK, td_client_list_transfers(client, true, &transfers, &err));
    TD_EQ(0, transfers->n_transfers);
    TD_TRUE(fake_router_last(&router)->live_only);
    td_client_free_answer(transfers);
    td_client_free_answer(NULL);
    close_both();
}

TEST(health_is_told)
{
    td_client_serving serving;
    td_client_error err;
    open_both();
    TD_EQ(TD_CLIENT_OK, td_client_health(client, NULL, &serving, &err));
    TD_EQ(TD_CLIENT_SERVING, serving);
    router.not_serving = true;
    TD_EQ(TD_CLIENT_OK, td_client_health(client, "", &serving, &err));
    TD_EQ(TD_CLIENT_NOT_SERVING, serving);
    TD_EQ(TD_CLIENT_NOT_FOUND, td_client_health(client, "other", &serving, &err));
    close_both();
}

static bool call_again(void *user, const td_client_piece *p)
{
    td_client_serving serving;
    td_client_error err;
    (void)p;
    *(td_client_code *)user = td_client_health(client, NULL, &serving, &err);
    return true;
}

TEST(a_call_within_a_callback_is_refused)
{
    td_client_result r;
    td_client_error err;
    td_client_code inner = TD_CLIENT_OK;
    open_both();
    td_client_request request = {.text = text_of("x"), .on_piece = call_again, .user = &inner};
    TD_EQ(TD_CLIENT_OK, td_client_generate(client, &request, &r, &err));
    TD_EQ(TD_CLIENT_FAILED_PRECONDITION, inner);
    close_both();
}

TEST(bad_addresses_and_ids_are_refused)
{
    td_client_result r;
    td_client_error err;
    td_client *none = NULL;
    const char *bad[] = {"", "host", "host:", "host:99999", ":1", "127.0.0.1:0", "[::1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        TD_EQ(TD_CLIENT_INVALID_ARGUMENT,
              td_client_open(&(td_client_conf){.router = bad[i]}, &none, &err));
        TD_TRUE(none == NULL && err.text[0] != '\0');
    }
    open_both();
    td_client_request request = {.text = text_of("x"), .request_id = "line\nbreak"};
    TD_EQ(TD_CLIENT_INVALID_ARGUMENT, td_client_generate(client, &request, &r, &err));
    close_both();
}

TEST(a_long_stream_comes_whole)
{
    td_client_result r;
    td_client_error err;
    open_both();
    td_client_request request = {.text = text_of("many 50000")};
    TD_EQ(TD_CLIENT_OK, td_client_generate(client, &request, &r, &err));
    TD_EQ(50000, r.n_pieces);
    TD_EQ(50000, r.generated_tokens);
    close_both();
}

TEST(many_calls_over_one_client)
{
    kept k = {.stop_after = 0};
    td_client_result r;
    td_client_error err;
    open_both();
    for (int i = 0; i < 200; i++)
        TD_EQ(TD_CLIENT_OK, generate("one of many", &k, &r, &err));
    TD_EQ(200, router.n_calls);
    close_both();
}
