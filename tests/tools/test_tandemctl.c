/* tandemctl as a process against a made-up router: what it prints, what it exits with. */
#include "common/base/clock.h"
#include "tests/client/fake_router.h"
#include "tests/td_test.h"

#include <cJSON.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

TD_TEST_MAIN

static fake_router router;

typedef struct {
    pid_t pid;
    int in, out, err; /* our ends; -1: closed */
    char text[1 << 20], errors[65536];
    size_t n_text, n_errors;
    int status;
} program;

static program p;

/* args end with NULL. */
static void start(const char *const *args)
{
    int in[2], out[2], err[2];
    const char *argv[32] = {"tandemctl"};
    int n = 1;
    for (; *args != NULL; args++)
        argv[n++] = *args;
    TD_TRUE(n < 32 && pipe(in) == 0 && pipe(out) == 0 && pipe(err) == 0);
    fflush(NULL);
    memset(&p, 0, sizeof(p));
    p.pid = fork();
    TD_TRUE(p.pid >= 0);
    if (p.pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        for (int fd = 3; fd < 64; fd++)
            close(fd);
        execv(TANDEMCTL, (char *const *)argv);
        _exit(99);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    p.in = in[1];
    p.out = out[0];
    p.err = err[0];
}

static void drain(int fd, char *out, size_t cap, size_t *n)
{
    ssize_t got;
    while (*n + 1 < cap && (got = read(fd, out + *n, cap - 1 - *n)) > 0)
        *n += (size_t)got;
    out[*n] = '\0';
    close(fd);
}

/* Reads stdout (small enough texts on stderr) to the end; the exit status, or -signal. */
static int finish(void)
{
    int status;
    close(p.in);
    drain(p.out, p.text, sizeof(p.text), &p.n_text);
    drain(p.err, p.errors, sizeof(p.errors), &p.n_errors);
    TD_EQ(p.pid, waitpid(p.pid, &status, 0));
    p.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return p.status;
}

#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})
static int run(const char *const *args)
{
    start(args);
    return finish();
}

static void open_router(void)
{
    fake_router_start(&router);
    setenv("TANDEM_ROUTER", router.address, 1);
}

static void close_router(void)
{
    fake_router_stop(&router);
    TD_EQ(0, router.n_open);
}

/* The last Generate request holds these bytes. */
static bool was_sent(const char *bytes, size_t n)
{
    const fake_last *last = fake_router_last(&router);
    return memmem(last->request, last->n_request, bytes, n) != NULL;
}

static void has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no \"%s\" in: %s", part, text);
}

/* stdout as one JSON object; cJSON_Delete() it. */
static cJSON *json_of_output(void)
{
    cJSON *json = cJSON_Parse(p.text);
    if (!cJSON_IsObject(json))
        fail_msg("not a JSON object: %s", p.text);
    return json;
}

static const cJSON *at(const cJSON *json, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    if (item == NULL)
        fail_msg("no %s in the JSON", name);
    return item;
}

/* ---- generate ---- */

TEST(generate_prints_the_text_and_the_figures)
{
    open_router();
    TD_EQ(0, RUN("generate", "hello world"));
    TD_STR("hello world", p.text);
    has(p.errors, "first token ");
    has(p.errors, " tokens/s");
    has(p.errors, "3 prompt tokens, 11 generated, 10 drafted, 8 accepted (80 %)");
    has(p.errors, "queue 1.0 ms, prefill 250.0 ms, transfer 62.5 ms, first token 500.0 ms");
    has(p.errors, "finish: stop, request made-up");
    TD_EQ(0, RUN("generate", "--no-stats", "hello"));
    TD_STR("hello", p.text);
    TD_STR("", p.errors);
    close_router();
}

TEST(the_prompt_may_come_from_stdin_with_any_bytes)
{
    open_router();
    start((const char *const[]){"generate", "--no-stats", "-", NULL});
    TD_EQ(7, write(p.in, "a\0b\nc\xc3\xa9", 7));
    TD_EQ(0, finish());
    TD_EQ(7, p.n_text);
    TD_MEM("a\0b\nc\xc3\xa9", p.text, 7);
    close_router();
}

TEST(text_appears_as_it_arrives)
{
    char first[6] = "";
    open_router();
    start((const char *const[]){"generate", "slow", NULL});
    TD_EQ(5, read(p.out, first, 5));
    TD_STR("tick ", first);
    TD_EQ(1, router.n_open); /* it goes on */
    kill(p.pid, SIGINT);
    TD_EQ(130, finish());
    has(p.errors, "CANCELLED");
    close_router();
    TD_EQ(1, router.n_cancelled);
}

