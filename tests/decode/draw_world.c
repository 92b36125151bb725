#include "tests/decode/draw_world.h"

#include "common/serve/fingerprint.h"

static world *current; /* the made-up functions below have no other way to it */

/* ---- the engine, made up ---- */

struct td_decode_engine {
    td_model_config config;
    td_kv_layout layout;
    td_kv_slab slab;
    uint32_t drafts, n_joined;
};

const td_model_config *td_decode_engine_config(const td_decode_engine *e)
{
    return &e->config;
}

const td_kv_layout *td_decode_engine_layout(const td_decode_engine *e)
{
    return &e->layout;
}

td_kv_slab *td_decode_engine_slab(td_decode_engine *e)
{
    return &e->slab;
}

size_t td_decode_engine_blob_bytes(const td_decode_engine *e)
{
    (void)e;
    return BLOB_BYTES;
}

uint32_t td_decode_engine_drafts(const td_decode_engine *e)
{
    return e->drafts;
}

td_status td_decode_engine_join(td_decode_engine *e, const td_engine_command *command,
                                const uint32_t *pages)
{
    (void)pages;
    TD_EQ(42, command->first_token);
    e->n_joined++;
    return TD_OK;
}

td_status td_decode_engine_leave(td_decode_engine *e, uint32_t slot, uint64_t owner)
{
    (void)e;
    current->leaving[slot] = owner;
    return TD_OK;
}

uint32_t world_joined(const world *w)
{
    return w->engine->n_joined;
}

/* ---- the transfer layer, made up ---- */

td_status td_xfer_link_open(td_xfer *x, const td_xfer_link_args *args, td_xfer_link *out,
                            td_err *err)
{
    (void)x;
    (void)err;
    *out = (td_xfer_link){(uint32_t)args->tag, 1};
    return TD_OK;
}

void td_xfer_link_close(td_xfer *x, td_xfer_link link)
{
    (void)x;
    (void)link;
}

td_status td_xfer_get(td_xfer *x, td_xfer_link link, const td_xfer_get_args *args, td_xfer_job *out,
                      td_err *err)
{
    world *w = current;
    (void)x;
    if (w->n_live == w->room)
        return td_fail(err, TD_FULL, "%u jobs", w->n_live);
    TD_TRUE(w->n_jobs < 64 && args->n_pages <= N_PAGES);
    made_up_job *j = &w->jobs[w->n_jobs];
    *j = (made_up_job){.job = {w->n_jobs++, 1}, .rank = link.slot, .args = *args};
    memcpy(j->pages, args->pages, args->n_pages * sizeof(*args->pages));
    w->n_live++;
    *out = j->job;
    return TD_OK;
}

void td_xfer_cancel(td_xfer *x, td_xfer_job job)
{
    (void)x;
    current->jobs[job.slot].cancelled = true;
}

uint64_t job_bytes(const world *w, uint32_t job)
{
    return w->jobs[job].args.n_pages * w->jobs[job].args.n_bytes;
}

void job_ends(world *w, uint32_t job, td_status status, uint64_t n_bytes)
{
    made_up_job *j = &w->jobs[job];
    td_xfer_event event = {.kind = TD_XFER_JOB_DONE,
                           .status = status,
                           .job = j->job,
                           .tag = j->args.tag,
                           .n_pages = j->args.n_pages,
                           .n_bytes = n_bytes};
    TD_TRUE(job < w->n_jobs && !j->over);
    j->over = true;
    w->n_live--;
    if (status < 0)
        td_fail(&event.err, status, "the transfer layer says why");
    td_draw_on_job(w->requests, &event);
    td_draw_retry(w->requests);
}

/* ---- the prefill daemon, made up ---- */

