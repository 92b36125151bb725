#include "tests/td_test.h"

#include "common/base/conf.h"
#include "tests/common/base/td_hard.h"

#include <stdbool.h>
#include <unistd.h>

typedef struct {
    uint32_t pages;
    uint64_t big;
    int64_t drain_ms;
    uint64_t pool_bytes;
    double ratio;
    bool crc;
    char *model, *listen;
    int transport;
    td_conf_list workers;
} knobs;

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(knobs, name, member, type, def, min, max, help)
static const td_conf_field fields[] = {
    F("model", model, STR, NULL, NULL, NULL, "model directory"),
    F("listen", listen, STR, "127.0.0.1:7400", NULL, NULL, "address to listen on"),
    F("pages", pages, U32, "4096", "16", "16777216", "pages in the pool"),
    F("big", big, U64, "18446744073709551615", NULL, NULL, "a large number"),
    F("drain-timeout", drain_ms, MS, "30s", "0", "10m", "wait on SIGTERM"),
    F("pool", pool_bytes, BYTES, "64MiB", "4096", "1GiB", "pool size"),
    F("ratio", ratio, F64, "0.5", "0", "1", "a ratio"),
    F("crc", crc, BOOL, "true", NULL, NULL, "check pages"),
    F("transport", transport, ENUM, "auto", "auto|shm|tcp", NULL, "way of pages"),
    F("workers", workers, LIST, NULL, NULL, "3", "addresses of workers"),
};
static const td_conf_spec spec = {"tandem-test", "a test", fields,
                                  sizeof(fields) / sizeof(fields[0])};

/* Loads with these arguments, the last one NULL. */
static td_status load(knobs *k, td_err *err, char **args)
{
    char *argv[16] = {"tandem-test"};
    int argc = 1;
    while (args != NULL && *args != NULL)
        argv[argc++] = *args++;
    memset(k, 0, sizeof(*k));
    return td_conf_load(&spec, argc, argv, k, err);
}
#define ARGS(...) ((char *[]){__VA_ARGS__, NULL})

static char file_path[64];

/* A file with this text, whose path is in file_path. */
static void write_file(const void *text, size_t n)
{
    snprintf(file_path, sizeof(file_path), "/tmp/td-conf-%d.json", (int)getpid());
    FILE *file = fopen(file_path, "w");
    TD_TRUE(file != NULL);
    TD_EQ(n, fwrite(text, 1, n, file));
    fclose(file);
}

static void refuse_file(const char *text, const char *want)
{
    knobs k;
    td_err err;
    char full[700];
    write_file(text, strlen(text));
    TD_EQ(TD_CONFIG, load(&k, &err, ARGS("--config", file_path, "--model=m")));
    snprintf(full, sizeof(full), "%s:%s", file_path, want);
    TD_STR(full, err.text);
    TD_TRUE(k.model == NULL && k.listen == NULL && k.workers.items == NULL);
    unlink(file_path);
}

static void refuse_args(char **args, const char *want)
{
    knobs k;
    td_err err;
    TD_EQ(TD_CONFIG, load(&k, &err, args));
    TD_STR(want, err.text);
    TD_TRUE(k.model == NULL && k.listen == NULL && k.workers.items == NULL);
}

TEST(defaults_hold_where_nothing_is_said)
{
    knobs k;
    TD_EQ(TD_OK, load(&k, NULL, ARGS("--model", "m")));
    TD_STR("m", k.model);
    TD_STR("127.0.0.1:7400", k.listen);
    TD_EQ(4096, k.pages);
    TD_TRUE(k.big == UINT64_MAX);
    TD_EQ(30000, k.drain_ms);
    TD_EQ(64 << 20, k.pool_bytes);
    TD_TRUE(k.ratio == 0.5 && k.crc);
    TD_EQ(0, k.transport);
    TD_EQ(0, k.workers.n);
    td_conf_free(&spec, &k);
}

