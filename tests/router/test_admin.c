/* tandem.v1.Admin, health and reflection from a client's side. */
#include "tests/router/asking.h"

#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/tandem/v1/admin.pb-c.h"

TD_TEST_MAIN

static const asking_how get_status = {.path = "/tandem.v1.Admin/GetStatus"};
static const asking_how list_links = {.path = "/tandem.v1.Admin/ListLinks"};
static const asking_how list_transfers = {.path = "/tandem.v1.Admin/ListTransfers"};

/* The answer's message; free it and a->last. */
static void *ask_admin(world *w, asking *a, const asking_how *how, const ProtobufCMessage *req,
                       const ProtobufCMessageDescriptor *type)
{
    ask(w, a, how, req);
    answered(w, a);
    TD_EQ(TD_GRPC_OK, a->status);
    void *res = protobuf_c_message_unpack(type, NULL, a->n_last, a->last);
    TD_TRUE(res != NULL);
    return res;
}

TEST(status_shows_every_worker_and_why_it_is_not_used)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true, .n_decode = 2});
    fake_kill(world_decode(&w, 1));
    RUN_UNTIL(&w, !world_registered(&w, world_decode(&w, 1))->reachable);
    Tandem__V1__GetStatusRequest req = TANDEM__V1__GET_STATUS_REQUEST__INIT;
    Tandem__V1__GetStatusResponse *s =
        ask_admin(&w, &a, &get_status, &req.base, &tandem__v1__get_status_response__descriptor);
    TD_STR("ready", s->router->state);
    TD_STR("0123456789abcdef", s->router->incarnation);
    TD_EQ(0, s->router->requests_active);
    TD_EQ(3, s->n_workers);
    TD_STR("prefill", s->workers[0]->role);
    TD_STR("", s->workers[0]->why);
    TD_TRUE(s->workers[0]->reachable && s->workers[0]->heartbeat_age_s < 10);
    TD_STR("made-up", s->workers[0]->status->model);
    TD_EQ(64, s->workers[0]->status->pages[0]->pages);
    TD_TRUE(!s->workers[2]->reachable && s->workers[2]->why[0] != '\0');
    tandem__v1__get_status_response__free_unpacked(s, NULL);
    free(a.last);
    world_close(&w);
}

TEST(a_worker_never_heard_has_no_status)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true});
    TD_EQ(TD_OK, td_registry_add(w.registry, TD_ROLE_DECODE, "127.0.0.1:1", NULL));
    Tandem__V1__GetStatusRequest req = TANDEM__V1__GET_STATUS_REQUEST__INIT;
    Tandem__V1__GetStatusResponse *s =
        ask_admin(&w, &a, &get_status, &req.base, &tandem__v1__get_status_response__descriptor);
    TD_EQ(3, s->n_workers);
    TD_TRUE(s->workers[2]->status == NULL && s->workers[2]->heartbeat_age_s < 0);
    TD_TRUE(!s->workers[2]->reachable && s->workers[2]->why[0] != '\0');
    tandem__v1__get_status_response__free_unpacked(s, NULL);
    free(a.last);
    world_close(&w);
}

TEST(links_of_all_workers_and_who_did_not_answer)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true, .n_decode = 3, .n_prefill = 1});
    world_decode(&w, 1)->no_links = true;
    fake_kill(world_decode(&w, 2));
    RUN_UNTIL(&w, !world_registered(&w, world_decode(&w, 2))->reachable);
    Tandem__V1__ListLinksRequest req = TANDEM__V1__LIST_LINKS_REQUEST__INIT;
    Tandem__V1__ListLinksResponse *s =
        ask_admin(&w, &a, &list_links, &req.base, &tandem__v1__list_links_response__descriptor);
    TD_EQ(1, s->n_links);
    TD_STR(world_decode(&w, 0)->address, s->links[0]->worker);
    TD_STR("shm", s->links[0]->link->transport);
    TD_TRUE(s->links[0]->link->bytes == 1ULL << 60);
    TD_EQ(2, s->n_unreachable);
    TD_TRUE(strstr(s->unreachable[0], "INTERNAL: no links here") != NULL);
    TD_TRUE(strncmp(s->unreachable[1], world_decode(&w, 2)->address,
                    strlen(world_decode(&w, 2)->address)) == 0);
    tandem__v1__list_links_response__free_unpacked(s, NULL);
    free(a.last);
    world_close(&w);
}

