#include "tests/prefill/world.h"

/* ---- the engine, made up ---- */

struct td_prefill_engine {
    td_model_config config;
    td_kv_layout layout;
    td_fingerprint fingerprint;
    uint32_t n_blobs, n_steps;
    bool busy;
    made_up_step step;
    uint32_t published[1024], blobs_published[64]; /* generations; 0: not readable */
};

bool td_prefill_engine_busy(const td_prefill_engine *e)
{
    return e->busy;
}

void td_prefill_engine_step(td_prefill_engine *e, const td_chunk *chunks, uint32_t n)
{
    TD_TRUE(!e->busy && n <= 8);
    e->busy = true;
    e->n_steps++;
    e->step.n = n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t last;
        td_step_pages(chunks[i].start, chunks[i].n_tokens, &e->step.first_page[i], &last);
        TD_EQ(last, chunks[i].n_pages);
        e->step.n_tokens[i] = (uint32_t)chunks[i].n_tokens;
        e->step.n_pages[i] = chunks[i].n_pages;
        e->step.start[i] = chunks[i].start;
        e->step.next_token[i] = chunks[i].next_token;
        e->step.blob_slot[i] = chunks[i].blob_slot;
        memcpy(e->step.pages[i], chunks[i].pages, chunks[i].n_pages * sizeof(uint32_t));
    }
}

const td_model_config *td_prefill_engine_config(const td_prefill_engine *e)
{
    return &e->config;
}

const td_kv_layout *td_prefill_engine_layout(const td_prefill_engine *e)
{
    return &e->layout;
}

const td_fingerprint *td_prefill_engine_fingerprint(const td_prefill_engine *e)
{
    return &e->fingerprint;
}

td_xfer *td_prefill_engine_xfer(td_prefill_engine *e, uint32_t rank)
{
    (void)e;
    (void)rank;
    return NULL;
}

uint32_t td_prefill_engine_blobs(const td_prefill_engine *e)
{
    return e->n_blobs;
}

size_t td_prefill_engine_blob_bytes(const td_prefill_engine *e)
{
    (void)e;
    return 128;
}

void td_prefill_engine_publish(td_prefill_engine *e, const td_ready_pages *ready)
{
    TD_TRUE(ready->last_layer > 0);
    for (uint32_t i = 0; i < ready->n; i++) {
        TD_TRUE(ready->generations[i] != 0);
        e->published[ready->pages[i]] = ready->generations[i];
    }
}

void td_prefill_engine_publish_blob(td_prefill_engine *e, uint32_t slot, uint32_t generation)
{
    e->blobs_published[slot] = generation;
}

void td_prefill_engine_retire(td_prefill_engine *e, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        e->published[pages[i]] = 0;
}

void td_prefill_engine_retire_blob(td_prefill_engine *e, uint32_t slot)
{
    e->blobs_published[slot] = 0;
}

td_status td_prefill_engine_check_free(td_prefill_engine *e, uint32_t page, td_err *err)
{
    (void)e;
    return page == 5 ? td_fail(err, TD_DATA_LOSS, "page 5") : TD_OK;
}

uint32_t world_published(const world *w, uint32_t page)
{
    return w->engine->published[page];
}

uint32_t world_blob_published(const world *w, uint32_t slot)
{
    return w->engine->blobs_published[slot];
}

/* ---- the world ---- */

static void nothing(void *user)
{
    (void)user;
}

static void no_exit(void *user, bool drained)
{
    (void)user;
    (void)drained;
}

td_prefill_conf world_conf(void)
{
    return (td_prefill_conf){.w = {.max_requests = 4, .kv_pages = 8},
                             .ranks = 1,
                             .chunk = 128,
                             .max_batch = 4,
                             .queue_length = 2,
                             .lease_ms = 400};
}

static void open_rpc(world *w)
{
    td_err err;
    w->service = (td_prefill_service){
        .serve = w->serve, .engine = w->engine, .prompts = w->prompts, .conf = &w->conf};
    TD_EQ(TD_OK,
          td_prefill_readers_note(&w->service.readers, DECODE_A, "10.0.0.1:1", "10.9.9.1:1", &err));
    TD_EQ(TD_OK,
          td_prefill_readers_note(&w->service.readers, DECODE_B, "10.0.0.2:1", "10.9.9.2:1", &err));
    td_prefill_methods(&w->service, w->methods);
    td_rpc_server_conf server = {.methods = w->methods, .n_methods = TD_PREFILL_N_METHODS};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &server.listen, &err));
    TD_EQ(TD_OK, td_rpc_server_open(w->loop, &server, &w->server, &err));
    td_rpc_client_conf client = {.peer = server.listen};
    client.peer.port = td_rpc_server_port(w->server);
    TD_EQ(TD_OK, td_rpc_client_open(w->loop, &client, &w->client, &err));
}

