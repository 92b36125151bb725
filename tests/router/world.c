#include "tests/router/world.h"
#include "tests/td_port_test.h"

#include "common/serve/message.h"
#include "proto/tandem/v1/worker.pb-c.h"

static const char *const services[] = {"tandem.v1.Inference", "tandem.v1.Admin"};

/* ---- a made-up worker ---- */

static void fill_status(fake_worker *f, Tandem__V1__WorkerStatus *s, Tandem__V1__PageCount *count)
{
    count->state = (char *)"free";
    count->pages = f->pages;
    s->role = (char *)(f->says_role != NULL ? f->says_role : td_role_name(f->role));
    s->state = (char *)f->state;
    s->incarnation = f->incarnation;
    s->version = (char *)"0.0.1";
    s->model = (char *)"made-up";
    s->requests_active = f->active;
    s->max_requests = f->max_requests;
    s->page_tokens = f->page_tokens;
    s->drafts = f->drafts;
}

static void on_heartbeat(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_worker *f = user;
    Tandem__V1__HeartbeatResponse res = TANDEM__V1__HEARTBEAT_RESPONSE__INIT;
    Tandem__V1__WorkerStatus status = TANDEM__V1__WORKER_STATUS__INIT;
    Tandem__V1__PageCount count = TANDEM__V1__PAGE_COUNT__INIT, *counts[] = {&count};
    (void)msg;
    (void)len;
    f->n_heartbeats++;
    if (f->silent)
        return;
    fill_status(f, &status, &count);
    status.pages = counts;
    status.n_pages = 1;
    res.status = &status;
    td_message_reply(call, &res.base);
}

static void on_get_links(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_worker *f = user;
    Tandem__V1__GetLinksResponse res = TANDEM__V1__GET_LINKS_RESPONSE__INIT;
    Tandem__V1__Link link = TANDEM__V1__LINK__INIT, *links[] = {&link};
    (void)msg;
    (void)len;
    if (f->silent)
        return;
    if (f->no_links) {
        td_rpc_call_finish(call, TD_GRPC_INTERNAL, "no links here");
        return;
    }
    link.peer = (char *)"peer:1";
    link.transport = (char *)"shm";
    link.state = (char *)"up";
    link.bytes = 1ULL << 60;
    res.links = links;
    res.n_links = f->role == TD_ROLE_DECODE ? 1 : 0;
    td_message_reply(call, &res.base);
}

static void on_get_transfers(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_worker *f = user;
    Tandem__V1__GetTransfersResponse res = TANDEM__V1__GET_TRANSFERS_RESPONSE__INIT;
    Tandem__V1__Transfer t = TANDEM__V1__TRANSFER__INIT, *rows[] = {&t, &t};
    ProtobufCMessage *req;
    TD_EQ(TD_OK,
          td_message_unpack(&tandem__v1__get_transfers_request__descriptor, msg, len, &req, NULL));
    bool live_only = ((Tandem__V1__GetTransfersRequest *)req)->live_only;
    protobuf_c_message_free_unpacked(req, NULL);
    const char *id = td_rpc_call_header(call, "x-request-id");
    snprintf(f->list_id, sizeof(f->list_id), "%s", id != NULL ? id : "");
    if (f->silent)
        return;
    res.omitted = f->omits;
    t.request_id = (char *)"abc";
    t.stage = (char *)"drawing";
    res.transfers = rows;
    res.n_transfers = f->role == TD_ROLE_PREFILL ? 0 : live_only ? 1 : 2;
    td_message_reply(call, &res.base);
}

static void on_generate(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    fake_worker *f = user;
    ProtobufCMessage *req;
    TD_TRUE(f->n_calls < FAKE_MAX_CALLS);
    TD_EQ(TD_OK, td_message_unpack(&tandem__v1__decode_request__descriptor, msg, len, &req, NULL));
    fake_call *c = &f->calls[f->n_calls++];
    memset(c, 0, sizeof(*c));
    c->worker = f;
    c->call = call;
    c->request = (Tandem__V1__DecodeRequest *)req;
    const char *id = td_rpc_call_header(call, "x-request-id");
    snprintf(c->request_id, sizeof(c->request_id), "%s", id != NULL ? id : "");
    td_rpc_call_set_data(call, c);
    if (f->refuse_room)
        fake_fail(c, TD_GRPC_RESOURCE_EXHAUSTED, "decode", "no pages");
}

static void on_generate_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    fake_call *c = td_rpc_call_data(call);
    (void)user;
    if (c == NULL)
        return;
    c->call = NULL;
    c->cancelled = true;
    c->why = why;
}