static void on_greeting(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    world *w = user;
    ProtobufCMessage *message;
    ProtobufCBinaryData ranks[2] = {{4, (uint8_t *)"rank"}, {4, (uint8_t *)"rank"}};
    Tandem__V1__ConnectResponse res = TANDEM__V1__CONNECT_RESPONSE__INIT;
    TD_EQ(TD_OK,
          td_message_unpack(&tandem__v1__connect_request__descriptor, msg, len, &message, NULL));
    Tandem__V1__ConnectRequest *req = (Tandem__V1__ConnectRequest *)message;
    TD_STR(w->n_greetings++ == 0 ? "" : THEIRS, req->prefill_incarnation);
    res.incarnation = (char *)THEIRS;
    res.n_fingerprint = req->n_fingerprint;
    res.fingerprint = req->fingerprint;
    res.ranks = 2;
    res.n_rank_descriptor = 2;
    res.rank_descriptor = ranks;
    res.lease_ms = 60000;
    res.blob_bytes = BLOB_BYTES;
    td_message_reply(call, &res.base);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_prefill(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    world *w = user;
    if (w->n_refusals > 0) {
        w->n_refusals--;
        td_rpc_call_finish(call, TD_GRPC_FAILED_PRECONDITION, "who are you?");
        return;
    }
    Tandem__V1__PrefillRequest *req = tandem__v1__prefill_request__unpack(NULL, len, msg);
    TD_TRUE(req != NULL && w->n_streams < 8);
    TD_STR(THEIRS, req->incarnation);
    TD_STR(OURS, req->decode_incarnation);
    w->streams[w->n_streams++] = (stream){call, req->number};
    tandem__v1__prefill_request__free_unpacked(req, NULL);
}

static void on_prefill_cancelled(td_rpc_call *call, void *user, td_grpc_status why)
{
    world *w = user;
    (void)why;
    for (uint32_t i = 0; i < w->n_streams; i++)
        if (w->streams[i].call == call)
            w->streams[i].call = NULL;
}

static void on_release(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    Tandem__V1__ReleaseResponse res = TANDEM__V1__RELEASE_RESPONSE__INIT;
    (void)msg;
    (void)len;
    ((world *)user)->n_releases++;
    td_message_reply(call, &res.base);
}

static void on_renew(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    Tandem__V1__RenewResponse res = TANDEM__V1__RENEW_RESPONSE__INIT;
    (void)user;
    (void)msg;
    (void)len;
    td_message_reply(call, &res.base);
}

/* ---- what it says ---- */

stream *asked(world *w, uint32_t i)
{
    RUN_UNTIL(w, w->n_streams > i);
    return &w->streams[i];
}

td_rpc_call *taken(stream *s)
{
    td_rpc_call *call = s->call;
    s->call = NULL;
    TD_TRUE(call != NULL);
    return call;
}

void say(const stream *s, const Tandem__V1__PrefillEvent *event)
{
    TD_EQ(TD_OK, td_message_send(s->call, &event->base));
}

void settle(world *w)
{
    for (int i = 0; i < 20; i++)
        world_turn(w);
}

Tandem__V1__PrefillEvent pages_event(Tandem__V1__PagesReady *p)
{
    Tandem__V1__PrefillEvent e = TANDEM__V1__PREFILL_EVENT__INIT;
    e.incarnation = (char *)THEIRS;
    e.event_case = TANDEM__V1__PREFILL_EVENT__EVENT_PAGES;
    e.pages = p;
    return e;
}

Tandem__V1__PrefillEvent done_event(Tandem__V1__PrefillDone *d)
{
    Tandem__V1__PrefillEvent e = TANDEM__V1__PREFILL_EVENT__INIT;
    e.incarnation = (char *)THEIRS;
    e.event_case = TANDEM__V1__PREFILL_EVENT__EVENT_DONE;
    e.done = d;
    return e;
}

void announce(const stream *s, uint32_t first_layer, uint32_t last_layer, uint32_t first_page,
              uint32_t n)
{
    uint32_t ids[N_PAGES], generations[N_PAGES], crc[N_PAGES];
    Tandem__V1__PagesReady p = TANDEM__V1__PAGES_READY__INIT;
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = 40 + first_page + i;
        generations[i] = 7;
        crc[i] = 1000 + first_page + i;
    }
    p.first_layer = first_layer;
    p.last_layer = last_layer;
    p.first_page = first_page;
    p.n_page_ids = p.n_generations = p.n_crc32c = n;
    p.page_ids = ids;
    p.generations = generations;
    p.crc32c = crc;
    Tandem__V1__PrefillEvent e = pages_event(&p);
    say(s, &e);
}

void finish(const stream *s)
{
    Tandem__V1__PrefillDone d = TANDEM__V1__PREFILL_DONE__INIT;
    d.first_token = 42;
    d.blob_slot = 3;
    d.blob_generation = 9;
    d.blob_crc32c = 77;
    Tandem__V1__PrefillEvent e = done_event(&d);
    say(s, &e);
}