TEST(a_list_that_must_not_be_empty_is_required_by_name)
{
    static const td_conf_field list_fields[] = {
        F("model", model, STR, "m", NULL, NULL, "model directory"),
        F("workers", workers, LIST, NULL, "1", "3", "addresses of workers"),
    };
    static const td_conf_spec list_spec = {"tandem-test", "a test", list_fields, 2};
    static char *const args[][4] = {{"tandem-test", "--workers", "a"}, {"tandem-test"}};
    char *text = NULL;
    size_t n = 0;
    knobs k = {0};
    td_err err;
    TD_EQ(TD_CONFIG, td_conf_load(&list_spec, 1, (char **)args[1], &k, &err));
    TD_STR("\"workers\" must be given: addresses of workers", err.text);
    write_file("{\"workers\": []}", 15);
    TD_EQ(TD_CONFIG, td_conf_load(&list_spec, 3, (char *[]){"x", "--config", file_path}, &k, &err));
    TD_STR("\"workers\" must be given: addresses of workers", err.text);
    unlink(file_path);
    TD_EQ(TD_OK, td_conf_load(&list_spec, 3, (char **)args[0], &k, &err));
    TD_EQ(1, k.workers.n);
    td_conf_free(&list_spec, &k);
    FILE *out = open_memstream(&text, &n);
    td_conf_help(&list_spec, out);
    td_conf_example(&list_spec, out);
    fclose(out);
    TD_TRUE(strstr(text, "addresses of workers; 1 to 3 items (required)\n"));
    TD_TRUE(strstr(text, "    // \"workers\": [],\n"));
    free(text);
}

TEST(the_command_line_wins_over_the_file_and_the_file_over_defaults)
{
    static const char text[] =
        "// comment\n{\n  \"pages\": 32, \"listen\": \"[::1]:1\", /* c */ \"crc\": false,\n"
        "  \"drain-timeout\": \"2m\", \"pool\": 8192, \"ratio\": 1e-1, \"transport\": \"tcp\",\n"
        "  \"workers\": [\"a:1\", \"b:2\",], \"big\": \"9007199254740993\",\n}\n";
    knobs k;
    write_file(text, strlen(text));
    TD_EQ(TD_OK, load(&k, NULL,
                      ARGS("--pages=64", "--config", file_path, "--model", "x", "--crc",
                           "--workers", "c:3, d:4 ,e:5")));
    TD_EQ(64, k.pages);
    TD_STR("[::1]:1", k.listen);
    TD_TRUE(k.crc && k.ratio == 0.1 && k.big == 9007199254740993ULL);
    TD_EQ(120000, k.drain_ms);
    TD_EQ(8192, k.pool_bytes);
    TD_EQ(2, k.transport);
    TD_EQ(3, k.workers.n);
    TD_STR("c:3", k.workers.items[0]);
    TD_STR("d:4", k.workers.items[1]);
    TD_STR("e:5", k.workers.items[2]);
    td_conf_free(&spec, &k);
    td_conf_free(&spec, &k); /* nothing left */
    TD_EQ(TD_OK, load(&k, NULL, ARGS("--config", file_path, "--model", "x", "--crc=false")));
    TD_EQ(2, k.workers.n);
    TD_STR("b:2", k.workers.items[1]);
    TD_TRUE(!k.crc);
    td_conf_free(&spec, &k);
    unlink(file_path);
}

