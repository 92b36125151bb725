/* Everything in every callback: owners that pull the rug under their own feet. */
#include "tests/common/rpc/fixture.h"

TD_TEST_MAIN

typedef enum {
    DO_NOTHING,
    DO_SEND,
    DO_CANCEL,
    DO_CANCEL_OTHER,
    DO_START,
    DO_CLOSE_CLIENT,
    DO_CLOSE_SERVER,
    DO_DRAIN,
    N_DOINGS
} doing;

typedef struct {
    fixture *f;
    td_rpc_request *mine, *other;
    doing in_headers, in_message, in_finish, in_state;
    int n_messages, n_finished;
} rascal;

static void rascal_message(td_rpc_request *req, void *user, const void *msg, size_t len);
static void rascal_finish(td_rpc_request *req, void *user, td_grpc_status status,
                          const char *message);

static void rascal_do(rascal *r, doing what)
{
    td_rpc_request_args args = {.path = "/test.Echo/Unary"};
    td_rpc_request *req;
    switch (what) {
    case DO_SEND:
        if (r->mine != NULL)
            (void)td_rpc_request_send(r->mine, "again", 5);
        break;
    case DO_CANCEL:
        td_rpc_request_cancel(r->mine);
        r->mine = NULL;
        break;
    case DO_CANCEL_OTHER:
        td_rpc_request_cancel(r->other);
        r->other = NULL;
        break;
    case DO_START:
        if (r->f->client != NULL)
            (void)td_rpc_request_start(r->f->client, &args, "x", 1, &req, NULL);
        break;
    case DO_CLOSE_CLIENT:
        td_rpc_client_close(r->f->client, NULL, NULL);
        r->f->client = NULL;
        break;
    case DO_CLOSE_SERVER:
        td_rpc_server_close(r->f->server, NULL, NULL);
        r->f->server = NULL;
        break;
    case DO_DRAIN:
        if (r->f->server != NULL)
            td_rpc_server_drain(r->f->server, NULL, NULL);
        break;
    default: break;
    }
}

static void rascal_headers(td_rpc_request *req, void *user)
{
    rascal *r = user;
    (void)req;
    rascal_do(r, r->in_headers);
}

static void rascal_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    rascal *r = user;
    (void)req;
    (void)msg;
    (void)len;
    if (r->n_messages++ < 3)
        rascal_do(r, r->in_message);
}

static void rascal_finish(td_rpc_request *req, void *user, td_grpc_status status,
                          const char *message)
{
    rascal *r = user;
    (void)status;
    (void)message;
    if (req == r->mine)
        r->mine = NULL;
    if (req == r->other)
        r->other = NULL;
    r->n_finished++;
    rascal_do(r, r->in_finish);
}

static void rascal_state(td_rpc_client *client, void *user, td_rpc_state state, const td_err *why)
{
    rascal *r = user;
    (void)client;
    (void)state;
    (void)why;
    rascal_do(r, r->in_state);
}

static td_rpc_request *rascal_start(rascal *r)
{
    td_rpc_request *req = NULL;
    td_rpc_request_args args = {.path = "/test.Echo/Bidi",
                                .on_headers = rascal_headers,
                                .on_message = rascal_message,
                                .on_finish = rascal_finish,
                                .user = r};
    if (r->f->client == NULL || td_rpc_stream_start(r->f->client, &args, &req, NULL) < 0)
        return NULL;
    for (int i = 0; i < 5; i++)
        TD_EQ(TD_OK, td_rpc_request_send(req, "hello", 5));
    return req;
}

static int total_messages, total_finished;

static void run_rascal(doing in_headers, doing in_message, doing in_finish, doing in_state)
{
    fixture f;
    rascal r = {&f, NULL, NULL, in_headers, in_message, in_finish, in_state, 0, 0};
    td_rpc_client_conf cc = {.on_state = rascal_state, .user = &r};
    fixture_open(&f, NULL, &cc);
    r.mine = rascal_start(&r);
    r.other = rascal_start(&r);
    fixture_run_for(&f, 3);
    if (r.mine != NULL)
        td_rpc_request_half_close(r.mine);
    fixture_run_for(&f, 3);
    fixture_close(&f); /* on_finish runs inside, too */
    total_messages += r.n_messages;
    total_finished += r.n_finished;
}

TEST(anything_may_be_called_in_any_client_callback)
{
    for (doing a = DO_NOTHING; a < N_DOINGS; a++)
        for (doing b = DO_NOTHING; b < N_DOINGS; b++) {
            run_rascal(a, b, DO_NOTHING, DO_NOTHING);
            run_rascal(DO_NOTHING, a, b, DO_NOTHING);
            run_rascal(DO_NOTHING, DO_NOTHING, a, b);
        }
    TD_TRUE(total_messages > 500 && total_finished > 200); /* they did get there */
}