TEST(a_worker_that_does_not_answer_costs_a_second)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true, .n_decode = 2, .heartbeat_timeout_ms = 5000});
    world_decode(&w, 0)->silent = true;
    Tandem__V1__ListTransfersRequest req = TANDEM__V1__LIST_TRANSFERS_REQUEST__INIT;
    Tandem__V1__ListTransfersResponse *s = ask_admin(
        &w, &a, &list_transfers, &req.base, &tandem__v1__list_transfers_response__descriptor);
    TD_TRUE(a.ended_ns - a.started_ns < 2 * TD_NS_PER_S);
    TD_EQ(2, s->n_transfers);
    TD_EQ(1, s->n_unreachable);
    TD_TRUE(strstr(s->unreachable[0], "DEADLINE_EXCEEDED") != NULL);
    tandem__v1__list_transfers_response__free_unpacked(s, NULL);
    free(a.last);
    world_close(&w);
}

TEST(live_only_is_handed_on)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true});
    Tandem__V1__ListTransfersRequest req = TANDEM__V1__LIST_TRANSFERS_REQUEST__INIT;
    req.live_only = true;
    Tandem__V1__ListTransfersResponse *s = ask_admin(
        &w, &a, &list_transfers, &req.base, &tandem__v1__list_transfers_response__descriptor);
    TD_EQ(1, s->n_transfers);
    TD_STR("drawing", s->transfers[0]->transfer->stage);
    tandem__v1__list_transfers_response__free_unpacked(s, NULL);
    free(a.last);
    world_close(&w);
}

TEST(a_list_is_cut_to_the_message_limit_and_says_so)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true, .n_decode = 3});
    Tandem__V1__ListTransfersRequest req = TANDEM__V1__LIST_TRANSFERS_REQUEST__INIT;
    Tandem__V1__ListTransfersResponse *s = ask_admin(
        &w, &a, &list_transfers, &req.base, &tandem__v1__list_transfers_response__descriptor);
    TD_EQ(6, s->n_transfers);
    TD_EQ(0, s->omitted);
    size_t whole = a.n_last;
    tandem__v1__list_transfers_response__free_unpacked(s, NULL);
    free(a.last);
    w.admin.max_answer_bytes = whole; /* less than is reckoned for six rows */
    world_decode(&w, 1)->omits = 100;
    s = ask_admin(&w, &a, &list_transfers, &req.base,
                  &tandem__v1__list_transfers_response__descriptor);
    TD_TRUE(a.n_last <= whole);
    TD_TRUE(s->n_transfers >= 3 && s->n_transfers < 6);
    TD_EQ(106, s->n_transfers + s->omitted);
    for (uint32_t i = 0, seen = 0; i < 3; i++) { /* of every worker some */
        for (size_t k = 0; k < s->n_transfers; k++)
            seen += strcmp(s->transfers[k]->worker, world_decode(&w, i)->address) == 0;
        TD_TRUE(seen > i);
    }
    tandem__v1__list_transfers_response__free_unpacked(s, NULL);
    free(a.last);
    world_close(&w);
}

TEST(admin_answers_and_what_is_asked_of_workers_carry_the_request_id)
{
    static const char *const paths[] = {"/tandem.v1.Admin/GetStatus", "/tandem.v1.Admin/ListLinks",
                                        "/tandem.v1.Admin/ListTransfers"};
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true});
    for (size_t i = 0; i < 3; i++) {
        asking_how how = {.path = paths[i], .request_id = "list-7"};
        ask_bytes(&w, &a, &how, "", 0);
        answered(&w, &a);
        TD_EQ(TD_GRPC_OK, a.status);
        TD_STR("list-7", a.request_id);
        free(a.last);
        how.request_id = NULL;
        ask_bytes(&w, &a, &how, "", 0);
        answered(&w, &a);
        TD_EQ(32, strlen(a.request_id)); /* one that was made */
        free(a.last);
        how.request_id = "two words";
        ask_bytes(&w, &a, &how, "", 0);
        answered(&w, &a);
        TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
    }
    asking_how how = {.path = paths[2], .request_id = "list-8"};
    ask_bytes(&w, &a, &how, "", 0);
    answered(&w, &a);
    TD_STR("list-8", world_decode(&w, 0)->list_id);
    TD_STR("list-8", world_prefill(&w, 0)->list_id);
    free(a.last);
    world_close(&w);
}