/* ---- the front ---- */

static void on_generate(td_rpc_call *call, void *user, const void *msg, size_t len)
{
    world *w = user;
    uint32_t sizes[2], prompt[1024] = {0};
    td_sampling sampling;
    td_err err;
    TD_EQ(sizeof(sizes), len);
    memcpy(sizes, msg, sizeof(sizes));
    td_sampling_init(&sampling);
    td_request_args args = {.id = "some-request",
                            .call = call,
                            .prompt = prompt,
                            .n_prompt = sizes[0],
                            .max_tokens = sizes[1],
                            .sampling = &sampling,
                            .prefill_address = w->address,
                            .prefill_incarnation = ""};
    if (td_requests_admit(w->requests, &args, &err) != TD_OK)
        td_rpc_call_fail(call, &err);
}

static void on_gone(td_rpc_call *call, void *user, td_grpc_status why)
{
    td_requests_call_gone(((world *)user)->requests, call, why);
}

static void on_event(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    asking *a = user;
    (void)req;
    Tandem__V1__DecodeEvent *e = tandem__v1__decode_event__unpack(NULL, len, msg);
    TD_TRUE(e != NULL);
    a->n_tokens += (uint32_t)e->n_token_ids;
    if (e->failure != NULL) {
        snprintf(a->cause, sizeof(a->cause), "%s", e->failure->cause);
        snprintf(a->side, sizeof(a->side), "%s", e->failure->side);
    }
    tandem__v1__decode_event__free_unpacked(e, NULL);
}

static void on_finish(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    asking *a = user;
    (void)req;
    a->req = NULL;
    a->status = status;
    snprintf(a->message, sizeof(a->message), "%s", message);
}

void ask(world *w, asking *a, uint32_t n_prompt, uint32_t max_tokens)
{
    uint32_t sizes[2] = {n_prompt, max_tokens};
    td_err err;
    td_rpc_request_args args = {.path = "/Generate",
                                .deadline_ns = td_now_ns() + 40 * TD_NS_PER_S,
                                .on_message = on_event,
                                .on_finish = on_finish,
                                .user = a};
    memset(a, 0, sizeof(*a));
    TD_EQ(TD_OK, td_rpc_request_start(w->client, &args, sizes, sizeof(sizes), &a->req, &err));
}

void give_up(asking *a)
{
    td_rpc_request_cancel(a->req);
    a->req = NULL;
}

td_grpc_status ended(world *w, asking *a)
{
    RUN_UNTIL(w, a->req == NULL);
    return a->status;
}

td_request *request_of(world *w, const stream *s)
{
    td_request *r = td_requests_find(w->requests, s->number);
    TD_TRUE(r != NULL);
    return r;
}

uint32_t pages_in(const world *w, td_page_state state)
{
    return td_kv_pool_count(td_requests_pool(w->requests), state);
}

/* ---- the world ---- */

void world_turn(world *w)
{
    td_test_turn(w->loop);
    for (uint32_t slot = 0; slot < w->conf.w.max_requests; slot++)
        if (w->leaving[slot] != 0) {
            uint64_t owner = w->leaving[slot];
            w->leaving[slot] = 0;
            td_requests_on_left(w->requests, slot, owner);
        }
}

static void on_up(void *user, td_peer *peer)
{
    td_requests_on_peer_up(((world *)user)->requests, peer);
}

static void on_down(void *user, td_peer *peer, const td_err *why)
{
    td_requests_on_peer_down(((world *)user)->requests, peer, why);
}

static uint32_t held_numbers(void *user, const td_peer *peer, uint64_t *numbers, uint32_t max)
{
    return td_requests_held(((world *)user)->requests, peer, numbers, max);
}

static void on_unknown(void *user, td_peer *peer, uint64_t number)
{
    (void)user;
    (void)peer;
    (void)number;
}