TEST(bad_arguments_are_refused_by_name)
{
    refuse_args(NULL, "\"model\" must be given: model directory");
    refuse_args(ARGS("--model"), "--model wants a value");
    refuse_args(ARGS("--modle", "x"), "unknown option --modle (try --help)");
    refuse_args(ARGS("x"), "unexpected argument \"x\" (try --help)");
    refuse_args(ARGS("--"), "unexpected argument \"--\" (try --help)");
    refuse_args(ARGS("--pages", "15"), "--pages: 15 is below 16");
    refuse_args(ARGS("--pages", "4294967296"), "--pages: \"4294967296\" is not a whole number");
    refuse_args(ARGS("--pages", "-1"), "--pages: \"-1\" is not a whole number");
    refuse_args(ARGS("--pages", "1 "), "--pages: \"1 \" is not a whole number");
    refuse_args(ARGS("--pages", ""), "--pages: \"\" is not a whole number");
    refuse_args(ARGS("--big", "18446744073709551616"),
                "--big: \"18446744073709551616\" is not a whole number");
    refuse_args(ARGS("--drain-timeout", "11m"), "--drain-timeout: 11m is above 10m");
    refuse_args(ARGS("--drain-timeout", "3d"),
                "--drain-timeout: \"3d\" is not a time such as 250ms, 30s, 10m, 2h or a number of "
                "milliseconds");
    refuse_args(ARGS("--pool", "2GiB"), "--pool: 2GiB is above 1GiB");
    refuse_args(ARGS("--pool", "20000000TiB"),
                "--pool: \"20000000TiB\" is not a size such as 4096, 64KiB, 64MiB or 1GiB");
    refuse_args(ARGS("--ratio", "nan"), "--ratio: \"nan\" is not a number");
    refuse_args(ARGS("--ratio", "inf"), "--ratio: \"inf\" is not a number");
    refuse_args(ARGS("--ratio", "1.5"), "--ratio: 1.5 is above 1");
    refuse_args(ARGS("--crc=yes"), "--crc: \"yes\" is not true or false");
    refuse_args(ARGS("--transport", "rdma"), "--transport: \"rdma\" is not one of auto|shm|tcp");
    refuse_args(ARGS("--transport", ""), "--transport: \"\" is not one of auto|shm|tcp");
    refuse_args(ARGS("--transport", "auto|shm"),
                "--transport: \"auto|shm\" is not one of auto|shm|tcp");
    refuse_args(ARGS("--workers", "a,,b"), "--workers: an item of the list is empty");
    refuse_args(ARGS("--workers", "a,b,"), "--workers: an item of the list is empty");
    refuse_args(ARGS("--workers", "a,b,c,d"), "--workers: has 4 items, at most 3 are allowed");
    refuse_args(ARGS("--config", "/nowhere/x"), "/nowhere/x: No such file or directory");
    refuse_args(ARGS("--config", "/"), "/: Is a directory");
}

TEST(bad_files_are_refused_with_their_line)
{
    refuse_file("{\n\"pages\": 32,\n\"pagse\": {\"x\": [\"pages\"]}\n}",
                "3: unknown key \"pagse\" (tandem-test --help lists them)");
    refuse_file("{\n\"listen\": \"a\\\"b\",\n\n\"pages\": 3}", "4: pages: 3 is below 16");
    refuse_file("{\"pages\": 32,\n\"pages\": 33}", "2: \"pages\" is given twice");
    refuse_file("{\"pages\": 32.5}", "1: pages: 32.5 is not a whole number from 0 to 2^53");
    refuse_file("{\"big\": 9007199254740994}",
                "1: big: 9007199254740994 is not a whole number from 0 to 2^53");
    refuse_file("{\"pages\": true}", "1: pages: wants a whole number");
    refuse_file("{\"pages\": null}", "1: pages: wants a whole number");
    refuse_file("{\"listen\": 1}", "1: listen: wants a string");
    refuse_file("{\"crc\": \"true\"}", "1: crc: wants true or false");
    refuse_file("{\"workers\": \"a,b\"}", "1: workers: wants a list of strings");
    refuse_file("{\"workers\": [\"a\", 1]}", "1: workers: item 1 is not a string, or empty");
    refuse_file("{\"workers\": [\"\"]}", "1: workers: item 0 is not a string, or empty");
    refuse_file("{\"workers\": [\"a\",\"b\",\"c\",\"d\"]}",
                "1: workers: has 4 items, at most 3 are allowed");
    refuse_file("[]", "1: not a JSON object");
    refuse_file("", "1: not JSON");
    refuse_file("{\n\n\"pages\" 3}", "3: not JSON");
    refuse_file("{}\n}", "2: not JSON");
    refuse_file("{}\n/* x", " line 2: a comment without an end");
}