/* ---- the same on the server's side ---- */

typedef struct {
    td_rpc_server *server;
    td_rpc_call *held;
    doing in_open, in_message, in_half_close, in_cancelled;
    int n_open, n_over;
} scamp;

static void scamp_do(scamp *s, td_rpc_call *call, doing what)
{
    switch (what) {
    case DO_SEND:
        if (call != NULL)
            (void)td_rpc_call_send(call, "x", 1);
        break;
    case DO_CANCEL: /* here: finish */
        if (call != NULL)
            td_rpc_call_finish(call, TD_GRPC_ABORTED, "because");
        break;
    case DO_CANCEL_OTHER:
        if (s->held != NULL && s->held != call)
            td_rpc_call_finish(s->held, TD_GRPC_ABORTED, "the other one");
        if (s->held != call)
            s->held = NULL;
        break;
    case DO_START: /* here: both at once */
        if (call != NULL)
            td_rpc_call_reply(call, "x", 1);
        break;
    case DO_CLOSE_SERVER:
        td_rpc_server_close(s->server, NULL, NULL);
        s->server = NULL;
        break;
    case DO_DRAIN:
        if (s->server != NULL)
            td_rpc_server_drain(s->server, NULL, NULL);
        break;
    default: break;
    }
    if (s->held == call && (what == DO_CANCEL || what == DO_START))
        s->held = NULL;
}

static void scamp_open(td_rpc_call *call, void *user)
{
    scamp *s = user;
    if (s->n_open++ == 0)
        s->held = call;
    scamp_do(s, call, s->in_open);
}

static void scamp_message(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    scamp *s = user;
    (void)msg;
    (void)len;
    scamp_do(s, call, s->in_message);
}

static void scamp_half_close(td_rpc_call *call, void *user)
{
    scamp *s = user;
    scamp_do(s, call, s->in_half_close);
}

static void scamp_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    scamp *s = user;
    (void)why;
    s->n_over++;
    TD_EQ(TD_CANCELLED, td_rpc_call_send(call, "late", 4));
    if (s->held == call)
        s->held = NULL;
    scamp_do(s, NULL, s->in_cancelled);
}

static int total_open, total_over;

static void run_scamp(doing a, doing b, doing c, doing d)
{
    fixture f;
    scamp s = {NULL, NULL, a, b, c, d, 0, 0};
    answer answers[3];
    td_rpc_method method = {"/test.Scamp/Do", TD_RPC_BIDI,     scamp_open, scamp_message,
                            scamp_half_close, scamp_cancelled, &s};
    memset(&f, 0, sizeof(f));
    td_log_init("test", TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&f.loop, NULL));
    td_rpc_server_conf sc = {.methods = &method, .n_methods = 1};
    td_rpc_client_conf cc = {0};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &sc.listen, NULL));
    TD_EQ(TD_OK, td_rpc_server_open(f.loop, &sc, &s.server, NULL));
    cc.peer = sc.listen;
    cc.peer.port = td_rpc_server_port(s.server);
    TD_EQ(TD_OK, td_rpc_client_open(f.loop, &cc, &f.client, NULL));
    fixture_patience(&f, 30000, "scamp");
    for (int i = 0; i < 3; i++) {
        td_rpc_request_args args = answer_args("/test.Scamp/Do", &answers[i]);
        TD_EQ(TD_OK, td_rpc_stream_start(f.client, &args, &answers[i].req, NULL));
        for (int n = 0; n < 3; n++)
            TD_EQ(TD_OK, td_rpc_request_send(answers[i].req, "hi", 2));
        if (i == 1)
            td_rpc_request_half_close(answers[i].req);
    }
    fixture_run_for(&f, 3);
    if (answers[2].n_finished == 0)
        td_rpc_request_cancel(answers[2].req);
    fixture_run_for(&f, 3);
    td_rpc_server_close(s.server, NULL, NULL);
    fixture_close(&f);
    total_open += s.n_open;
    total_over += s.n_over;
}

TEST(anything_may_be_called_in_any_server_callback)
{
    for (doing a = DO_NOTHING; a < N_DOINGS; a++)
        for (doing b = DO_NOTHING; b < N_DOINGS; b++) {
            run_scamp(a, b, DO_NOTHING, DO_NOTHING);
            run_scamp(DO_NOTHING, a, b, DO_NOTHING);
            run_scamp(DO_NOTHING, DO_NOTHING, a, b);
        }
    TD_TRUE(total_open > 400 && total_over > 200);
}
