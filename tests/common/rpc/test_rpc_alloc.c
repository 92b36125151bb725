/* The k-th allocation of server, client or call fails: somebody gets a status, nobody hangs,
 * nothing leaks. */
#include "tests/common/loop/failing_alloc.h"
#include "tests/common/rpc/fixture.h"

TD_TEST_MAIN

enum { N_REQUESTS = 3 };

typedef struct {
    answer answers[N_REQUESTS];
    int n_started;
} batch;

static bool batch_done(void *arg)
{
    batch *b = arg;
    for (int i = 0; i < b->n_started; i++)
        if (b->answers[i].n_finished == 0)
            return false;
    return true;
}

static void start_batch(fixture *f, batch *b)
{
    static const char *const paths[N_REQUESTS] = {"/test.Echo/Unary", "/test.Echo/Bidi",
                                                  "/test.Echo/Fail"};
    td_rpc_header header = {"x-request-id", "r"};
    static const char big[3000] = "5 ";
    for (int i = 0; i < N_REQUESTS; i++) {
        answer *a = &b->answers[b->n_started];
        td_rpc_request_args args = answer_args(paths[i], a);
        td_err err;
        args.headers = &header;
        args.n_headers = 1;
        args.deadline_ns = td_now_ns() + 5000 * TD_NS_PER_MS;
        td_status st =
            i == 1 ? td_rpc_stream_start(f->client, &args, &a->req, &err)
                   : td_rpc_request_start(f->client, &args, big, sizeof(big), &a->req, &err);
        if (st < 0)
            continue;
        b->n_started++;
        if (i == 1) {
            (void)td_rpc_request_send(a->req, big, 10);
            (void)td_rpc_request_send(a->req, big, sizeof(big));
            td_rpc_request_half_close(a->req);
        }
    }
}

/* All allocations from here on are counted; the k-th fails. Returns whether it was reached. */
static bool run_with_failure(long k)
{
    fixture f;
    batch b;
    td_err err;
    long before = n_failures;
    memset(&f, 0, sizeof(f));
    memset(&b, 0, sizeof(b));
    td_log_init("test", TD_LOG_ERROR, 0);
    fail_after = k;
    td_status st = td_loop_create(&f.loop, &err);
    if (st < 0) {
        fail_after = -1;
        return true;
    }
    echo_init(&f.echo, f.loop);
    fixture_patience(&f, 20000, "out of memory");
    td_rpc_server_conf sc = {.methods = f.echo.methods, .n_methods = ECHO_METHODS};
    td_rpc_client_conf cc = {.backoff_min_ms = 1};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &sc.listen, NULL));
    cc.peer = sc.listen;
    st = td_rpc_server_open(f.loop, &sc, &f.server, &err);
    if (st == TD_OK) {
        cc.peer.port = td_rpc_server_port(f.server);
        st = td_rpc_client_open(f.loop, &cc, &f.client, &err);
    }
    if (st == TD_OK) {
        start_batch(&f, &b);
        fixture_run_until(&f, batch_done, &b);
        for (int i = 0; i < b.n_started; i++)
            TD_NE(TD_GRPC_DEADLINE_EXCEEDED, b.answers[i].status);
    } else {
        TD_EQ(TD_NOMEM, st);
    }
    fail_after = -1;
    fixture_close(&f);
    return n_failures > before;
}

TEST(kth_allocation_failure_ends_in_a_status)
{
    long k = 0;
    while (run_with_failure(k))
        k++;
    TD_TRUE(k > 15); /* else the hook does not work */
}
