/* Tokenize, Detokenize and GetModel from a client's side. */
#include "tests/router/asking.h"

TD_TEST_MAIN

static const world_conf with_front = {.front = true};

TEST(tokenize_and_detokenize_are_inverse)
{
    world w;
    asking a;
    char text[20000];
    world_open(&w, &with_front);
    for (size_t n = 0; n < 2; n++) { /* on the loop, and on the thread pool */
        size_t len = n == 0 ? 100 : sizeof(text) - 1;
        for (size_t i = 0; i < len; i++)
            text[i] = "the light, and "[i % 15];
        text[len] = '\0';
        Tandem__V1__TokenizeRequest req = TANDEM__V1__TOKENIZE_REQUEST__INIT;
        req.text = text;
        req.no_special = n == 1;
        ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Tokenize", NULL, 0}, &req.base);
        answered(&w, &a);
        TD_EQ(TD_GRPC_OK, a.status);
        Tandem__V1__TokenizeResponse *res =
            tandem__v1__tokenize_response__unpack(NULL, a.n_last, a.last);
        TD_EQ(n == 0, res->token_ids[0] == w.model.bos_id);
        free(a.last);
        Tandem__V1__DetokenizeRequest back = TANDEM__V1__DETOKENIZE_REQUEST__INIT;
        back.token_ids = res->token_ids;
        back.n_token_ids = res->n_token_ids;
        ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Detokenize", NULL, 0}, &back.base);
        answered(&w, &a);
        TD_EQ(TD_GRPC_OK, a.status);
        Tandem__V1__DetokenizeResponse *again =
            tandem__v1__detokenize_response__unpack(NULL, a.n_last, a.last);
        TD_STR(text, again->text);
        tandem__v1__detokenize_response__free_unpacked(again, NULL);
        tandem__v1__tokenize_response__free_unpacked(res, NULL);
        free(a.last);
    }
    world_close(&w);
}

TEST(a_cancelled_tokenize_leaves_nothing)
{
    static char text[100000];
    world w;
    asking a;
    world_open(&w, &with_front);
    memset(text, 'x', sizeof(text) - 1);
    Tandem__V1__TokenizeRequest req = TANDEM__V1__TOKENIZE_REQUEST__INIT;
    req.text = text;
    for (int i = 0; i < 5; i++) {
        ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Tokenize", NULL, 0}, &req.base);
        world_run_ms(&w, i);
        td_rpc_request_cancel(a.req);
        free(a.last);
    }
    Tandem__V1__GenerateRequest gen = TANDEM__V1__GENERATE_REQUEST__INIT;
    gen.input_case = TANDEM__V1__GENERATE_REQUEST__INPUT_TEXT;
    gen.text = text;
    ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Generate", NULL, 0}, &gen.base);
    RUN_UNTIL(&w, a.req == NULL || world_gauge(&w, "tandem_calls_active") == 1);
    td_rpc_request_cancel(a.req); /* or it was refused already: more tokens than the context */
    free(a.last);
    RUN_UNTIL(&w, world_gauge(&w, "tandem_calls_active") == 0);
    world_close(&w);
}

TEST(texts_and_ids_that_cannot_be_converted_are_refused)
{
    world w;
    asking a;
    world_open(&w, &with_front);
    Tandem__V1__TokenizeRequest req = TANDEM__V1__TOKENIZE_REQUEST__INIT;
    req.text = (char *)"\xc0";
    ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Tokenize", NULL, 0}, &req.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
    req.text = (char *)"x";
    req.model = (char *)"other";
    ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Tokenize", NULL, 0}, &req.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_NOT_FOUND, a.status);
    Tandem__V1__DetokenizeRequest back = TANDEM__V1__DETOKENIZE_REQUEST__INIT;
    uint32_t wild = 1U << 31;
    back.token_ids = &wild;
    back.n_token_ids = 1;
    ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Detokenize", NULL, 0}, &back.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
    back.n_token_ids = 0; /* of nothing: nothing */
    ask(&w, &a, &(asking_how){"/tandem.v1.Inference/Detokenize", NULL, 0}, &back.base);
    answered(&w, &a);
    TD_EQ(TD_GRPC_OK, a.status);
    TD_EQ(0, a.n_last);
    free(a.last);
    world_close(&w);
}

TEST(the_model_and_its_limits_are_told)
{
    world w;
    asking a;
    world_open(&w, &with_front);
    Tandem__V1__GetModelRequest req = TANDEM__V1__GET_MODEL_REQUEST__INIT;
    ask(&w, &a, &(asking_how){"/tandem.v1.Inference/GetModel", NULL, 0}, &req.base);
    answered(&w, &a);
    Tandem__V1__GetModelResponse *res =
        tandem__v1__get_model_response__unpack(NULL, a.n_last, a.last);
    TD_STR("tiny-v32", res->model);
    TD_EQ(8192, res->context_length);
    TD_EQ(w.model.vocab_size, res->vocab_size);
    TD_EQ(100, res->default_max_tokens);
    TD_TRUE(res->has_tokenizer);
    TD_EQ(w.model.n_eos, res->n_eos_token_ids);
    tandem__v1__get_model_response__free_unpacked(res, NULL);
    free(a.last);
    world_close(&w);
}

TEST(every_answer_carries_the_request_id)
{
    static const char *const methods[] = {"Tokenize", "Detokenize", "GetModel"};
    world w;
    asking a;
    char path[64];
    world_open(&w, &with_front);
    for (size_t i = 0; i < 3; i++) {
        Tandem__V1__TokenizeRequest text = TANDEM__V1__TOKENIZE_REQUEST__INIT;
        Tandem__V1__GetModelRequest none = TANDEM__V1__GET_MODEL_REQUEST__INIT;
        text.text = (char *)"x";
        const ProtobufCMessage *req = i == 0 ? &text.base : &none.base;
        snprintf(path, sizeof(path), "/tandem.v1.Inference/%s", methods[i]);
        asking_how how = {.path = path, .request_id = "job-5"};
        ask(&w, &a, &how, req);
        answered(&w, &a);
        TD_EQ(TD_GRPC_OK, a.status);
        TD_STR("job-5", a.request_id);
        free(a.last);
        how.request_id = NULL;
        ask(&w, &a, &how, req);
        answered(&w, &a);
        TD_EQ(32, strlen(a.request_id)); /* one that was made */
        free(a.last);
        how.request_id = "job-6"; /* a refusal's as well */
        ask_bytes(&w, &a, &how, "\xff", 1);
        answered(&w, &a);
        TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
        TD_STR("job-6", a.request_id);
        how.request_id = "two words";
        ask(&w, &a, &how, req);
        answered(&w, &a);
        TD_EQ(TD_GRPC_INVALID_ARGUMENT, a.status);
        TD_EQ(32, strlen(a.request_id));
    }
    world_close(&w);
}