void world_open(world *w, const td_prefill_conf *conf)
{
    td_err err;
    memset(w, 0, sizeof(*w));
    w->conf = conf != NULL ? *conf : world_conf();
    TD_EQ(TD_OK, td_loop_create(&w->loop, &err));
    td_test_patience(&w->patience, w->loop);
    TD_EQ(TD_OK, td_metrics_create(64, &w->metrics, &err));
    td_serve_conf serve = {.loop = w->loop,
                           .metrics = w->metrics,
                           .drain_ms = 60000,
                           .on_drain = nothing,
                           .on_exit = no_exit};
    TD_EQ(TD_OK, td_addr_parse("127.0.0.1:0", &serve.admin, &err));
    TD_EQ(TD_OK, td_serve_open(&serve, &w->serve, &err));
    td_serve_ready(w->serve);
    w->engine = calloc(1, sizeof(*w->engine));
    w->engine->config.vocab_size = VOCAB;
    w->engine->config.max_positions = CONTEXT;
    w->engine->n_blobs = w->conf.w.max_requests;
    TD_EQ(TD_OK, td_kv_layout_init(&w->engine->layout, TD_KV_FP8, N_LAYERS, 1, 512, 64, 128, &err));
    td_prompts_conf prompts = {.loop = w->loop,
                               .engine = w->engine,
                               .metrics = w->metrics,
                               .conf = &w->conf,
                               .incarnation = td_serve_incarnation(w->serve)};
    TD_EQ(TD_OK, td_prompts_create(&prompts, &w->prompts, &err));
    open_rpc(w);
}

void world_turn(world *w)
{
    td_test_turn(w->loop);
}

static void on_closed(void *user)
{
    ((world *)user)->n_open--;
}

void world_close(world *w)
{
    while (td_prompts_active(w->prompts) > 0) {
        if (w->engine->busy)
            world_finish_step(w);
        world_turn(w);
    }
    TD_EQ(w->conf.w.kv_pages, pages_in(w, TD_PAGE_FREE));
    for (uint32_t page = 0; page < w->conf.w.kv_pages; page++)
        TD_EQ(0, w->engine->published[page]); /* free pages are not readable */
    for (uint32_t slot = 0; slot < w->conf.w.max_requests; slot++)
        TD_EQ(0, w->engine->blobs_published[slot]);
    for (int i = 0; i < TD_PREFILL_MAX_READERS; i++)
        TD_EQ(0, w->service.readers.rows[i].n_prompts);
    w->n_open = 3;
    td_rpc_client_close(w->client, on_closed, w);
    td_rpc_server_close(w->server, on_closed, w);
    td_serve_close(w->serve, on_closed, w);
    RUN_UNTIL(w, w->n_open == 0);
    td_timer_stop(&w->patience);
    td_prompts_destroy(w->prompts);
    td_loop_destroy(w->loop);
    td_metrics_destroy(w->metrics);
    free(w->engine);
}

uint32_t pages_in(const world *w, td_page_state state)
{
    return td_kv_pool_count(td_prompts_pool(w->prompts), state);
}

/* ---- steps ---- */

const made_up_step *world_step(world *w)
{
    RUN_UNTIL(w, w->engine->busy);
    return &w->engine->step;
}

uint32_t world_n_steps(const world *w)
{
    return w->engine->n_steps;
}

/* The checksum of a page is its id and the layer it begins with: whose it is can be told. */
static void announce(world *w, uint32_t first_layer, uint32_t last_layer)
{
    const made_up_step *s = &w->engine->step;
    uint32_t crc[256], n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t p = s->first_page[i]; p < s->n_pages[i]; p++)
            crc[n++] = s->pages[i][p] << 8 | first_layer;
    td_prompts_on_group(w->prompts, first_layer, last_layer, crc, n);
}

void world_finish_step(world *w)
{
    td_step_result results[8];
    world_step(w);
    announce(w, 0, N_LAYERS);
    announce(w, N_LAYERS, N_LAYERS + 1);
    for (uint32_t i = 0; i < w->engine->step.n; i++)
        results[i] = (td_step_result){.first_token = 42, .blob_crc = 7};
    w->engine->busy = false;
    td_prompts_on_done(w->prompts, results, w->engine->step.n);
}

/* ---- a decode daemon ---- */

static void on_event(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    asking *a = user;
    (void)req;
    TD_TRUE(a->n_events < 16);
    a->events[a->n_events] = tandem__v1__prefill_event__unpack(NULL, len, msg);
    TD_TRUE(a->events[a->n_events++] != NULL);
}