TEST(a_cancelled_list_leaves_nothing)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true, .heartbeat_timeout_ms = 5000});
    world_decode(&w, 0)->silent = true;
    Tandem__V1__ListLinksRequest req = TANDEM__V1__LIST_LINKS_REQUEST__INIT;
    ask(&w, &a, &list_links, &req.base);
    world_run_ms(&w, 50);
    td_rpc_request_cancel(a.req);
    world_run_ms(&w, 50);
    world_close(&w);
}

TEST(health_follows_the_router)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true});
    Grpc__Health__V1__HealthCheckRequest req = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    asking_how check = {.path = "/grpc.health.v1.Health/Check"};
    Grpc__Health__V1__HealthCheckResponse *res =
        ask_admin(&w, &a, &check, &req.base, &grpc__health__v1__health_check_response__descriptor);
    TD_EQ(GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING, res->status);
    grpc__health__v1__health_check_response__free_unpacked(res, NULL);
    free(a.last);
    asking watch;
    asking_how how = {.path = "/grpc.health.v1.Health/Watch"};
    ask(&w, &watch, &how, &req.base);
    RUN_UNTIL(&w, watch.n_messages == 1);
    td_health_set(&w.health, true);
    RUN_UNTIL(&w, watch.n_messages == 2);
    td_rpc_request_cancel(watch.req);
    free(watch.last);
    req.service = (char *)"no.such.Service";
    ask(&w, &a, &check, &req.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_NOT_FOUND, a.status);
    world_close(&w);
}

TEST(a_known_message_has_no_extensions_an_unknown_one_is_not_found)
{
    static const struct {
        const char *type;
        bool known;
    } rows[] = {{"tandem.v1.GenerateRequest", true},
                {"tandem.v1.Inference", false},
                {"tandem.v1.GenerateRequest.no_such", false},
                {"no.such.Type", false}};
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true});
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        Grpc__Reflection__V1__ServerReflectionRequest req =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
        req.message_request_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE;
        req.all_extension_numbers_of_type = (char *)rows[i].type;
        asking_how how = {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"};
        Grpc__Reflection__V1__ServerReflectionResponse *res = ask_admin(
            &w, &a, &how, &req.base, &grpc__reflection__v1__server_reflection_response__descriptor);
        if (rows[i].known) {
            TD_EQ(
                GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE,
                res->message_response_case);
            TD_STR(rows[i].type, res->all_extension_numbers_response->base_type_name);
            TD_EQ(0, res->all_extension_numbers_response->n_extension_number);
        } else {
            TD_EQ(GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE,
                  res->message_response_case);
            TD_EQ(TD_GRPC_NOT_FOUND, res->error_response->error_code);
        }
        grpc__reflection__v1__server_reflection_response__free_unpacked(res, NULL);
        free(a.last);
    }
    world_close(&w);
}

TEST(reflection_finds_the_service_by_symbol)
{
    world w;
    asking a;
    world_open(&w, &(world_conf){.front = true});
    Grpc__Reflection__V1__ServerReflectionRequest req =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    req.message_request_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
    req.file_containing_symbol = (char *)"tandem.v1.Inference";
    asking_how how = {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"};
    Grpc__Reflection__V1__ServerReflectionResponse *res = ask_admin(
        &w, &a, &how, &req.base, &grpc__reflection__v1__server_reflection_response__descriptor);
    TD_EQ(
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE,
        res->message_response_case);
    TD_TRUE(res->file_descriptor_response->n_file_descriptor_proto >= 1);
    grpc__reflection__v1__server_reflection_response__free_unpacked(res, NULL);
    free(a.last);
    world_close(&w);
}