TEST(sigterm_cancels_too)
{
    char first[1];
    open_router();
    start((const char *const[]){"generate", "slow", NULL});
    TD_EQ(1, read(p.out, first, 1));
    kill(p.pid, SIGTERM);
    TD_EQ(143, finish());
    close_router();
}

TEST(a_reader_that_goes_away_ends_the_request)
{
    char first[1];
    open_router();
    start((const char *const[]){"generate", "slow", NULL});
    TD_EQ(1, read(p.out, first, 1));
    close(p.out);
    p.out = open("/dev/null", O_RDONLY);
    TD_EQ(1, finish());
    has(p.errors, "cannot write");
    close_router();
    TD_EQ(1, router.n_cancelled);
}

TEST(options_reach_the_router)
{
    open_router();
    TD_EQ(0, RUN("generate", "--no-stats", "--max-tokens", "5", "--temperature=0", "--top-p", "0.5",
                 "--top-k", "7", "--seed", "18446744073709551615", "--stop", "one", "--stop", "two",
                 "--stop-token-id", "9", "--min-tokens", "2", "--ignore-eos", "--request-id",
                 "job-5", "x"));
    TD_STR("job-5", fake_router_last(&router)->request_id);
    const char expected[] =
        "\x12\x01x"; /* the text, then the stops, behind what protobuf-c packs */
    TD_TRUE(was_sent(expected, 3));
    TD_TRUE(was_sent("\x52\x03one\x52\x03two", 10));
    TD_TRUE(was_sent("\x40\x05", 2));                                      /* max_tokens */
    TD_TRUE(was_sent("\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11)); /* seed */
    close_router();
}

TEST(the_prompt_may_be_token_ids)
{
    char path[] = "/tmp/td-ids-XXXXXX";
    int fd = mkstemp(path);
    open_router();
    TD_EQ(0, RUN("generate", "--no-stats", "--ids", "[5, 6]"));
    TD_TRUE(was_sent("\x1a\x04\x0a\x02\x05\x06", 6));
    TD_EQ(8, write(fd, "[7,\n 8]\n", 8));
    close(fd);
    TD_EQ(0, RUN("generate", "--no-stats", "--ids", path));
    TD_TRUE(was_sent("\x1a\x04\x0a\x02\x07\x08", 6));
    TD_EQ(0, RUN("generate", "--no-stats", "--print-ids", "AB"));
    TD_STR("65 66\n", p.text);
    unlink(path);
    close_router();
}

TEST(generate_as_json)
{
    open_router();
    TD_EQ(0, RUN("generate", "--json", "say \"hi\"\n"));
    TD_STR("", p.errors);
    cJSON *json = json_of_output();
    TD_STR("say \"hi\"\n", at(json, "text")->valuestring);
    TD_EQ(9, cJSON_GetArraySize(at(json, "token_ids")));
    TD_STR("stop", at(json, "finish_reason")->valuestring);
    TD_EQ(9, at(at(json, "usage"), "generated_tokens")->valueint);
    TD_TRUE(at(at(json, "timing"), "prefill_s")->valuedouble == 0.25);
    TD_TRUE(at(json, "ttft_s")->valuedouble > 0 && cJSON_IsNull(at(json, "error")));
    cJSON_Delete(json);
    start((const char *const[]){"--json", "generate", "-", NULL});
    TD_EQ(3, write(p.in, "a\0b", 3));
    TD_EQ(0, finish());
    has(p.text, "\"a\\u0000b\"");
    TD_EQ(7, RUN("generate", "--json", "late 15"));
    json = json_of_output();
    TD_STR("part", at(json, "text")->valuestring); /* what came until then */
    TD_STR("DATA_LOSS", at(at(json, "error"), "code")->valuestring);
    cJSON_Delete(json);
    close_router();
}

/* ---- exit codes ---- */

TEST(exit_codes_follow_the_status)
{
    static const struct {
        int status, exit;
    } cases[] = {{1, 1}, {2, 1},  {3, 4},  {4, 6},  {5, 4},  {6, 4},  {7, 4},  {8, 5},
                 {9, 4}, {10, 1}, {11, 4}, {12, 4}, {13, 1}, {14, 8}, {15, 7}, {16, 4}};
    open_router();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char prompt[32];
        snprintf(prompt, sizeof(prompt), "fail %d the reason", cases[i].status);
        TD_EQ(cases[i].exit, RUN("generate", prompt));
        TD_STR("", p.text);
        has(p.errors, ": the reason\n");
    }
    close_router();
}

TEST(an_unreachable_router_is_exit_3)
{
    unsetenv("TANDEM_ROUTER");
    TD_EQ(3, RUN("--router", "127.0.0.1:1", "status"));
    has(p.errors, "router unreachable: 127.0.0.1:1");
    TD_EQ(3, RUN("--router=127.0.0.1:1", "generate", "x"));
    TD_EQ(3, RUN("health", "--router", "127.0.0.1:1", "--json"));
    cJSON *json = json_of_output();
    TD_TRUE(cJSON_IsTrue(at(at(json, "error"), "unreachable")));
    cJSON_Delete(json);
    open_router();
    TD_EQ(3, RUN("generate", "vanish"));
    TD_STR("part", p.text);
    close_router();
}

TEST(a_timeout_is_exit_6)
{
    open_router();
    TD_EQ(6, RUN("--timeout", "200ms", "generate", "hang"));
    has(p.errors, "DEADLINE_EXCEEDED");
    close_router();
}

TEST(bad_command_lines_are_exit_2_and_say_why)
{
    static const struct {
        const char *args[5], *says;
    } cases[] = {
        {{"frob"}, "unknown command frob"},
        {{"kv"}, "kv links"},
        {{"kv", "frob"}, "kv links"},
        {{"--frob", "status"}, "unknown option --frob"},
        {{"status", "--frob"}, "status: unknown option --frob"},
        {{"status", "-x"}, "unknown option -x"},
        {{"status", "extra"}, "1 arguments, at most 0"},
        {{"status", "--json=yes"}, "--json takes no value"},
        {{"generate"}, "a prompt is needed"},
        {{"generate", "a", "--ids", "[1]"}, "a prompt and --ids"},
        {{"generate", "a", "--max-tokens"}, "--max-tokens takes N"},
        {{"generate", "a", "--max-tokens", "-3"}, "must be an integer"},
        {{"generate", "a", "--max-tokens", "4294967296"}, "must be an integer"},
        {{"generate", "a", "--temperature", "warm"}, "must be a number"},
        {{"generate", "a", "--timeout", "soon"}, "must be a time"},
        {{"generate", "a", "--timeout", "0"}, "must be a time"},
        {{"generate", "--ids", "/no/such/file"}, "/no/such/file"},
        {{"generate", "--ids", "{}"}, "{}"},
        {{"generate", "--ids", "[1.5]"}, "item 0 is not an integer"},
        {{"generate", "--ids", "[1, -2]"}, "item 1 is not an integer"},
        {{"detokenize", "[1"}, "not a JSON array"},
        {{"tokenize"}, "a text is needed"},
        {{"status", "--router", "nonsense"}, "nonsense"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        TD_EQ(2, run(cases[i].args));
        has(p.errors, cases[i].says);
        TD_STR("", p.text);
    }
    TD_EQ(2, run((const char *const[]){NULL}));
    has(p.errors, "Usage:");
}

TEST(help_lists_commands_options_and_exit_codes)
{
    TD_EQ(0, RUN("--help"));
    const char *parts[] = {"generate", "kv links", "kv transfers", "--router", "Exit status"};
    for (int i = 0; i < 5; i++)
        has(p.text, parts[i]);
    TD_EQ(0, RUN("generate", "--help"));
    has(p.text, "--stop-token-id");
    has(p.text, "--timeout");
    TD_EQ(0, RUN("kv", "transfers", "--help"));
    has(p.text, "--live");
    TD_EQ(0, RUN("--version"));
    TD_TRUE(strncmp(p.text, "tandemctl ", 10) == 0);
}

TEST(a_prompt_may_begin_with_dashes_behind_two)
{
    open_router();
    TD_EQ(0, RUN("generate", "--no-stats", "--", "--help"));
    TD_STR("--help", p.text);
    close_router();
}

/* ---- status, health, kv ---- */

TEST(status_shows_workers_and_is_exit_8_without_a_pair)
{
    open_router();
    TD_EQ(0, RUN("status"));
    has(p.text, "ready, up 1 h 01 min");
    has(p.text, "1000 free, 24 held");
    has(p.text, "10.0.0.2:7420");
    has(p.text, "125.0 ms");
    router.no_pair = true;
    TD_EQ(8, RUN("status"));
    has(p.text, "unreachable");
    has(p.text, "connection? refused"); /* no escape sequences from others */
    has(p.text, "never");
    has(p.text, "degraded");
    close_router();
}

TEST(status_as_json_has_every_field)
{
    open_router();
    router.no_pair = true;
    TD_EQ(8, RUN("status", "--json"));
    cJSON *json = json_of_output();
    TD_STR("1.2.3", at(at(json, "router"), "version")->valuestring);
    const cJSON *workers = at(json, "workers");
    TD_EQ(2, cJSON_GetArraySize(workers));
    const cJSON *status = at(workers->child, "status");
    TD_STR("1152921504606846976", at(status, "tokens_active")->valuestring); /* 2^60 */
    TD_EQ(24, at(at(status, "pages")->child->next, "pages")->valueint);
    TD_TRUE(cJSON_IsNull(at(workers->child->next, "status")));
    TD_TRUE(cJSON_IsFalse(at(workers->child->next, "reachable")));
    cJSON_Delete(json);
    close_router();
}

TEST(health_is_exit_8_when_not_serving)
{
    open_router();
    TD_EQ(0, RUN("health"));
    TD_STR("SERVING\n", p.text);
    TD_EQ(4, RUN("health", "no.such.Service"));
    router.not_serving = true;
    TD_EQ(8, RUN("health"));
    TD_STR("NOT_SERVING\n", p.text);
    TD_EQ(8, RUN("health", "--json"));
    cJSON *json = json_of_output();
    TD_STR("NOT_SERVING", at(json, "status")->valuestring);
    cJSON_Delete(json);
    close_router();
}

TEST(kv_links_in_units_and_in_numbers)
{
    open_router();
    TD_EQ(0, RUN("kv", "links"));
    has(p.text, "shm");
    has(p.text, "3.0 GiB");
    has(p.text, "1.5 KiB/s");
    has(p.text, "9007199254740993");
    TD_EQ(0, RUN("kv", "links", "--json"));
    cJSON *json = json_of_output();
    const cJSON *link = at(at(json, "links")->child, "link");
    TD_TRUE(at(link, "bytes")->valuedouble == 3221225472.0);
    TD_STR("9007199254740993", at(link, "gets")->valuestring); /* above 2^53 */
    cJSON_Delete(json);
    router.unreached = true;
    TD_EQ(8, RUN("kv", "links"));
    has(p.text, "shm");
    has(p.errors, "not reached: 10.0.0.9:7420");
    close_router();
}

TEST(kv_transfers_live_or_all)
{
    open_router();
    TD_EQ(0, RUN("kv", "transfers"));
    has(p.text, "job-9");
    has(p.text, "3 of 8");
    has(p.text, "1.0 MiB of 3.0 MiB");
    TD_TRUE(!fake_router_last(&router)->live_only);
    TD_EQ(0, RUN("kv", "transfers", "--live"));
    TD_STR("no transfers\n", p.text);
    TD_TRUE(fake_router_last(&router)->live_only);
    router.cut = true;
    TD_EQ(0, RUN("kv", "transfers"));
    has(p.text, "7 more transfers are not shown");
    TD_EQ(0, RUN("kv", "transfers", "--json"));
    has(p.text, "\"omitted\"");
    TD_EQ(0, RUN("kv", "links"));
    has(p.text, "7 more links are not shown");
    close_router();
}

TEST(tables_are_aligned)
{
    open_router();
    TD_EQ(0, RUN("status"));
    const char *head = strstr(p.text, "ROLE");
    TD_TRUE(head != NULL);
    size_t column = (size_t)(strstr(head, "VERSION") - head);
    const char *row = strchr(head, '\n') + 1;
    TD_TRUE(strncmp(row + column, "1.2.3", 5) == 0);
    row = strchr(row, '\n') + 1;
    TD_TRUE(strncmp(row + column, "1.2.3", 5) == 0);
    close_router();
}

/* ---- tokenize, detokenize, model ---- */

TEST(tokenize_and_detokenize_fit_together)
{
    open_router();
    TD_EQ(0, RUN("tokenize", "AB"));
    TD_STR("[65, 66]\n", p.text);
    TD_EQ(0, RUN("detokenize", "[65, 66]"));
    TD_STR("AB", p.text);
    start((const char *const[]){"detokenize", "-", NULL});
    TD_EQ(8, write(p.in, "[65,0,66", 8));
    TD_EQ(1, write(p.in, "]", 1));
    TD_EQ(0, finish());
    TD_EQ(3, p.n_text);
    TD_MEM("A\0B", p.text, 3);
    TD_EQ(0, RUN("tokenize", "--json", "A"));
    cJSON *json = json_of_output();
    TD_EQ(65, at(json, "token_ids")->child->valueint);
    cJSON_Delete(json);
    close_router();
}

TEST(the_model_is_shown)
{
    open_router();
    TD_EQ(0, RUN("model"));
    has(p.text, "made-up");
    has(p.text, "4096 tokens");
    TD_EQ(0, RUN("model", "--json"));
    cJSON *json = json_of_output();
    TD_EQ(4096, at(json, "context_length")->valueint);
    cJSON_Delete(json);
    TD_EQ(4, RUN("model", "--model", "other"));
    close_router();
}