static void on_other_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    (void)call;
    (void)user;
    (void)why;
}

void fake_start(fake_worker *f)
{
    td_err err = {0};
    td_rpc_server_conf conf = {.methods = f->methods, .n_methods = FAKE_METHODS, .name = "fake"};
    f->methods[0] = (td_rpc_method){"/tandem.v1.Worker/Heartbeat",
                                    TD_RPC_UNARY,
                                    NULL,
                                    on_heartbeat,
                                    NULL,
                                    on_other_cancelled,
                                    f};
    f->methods[1] = (td_rpc_method){"/tandem.v1.Worker/GetLinks",
                                    TD_RPC_UNARY,
                                    NULL,
                                    on_get_links,
                                    NULL,
                                    on_other_cancelled,
                                    f};
    f->methods[2] = (td_rpc_method){"/tandem.v1.Worker/GetTransfers",
                                    TD_RPC_UNARY,
                                    NULL,
                                    on_get_transfers,
                                    NULL,
                                    on_other_cancelled,
                                    f};
    f->methods[3] = (td_rpc_method){"/tandem.v1.Decode/Generate",
                                    TD_RPC_SERVER_STREAMING,
                                    NULL,
                                    on_generate,
                                    NULL,
                                    on_generate_cancelled,
                                    f};
    td_addr_parse("127.0.0.1:0", &conf.listen, &err);
    if (f->port == 0)
        f->port_fd = td_test_hold_port(&f->port);
    conf.listen.port = f->port;
    TD_EQ(TD_OK, td_rpc_server_open(f->world->loop, &conf, &f->server, &err));
    snprintf(f->address, sizeof(f->address), "127.0.0.1:%u", f->port);
    snprintf(f->incarnation, sizeof(f->incarnation), "%08x%08x",
             (unsigned)(f - f->world->workers) & 0xff, ++f->n_restarts & 0xff);
    f->world->n_open++;
}

static void on_fake_closed(void *user)
{
    ((fake_worker *)user)->world->n_open--;
}

void fake_kill(fake_worker *f)
{
    uint32_t before = f->world->n_open;
    td_rpc_server_close(f->server, on_fake_closed, f);
    f->server = NULL;
    RUN_UNTIL(f->world, f->world->n_open < before);
}

static void send_event(fake_call *c, const Tandem__V1__DecodeEvent *event)
{
    TD_TRUE(c->call != NULL);
    TD_EQ(TD_OK, td_message_send(c->call, &event->base));
}

void fake_send(fake_call *c, const uint32_t *ids, uint32_t n)
{
    Tandem__V1__DecodeEvent event = TANDEM__V1__DECODE_EVENT__INIT;
    event.token_ids = (uint32_t *)ids;
    event.n_token_ids = n;
    event.admission_s = 0.001;
    event.prefill_s = 0.002;
    event.transfer_s = 0.003;
    send_event(c, &event);
}

void fake_finish(fake_call *c, const char *reason)
{
    Tandem__V1__DecodeEvent event = TANDEM__V1__DECODE_EVENT__INIT;
    event.finish_reason = (char *)reason;
    event.drafted_tokens = 7;
    event.accepted_tokens = 5;
    send_event(c, &event);
    td_rpc_call_finish(c->call, TD_GRPC_OK, NULL);
    c->call = NULL;
}

void fake_fail(fake_call *c, td_grpc_status status, const char *side, const char *message)
{
    Tandem__V1__DecodeEvent event = TANDEM__V1__DECODE_EVENT__INIT;
    Tandem__V1__Failure failure = TANDEM__V1__FAILURE__INIT;
    failure.side = (char *)side;
    failure.stage = (char *)"prefill";
    event.failure = &failure;
    send_event(c, &event);
    td_rpc_call_finish(c->call, status, message);
    c->call = NULL;
}

/* ---- running ---- */

static void out_of_patience(td_timer *timer, void *user)
{
    (void)timer;
    (void)user;
    fprintf(stderr, "the test hangs\n");
    abort();
}

static void on_beat(td_timer *timer, void *user)
{
    (void)timer;
    td_loop_stop(((world *)user)->loop);
}

void world_turn(world *w)
{
    td_timer_at(&w->beat, td_now_ns() + TD_NS_PER_MS);
    td_loop_run(w->loop);
}

void world_run_ms(world *w, int64_t ms)
{
    int64_t until = td_now_ns() + ms * TD_NS_PER_MS;
    RUN_UNTIL(w, td_now_ns() >= until);
}

/* ---- opening ---- */