static void on_finish(td_rpc_request *req, void *user, td_grpc_status status, const char *message)
{
    asking *a = user;
    (void)req;
    a->req = NULL;
    a->status = status;
    snprintf(a->message, sizeof(a->message), "%s", message);
}

void ask_raw(world *w, asking *a, const Tandem__V1__PrefillRequest *request, int64_t deadline_ms)
{
    td_err err;
    int64_t ms = deadline_ms == 0 ? 10000 : deadline_ms;
    td_rpc_request_args args = {.path = "/tandem.v1.Prefill/Prefill",
                                .deadline_ns = ms > 0 ? td_now_ns() + ms * TD_NS_PER_MS : 0,
                                .on_message = on_event,
                                .on_finish = on_finish,
                                .user = a};
    memset(a, 0, sizeof(*a));
    TD_EQ(TD_OK, td_message_start(w->client, &args, &request->base, &a->req, &err));
}

void ask(world *w, asking *a, const prompt *p)
{
    uint32_t tokens[2 * CONTEXT];
    Tandem__V1__Sampling sampling = TANDEM__V1__SAMPLING__INIT;
    Tandem__V1__PrefillRequest request = TANDEM__V1__PREFILL_REQUEST__INIT;
    for (uint32_t i = 0; i < p->n_tokens; i++)
        tokens[i] = i % VOCAB;
    sampling.top_p = 1.0f;
    request.request_id = (char *)"some-request";
    request.incarnation = (char *)td_serve_incarnation(w->serve);
    request.decode_incarnation = (char *)(p->decode != NULL ? p->decode : DECODE_A);
    request.n_token_ids = p->n_tokens;
    request.token_ids = tokens;
    request.sampling = &sampling;
    request.want_draft = p->want_draft;
    request.number = p->number;
    ask_raw(w, a, &request, p->deadline_ms);
}

void forget(asking *a)
{
    td_rpc_request_cancel(a->req);
    a->req = NULL;
    for (uint32_t i = 0; i < a->n_events; i++)
        tandem__v1__prefill_event__free_unpacked(a->events[i], NULL);
    a->n_events = 0;
}

td_grpc_status ended(world *w, asking *a)
{
    RUN_UNTIL(w, a->req == NULL);
    return a->status;
}

typedef struct {
    bool is_renew, over;
    td_grpc_status status;
    size_t n_unknown;
} unary;

static void on_unary_message(td_rpc_request *req, void *user, const void *msg, size_t len)
{
    unary *u = user;
    (void)req;
    if (!u->is_renew)
        return;
    Tandem__V1__RenewResponse *res = tandem__v1__renew_response__unpack(NULL, len, msg);
    TD_TRUE(res != NULL);
    u->n_unknown = res->n_unknown;
    tandem__v1__renew_response__free_unpacked(res, NULL);
}

static void on_unary_finish(td_rpc_request *req, void *user, td_grpc_status status,
                            const char *message)
{
    (void)req;
    (void)message;
    ((unary *)user)->status = status;
    ((unary *)user)->over = true;
}

static unary call(world *w, const char *path, const ProtobufCMessage *message)
{
    td_err err;
    td_rpc_request *req;
    unary u = {.is_renew = message->descriptor == &tandem__v1__renew_request__descriptor};
    td_rpc_request_args args = {
        .path = path, .on_message = on_unary_message, .on_finish = on_unary_finish, .user = &u};
    TD_EQ(TD_OK, td_message_start(w->client, &args, message, &req, &err));
    RUN_UNTIL(w, u.over);
    return u;
}

td_grpc_status release_of(world *w, const char *incarnation, const char *decode, uint64_t number)
{
    Tandem__V1__ReleaseRequest r = TANDEM__V1__RELEASE_REQUEST__INIT;
    r.incarnation = (char *)incarnation;
    r.decode_incarnation = (char *)decode;
    r.number = number;
    return call(w, "/tandem.v1.Prefill/Release", &r.base).status;
}

void release(world *w, const char *decode, uint64_t number)
{
    TD_EQ(TD_GRPC_OK, release_of(w, td_serve_incarnation(w->serve), decode, number));
}

size_t renew(world *w, const char *decode, const uint64_t *numbers, size_t n)
{
    Tandem__V1__RenewRequest r = TANDEM__V1__RENEW_REQUEST__INIT;
    r.incarnation = (char *)td_serve_incarnation(w->serve);
    r.decode_incarnation = (char *)decode;
    r.numbers = (uint64_t *)numbers;
    r.n_numbers = n;
    unary u = call(w, "/tandem.v1.Prefill/Renew", &r.base);
    TD_EQ(TD_GRPC_OK, u.status);
    return u.n_unknown;
}