static void open_rpc(world *w)
{
    static const struct {
        const char *path;
        td_rpc_kind kind;
        void (*on_message)(td_rpc_call *call, void *user, const void *msg, size_t len);
        void (*on_cancelled)(td_rpc_call *call, void *user, td_grpc_status why);
    } rows[] = {
        {"/tandem.v1.Prefill/Connect", TD_RPC_UNARY, on_greeting, NULL},
        {"/tandem.v1.Prefill/Prefill", TD_RPC_SERVER_STREAMING, on_prefill, on_prefill_cancelled},
        {"/tandem.v1.Prefill/Release", TD_RPC_UNARY, on_release, NULL},
        {"/tandem.v1.Prefill/Renew", TD_RPC_UNARY, on_renew, NULL},
        {"/Generate", TD_RPC_SERVER_STREAMING, on_generate, on_gone}};
    td_err err;
    td_rpc_server_conf server = {.methods = w->methods, .n_methods = 5};
    for (int i = 0; i < 5; i++)
        w->methods[i] = (td_rpc_method){.path = rows[i].path,
                                        .kind = rows[i].kind,
                                        .on_message = rows[i].on_message,
                                        .on_cancelled = rows[i].on_cancelled,
                                        .user = w};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &server.listen, &err));
    TD_EQ(TD_OK, td_rpc_server_open(w->loop, &server, &w->server, &err));
    td_rpc_client_conf client = {.peer = server.listen};
    client.peer.port = td_rpc_server_port(w->server);
    TD_EQ(TD_OK, td_rpc_client_open(w->loop, &client, &w->client, &err));
    snprintf(w->address, sizeof(w->address), "127.0.0.1:%u", client.peer.port);
}

static void open_tables(world *w)
{
    static char no_xfer; /* never looked into */
    td_err err;
    td_requests_conf requests = {.loop = w->loop,
                                 .engine = w->engine,
                                 .metrics = w->metrics,
                                 .conf = &w->conf,
                                 .incarnation = OURS};
    TD_EQ(TD_OK, td_requests_create(&requests, &w->requests, &err));
    td_peers_conf peers = {.loop = w->loop,
                           .conf = &w->conf,
                           .incarnation = OURS,
                           .address = "127.0.0.1:1",
                           .fingerprint = &w->fingerprint,
                           .blob_bytes = BLOB_BYTES,
                           .on_up = on_up,
                           .on_down = on_down,
                           .held_numbers = held_numbers,
                           .on_unknown = on_unknown,
                           .user = w};
    TD_EQ(TD_OK, td_peers_create(&peers, &w->peers, &err));
    td_requests_set_transport(w->requests, w->peers, (td_xfer *)(void *)&no_xfer);
}

void world_open(world *w, uint32_t drafts)
{
    td_err err;
    memset(w, 0, sizeof(*w));
    current = w;
    w->room = 64;
    w->conf = (td_decode_conf){.w = {.max_requests = 4, .kv_pages = N_PAGES},
                               .peer_timeout_ms = 5000,
                               .transfer_timeout_ms = 10000};
    TD_EQ(TD_OK, td_loop_create(&w->loop, &err));
    td_test_patience(&w->patience, w->loop);
    TD_EQ(TD_OK, td_metrics_create(64, &w->metrics, &err));
    w->engine = calloc(1, sizeof(*w->engine));
    w->engine->config.vocab_size = VOCAB;
    w->engine->config.max_positions = 1024;
    w->engine->drafts = drafts;
    TD_EQ(TD_OK, td_kv_layout_init(&w->engine->layout, TD_KV_FP8, N_LAYERS, 1, 512, 64, 128, &err));
    TD_EQ(TD_OK, td_kv_slab_init(&w->engine->slab, &w->engine->layout, N_PAGES, 1, &err));
    td_fingerprint_set(&w->fingerprint, "config", "%s", "abc");
    open_rpc(w);
    open_tables(w);
}

static void on_closed(void *user)
{
    ((world *)user)->n_open--;
}

void world_close(world *w)
{
    RUN_UNTIL(w, td_requests_active(w->requests) == 0);
    TD_EQ(N_PAGES, pages_in(w, TD_PAGE_FREE));
    TD_EQ(0, td_requests_check_free(w->requests));
    TD_EQ(0, w->n_live);
    w->n_open = 3;
    td_peers_close(w->peers, on_closed, w);
    td_rpc_client_close(w->client, on_closed, w);
    td_rpc_server_close(w->server, on_closed, w);
    RUN_UNTIL(w, w->n_open == 0);
    td_timer_stop(&w->patience);
    td_requests_destroy(w->requests);
    td_loop_destroy(w->loop);
    td_metrics_destroy(w->metrics);
    td_kv_slab_fini(&w->engine->slab);
    free(w->engine);
}