TEST(the_example_file_is_the_defaults)
{
    char *text = NULL;
    size_t n = 0;
    knobs k;
    FILE *out = open_memstream(&text, &n);
    td_conf_example(&spec, out);
    fclose(out);
    write_file(text, n);
    TD_TRUE(strstr(text, "    // pages in the pool; from 16 to 16777216\n    \"pages\": 4096,\n"));
    TD_TRUE(strstr(text, "    // model directory (required)\n    // \"model\": \"\",\n"));
    TD_TRUE(strstr(text, "\"big\": \"18446744073709551615\",\n"));
    free(text);
    TD_EQ(TD_OK, load(&k, NULL, ARGS("--config", file_path, "--model", "m")));
    TD_EQ(4096, k.pages);
    TD_EQ(30000, k.drain_ms);
    TD_TRUE(k.big == UINT64_MAX);
    td_conf_free(&spec, &k);
    unlink(file_path);
}

TEST(help_names_every_knob_and_questions_are_answered)
{
    char *text = NULL;
    size_t n = 0;
    knobs k;
    FILE *out = open_memstream(&text, &n);
    td_conf_help(&spec, out);
    fclose(out);
    for (size_t i = 0; i < spec.n_fields; i++)
        TD_TRUE(strstr(text, fields[i].name) != NULL && strstr(text, fields[i].help) != NULL);
    TD_TRUE(strstr(text, "--transport auto|shm|tcp") != NULL);
    free(text);
    TD_EQ(TD_EMPTY, load(&k, NULL, ARGS("--help")));
    TD_EQ(TD_EMPTY, load(&k, NULL, ARGS("--pages", "1", "--version")));
    TD_EQ(TD_EMPTY, load(&k, NULL, ARGS("--print-config")));
}

static td_status load_all(void)
{
    knobs k;
    td_status st = load(&k, NULL, ARGS("--config", file_path, "--model", "m", "--workers", "a,b"));
    if (st == TD_OK)
        td_conf_free(&spec, &k);
    else
        TD_TRUE(k.model == NULL && k.listen == NULL && k.workers.items == NULL);
    return st;
}

TEST(each_allocation_may_fail)
{
    static const char text[] = "{\"listen\": \"x\", \"workers\": [\"c\", \"d\"]}";
    write_file(text, strlen(text));
    TD_EACH_ALLOC_FAILS(TD_NOMEM, load_all(), );
    unlink(file_path);
}

TEST(damaged_and_cut_files_are_read_or_refused)
{
    static const char text[] =
        "{\n  \"pages\": 32, \"listen\": \"[::1]:1\", /* c */ \"crc\": false, // x\n"
        "  \"drain-timeout\": \"2m\", \"ratio\": 1e-1, \"workers\": [\"a:1\", \"b:2\",],\n}\n";
    uint64_t seed = 3;
    size_t n = strlen(text);
    unsigned char copy[sizeof(text)];
    knobs k;
    for (size_t i = 0; i < 2000 + n; i++) {
        memcpy(copy, text, n);
        if (i >= n)
            td_mutate(copy, n, &seed);
        write_file(copy, i < n ? i : n);
        td_status st = load(&k, NULL, ARGS("--config", file_path, "--model", "m"));
        TD_TRUE(st == TD_OK || st == TD_CONFIG);
        td_conf_free(&spec, &k);
    }
    unlink(file_path);
}

TEST(read_file_holds_its_bound)
{
    char *text;
    size_t n;
    td_err err;
    write_file("0123456789", 10);
    TD_EQ(TD_OK, td_read_file(file_path, 10, &text, &n, NULL));
    TD_EQ(10, n);
    TD_STR("0123456789", text);
    free(text);
    TD_EQ(TD_TOO_LARGE, td_read_file(file_path, 9, &text, &n, &err));
    TD_EQ(TD_OK, td_read_file("/proc/self/status", 1 << 20, &text, &n, NULL)); /* says size 0 */
    TD_EQ(n, strlen(text));
    TD_TRUE(n > 100);
    free(text);
    TD_EQ(TD_TOO_LARGE, td_read_file("/dev/zero", 10000, &text, &n, NULL));
    TD_EQ(TD_NOT_FOUND, td_read_file("/nowhere/x", 10, &text, &n, NULL));
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_read_file(file_path, 10, &text, &n, NULL), free(text));
    unlink(file_path);
}

TD_TEST_MAIN