static void on_worker_lost(void *user, td_worker *worker, const char *why)
{
    td_dispatch_worker_lost(((world *)user)->dispatch, worker, why);
}

static void on_worker_change(void *user)
{
    td_dispatch_pump(((world *)user)->dispatch);
}

#define DEFAULT(member, value)                                                                     \
    if (w->conf.member == 0)                                                                       \
    w->conf.member = (value)

static void set_defaults(world *w)
{
    DEFAULT(n_prefill, 1);
    DEFAULT(n_decode, 1);
    DEFAULT(pages, 64);
    DEFAULT(max_requests, 8);
    DEFAULT(queue_length, 4);
    DEFAULT(router_max_requests, 16);
    DEFAULT(worker_wait_ms, 200);
    DEFAULT(request_timeout_ms, 10000);
    DEFAULT(heartbeat_ms, 20);
    DEFAULT(heartbeat_timeout_ms, 150);
    DEFAULT(backlog_bytes, 1 << 20);
    if (w->conf.model == NULL)
        w->conf.model = TD_TEST_MODEL;
    if (w->conf.queue_length == NO_QUEUE)
        w->conf.queue_length = 0;
}

static void open_workers(world *w)
{
    td_err err = {0};
    for (uint32_t i = 0; i < w->conf.n_prefill + w->conf.n_decode; i++) {
        fake_worker *f = &w->workers[w->n_workers++];
        f->world = w;
        f->role = i < w->conf.n_prefill ? TD_ROLE_PREFILL : TD_ROLE_DECODE;
        f->state = "ready";
        f->pages = w->conf.pages;
        f->page_tokens = 64;
        f->max_requests = w->conf.max_requests;
        fake_start(f);
        TD_EQ(TD_OK, td_registry_add(w->registry, f->role, f->address, &err));
    }
}

static const char *state_name(void *user)
{
    (void)user;
    return "ready";
}

static double uptime_s(void *user)
{
    (void)user;
    return 1.5;
}

static void open_front(world *w)
{
    td_err err = {0};
    td_front_conf front = {.loop = w->loop,
                           .dispatch = w->dispatch,
                           .model = &w->model,
                           .metrics = w->metrics,
                           .default_max_tokens = 100,
                           .max_requests = w->conf.router_max_requests,
                           .request_timeout_ms = w->conf.request_timeout_ms};
    td_rpc_server_conf server = {.methods = w->methods,
                                 .n_methods = sizeof(w->methods) / sizeof(w->methods[0]),
                                 .max_backlog_bytes = w->conf.backlog_bytes};
    td_rpc_client_conf client = {.name = "client"};
    TD_EQ(TD_OK, td_front_create(&front, &w->front, &err));
    w->admin = (td_admin){.registry = w->registry,
                          .dispatch = w->dispatch,
                          .incarnation = "0123456789abcdef",
                          .state = state_name,
                          .uptime_s = uptime_s};
    td_health_init(&w->health, services, 2);
    TD_EQ(TD_OK, td_reflection_create(services, 2, &w->reflection, &err));
    td_rpc_method *row = w->methods;
    td_front_methods(w->front, row);
    td_admin_methods(&w->admin, row += TD_FRONT_N_METHODS);
    td_health_methods(&w->health, row += TD_ADMIN_N_METHODS);
    td_reflection_methods(w->reflection, row + TD_HEALTH_N_METHODS);
    td_addr_parse("127.0.0.1:0", &server.listen, &err);
    TD_EQ(TD_OK, td_rpc_server_open(w->loop, &server, &w->server, &err));
    td_addr_parse("127.0.0.1:0", &client.peer, &err);
    client.peer.port = td_rpc_server_port(w->server);
    TD_EQ(TD_OK, td_rpc_client_open(w->loop, &client, &w->client, &err));
}

static bool all_ready(world *w)
{
    for (uint32_t i = 0; i < td_registry_count(w->registry); i++)
        if (!td_worker_ready(td_registry_worker(w->registry, i)))
            return false;
    return true;
}

void world_open(world *w, const world_conf *conf)
{
    td_err err = {0};
    memset(w, 0, sizeof(*w));
    if (conf != NULL)
        w->conf = *conf;
    set_defaults(w);
    td_log_init("test", getenv("TD_TEST_DEBUG") != NULL ? TD_LOG_INFO : TD_LOG_ERROR, 0);
    TD_EQ(TD_OK, td_loop_create(&w->loop, &err));
    td_timer_init(&w->patience, w->loop, out_of_patience, w);
    td_timer_at(&w->patience, td_now_ns() + 50 * TD_NS_PER_S);
    td_timer_init(&w->beat, w->loop, on_beat, w);
    TD_EQ(TD_OK, td_metrics_create(64, &w->metrics, &err));
    TD_EQ(TD_OK, td_model_info_load(&w->model, w->conf.model, NULL, &err));
    td_registry_conf registry = {.loop = w->loop,
                                 .incarnation = "0123456789abcdef",
                                 .heartbeat_ms = w->conf.heartbeat_ms,
                                 .heartbeat_timeout_ms = w->conf.heartbeat_timeout_ms,
                                 .on_lost = on_worker_lost,
                                 .on_change = on_worker_change,
                                 .user = w};
    TD_EQ(TD_OK, td_registry_create(&registry, &w->registry, &err));
    td_dispatch_conf dispatch = {.loop = w->loop,
                                 .registry = w->registry,
                                 .metrics = w->metrics,
                                 .queue_length = w->conf.queue_length,
                                 .max_requests = w->conf.router_max_requests,
                                 .worker_wait_ms = w->conf.worker_wait_ms};
    TD_EQ(TD_OK, td_dispatch_create(&dispatch, &w->dispatch, &err));
    open_workers(w);
    if (w->conf.front)
        open_front(w);
    RUN_UNTIL(w, all_ready(w));
}

/* ---- closing ---- */

int64_t world_gauge(world *w, const char *name)
{
    return td_metric_value(td_metrics_get(w->metrics, TD_GAUGE, name, "", ""));
}

void world_check_idle(world *w)
{
    static const char *const gauges[] = {"tandem_requests_active", "tandem_requests_queued",
                                         "tandem_streams_open", "tandem_calls_active"};
    for (size_t i = 0; i < sizeof(gauges) / sizeof(gauges[0]); i++)
        TD_EQ(0, world_gauge(w, gauges[i]));
    TD_EQ(0, td_dispatch_active(w->dispatch));
    for (uint32_t i = 0; i < td_registry_count(w->registry); i++) {
        const td_worker *worker = td_registry_worker(w->registry, i);
        TD_EQ(0, worker->n_claims);
        TD_EQ(0, worker->claimed.pages);
        TD_EQ(0, worker->claimed.tokens);
    }
    for (uint32_t i = 0; i < world_n_calls(w); i++)
        RUN_UNTIL(w, world_call(w, i)->call == NULL); /* decode hears of it, too */
}

static void on_closed(void *user)
{
    ((world *)user)->n_open--;
}

void world_close(world *w)
{
    world_check_idle(w);
    for (uint32_t i = 0; i < w->n_workers; i++)
        for (uint32_t k = 0; k < w->workers[i].n_calls; k++)
            protobuf_c_message_free_unpacked(&w->workers[i].calls[k].request->base, NULL);
    w->n_open += 1 + (w->client != NULL) + (w->server != NULL);
    td_rpc_client_close(w->client, on_closed, w);
    td_rpc_server_close(w->server, on_closed, w);
    td_registry_close(w->registry, on_closed, w);
    for (uint32_t i = 0; i < w->n_workers; i++)
        if (w->workers[i].server != NULL)
            td_rpc_server_close(w->workers[i].server, on_fake_closed, &w->workers[i]);
    RUN_UNTIL(w, w->n_open == 0);
    for (uint32_t i = 0; i < w->n_workers; i++)
        close(w->workers[i].port_fd);
    td_timer_stop(&w->patience);
    td_dispatch_destroy(w->dispatch);
    td_reflection_destroy(w->reflection);
    td_loop_destroy(w->loop);
    td_front_destroy(w->front);
    td_metrics_destroy(w->metrics);
    td_model_info_fini(&w->model);
}

/* ---- looking ---- */

fake_worker *world_prefill(world *w, uint32_t i)
{
    return &w->workers[i];
}

fake_worker *world_decode(world *w, uint32_t i)
{
    return &w->workers[w->conf.n_prefill + i];
}

td_worker *world_registered(world *w, const fake_worker *fake)
{
    return td_registry_worker(w->registry, (uint32_t)(fake - w->workers));
}

uint32_t world_n_calls(const world *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_workers; i++)
        n += w->workers[i].n_calls;
    return n;
}

fake_call *world_call(world *w, uint32_t i)
{
    for (uint32_t k = 0; k < w->n_workers; k++) {
        if (i < w->workers[k].n_calls)
            return &w->workers[k].calls[i];
        i -= w->workers[k].n_calls;
    }
    fail_msg("no such call");
    return NULL;
}
