/* Who waits, who is refused, and what ends a wait. */
#include "tests/router/probe.h"

TD_TEST_MAIN

TEST(who_finds_no_room_waits_in_order)
{
    world w;
    probe p[3];
    world_open(&w, &(world_conf){.max_requests = 1});
    for (uint32_t i = 0; i < 3; i++)
        TD_EQ(TD_OK, submit(&w, &p[i], 10 + i, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    world_run_ms(&w, 50);
    TD_EQ(1, world_n_calls(&w));
    TD_EQ(2, world_gauge(&w, "tandem_requests_queued"));
    TD_EQ(3, world_gauge(&w, "tandem_requests_active"));
    for (uint32_t i = 0; i < 3; i++) {
        c = started(&w, i);
        TD_EQ(10 + i, c->request->n_token_ids);
        fake_finish(c, "stop");
        RUN_UNTIL(&w, p[i].r == NULL);
        TD_STR("stop", p[i].outcome.finish_reason);
    }
    world_close(&w);
}

TEST(a_large_request_is_not_overtaken)
{
    world w;
    probe running, large, small;
    world_open(&w, &(world_conf){.pages = 10});
    TD_EQ(TD_OK, submit(&w, &running, 64 * 5, 1, 5000, NULL));
    fake_call *c = started(&w, 0);
    TD_EQ(TD_OK, submit(&w, &large, 64 * 8, 1, 5000, NULL)); /* waits for pages */
    TD_EQ(TD_OK, submit(&w, &small, 1, 1, 5000, NULL));      /* would fit */
    world_run_ms(&w, 50);
    TD_EQ(1, world_n_calls(&w));
    fake_finish(c, "stop");
    c = started(&w, 1);
    TD_EQ(64 * 8, c->request->n_token_ids);
    started(&w, 2);
    td_dispatch_cancel(w.dispatch, large.r);
    td_dispatch_cancel(w.dispatch, small.r);
    world_close(&w);
}

TEST(a_full_queue_refuses)
{
    world w;
    probe p[4];
    td_err err = {0};
    world_open(&w, &(world_conf){.max_requests = 1, .queue_length = 2});
    TD_EQ(TD_OK, submit(&w, &p[0], 10, 10, 5000, NULL));
    started(&w, 0);
    TD_EQ(TD_OK, submit(&w, &p[1], 10, 10, 5000, NULL));
    TD_EQ(TD_OK, submit(&w, &p[2], 10, 10, 5000, NULL));
    TD_EQ(TD_EXHAUSTED, submit(&w, &p[3], 10, 10, 5000, &err));
    TD_STR("no room now, and the queue of 2 requests is full", err.text);
    for (int i = 0; i < 3; i++)
        td_dispatch_cancel(w.dispatch, p[i].r);
    world_close(&w);
}

TEST(without_a_queue_a_request_runs_or_is_refused)
{
    world w;
    probe p[2];
    td_err err = {0};
    world_open(&w, &(world_conf){.max_requests = 1, .queue_length = NO_QUEUE});
    TD_EQ(TD_OK, submit(&w, &p[0], 10, 10, 5000, NULL));
    started(&w, 0);
    TD_EQ(TD_EXHAUSTED, submit(&w, &p[1], 10, 10, 5000, &err));
    td_dispatch_cancel(w.dispatch, p[0].r);
    world_close(&w);
}

TEST(more_than_the_table_holds_is_refused)
{
    world w;
    probe p[3];
    td_err err = {0};
    world_open(&w, &(world_conf){.router_max_requests = 2});
    for (int i = 0; i < 2; i++)
        TD_EQ(TD_OK, submit(&w, &p[i], 10, 10, 5000, NULL));
    TD_EQ(TD_EXHAUSTED, submit(&w, &p[2], 10, 10, 5000, &err));
    TD_STR("2 requests are active, the most there may be", err.text);
    for (int i = 0; i < 2; i++)
        td_dispatch_cancel(w.dispatch, p[i].r);
    world_close(&w);
}

TEST(what_can_never_fit_is_refused_with_the_numbers)
{
    world w;
    probe p;
    td_err err = {0};
    world_open(&w, &(world_conf){.pages = 4});
    TD_EQ(TD_TOO_LARGE, submit(&w, &p, 200, 100, 5000, &err));
    TD_STR("can never fit: needs 5 KV pages (200 prompt + 100 max_tokens) of a decode daemon, the "
           "largest has 4",
           err.text);
    TD_EQ(TD_OK, submit(&w, &p, 200, 56, 5000, &err)); /* exactly 4 */
    started(&w, 0);
    td_dispatch_cancel(w.dispatch, p.r);
    world_close(&w);
}

TEST(a_queued_request_ends_when_the_workers_that_become_known_are_too_small)
{
    world w;
    probe large, small;
    world_open(&w, &(world_conf){.worker_wait_ms = 8000});
    fake_worker *f = world_prefill(&w, 0);
    f->state = "starting";
    resize(&w, f, 4);
    TD_EQ(TD_OK, submit(&w, &large, 300, 10, 9000, NULL)); /* nobody to ask yet */
    TD_EQ(TD_OK, submit(&w, &small, 10, 10, 9000, NULL));
    world_run_ms(&w, 50);
    TD_TRUE(large.r != NULL && small.r != NULL);
    f->state = "ready";
    int64_t since = td_now_ns();
    TD_EQ(10, started(&w, 0)->request->n_token_ids); /* the one behind it runs */
    TD_TRUE(ended_within(&large, since, 3000));
    TD_EQ(TD_GRPC_OUT_OF_RANGE, large.outcome.status);
    TD_STR("can never fit: needs 5 KV pages (300 prompt + 10 max_tokens) of a prefill daemon, the "
           "largest has 4",
           large.outcome.message);
    td_dispatch_cancel(w.dispatch, small.r);
    world_close(&w);
}

TEST(a_queued_request_ends_when_the_only_worker_large_enough_dies_or_shrinks)
{
    static const uint32_t id = 1;
    for (int dies = 0; dies < 2; dies++) {
        world w;
        probe running, large, small;
        world_open(&w, &(world_conf){.n_decode = 2, .n_prefill = 2, .max_requests = 1});
        resize(&w, world_decode(&w, 1), 4);
        TD_EQ(TD_OK, submit(&w, &running, 600, 10, 9000, NULL));
        fake_call *c = started(&w, 0);
        TD_TRUE(c->worker == world_decode(&w, 0));
        fake_send(c, &id, 1);
        RUN_UNTIL(&w, running.n_ids == 1);
        TD_EQ(TD_OK, submit(&w, &large, 300, 10, 9000, NULL)); /* waits for the first */
        TD_EQ(TD_OK, submit(&w, &small, 10, 10, 9000, NULL));
        world_run_ms(&w, 50);
        TD_EQ(1, world_n_calls(&w));
        int64_t since = td_now_ns();
        if (dies)
            fake_kill(world_decode(&w, 0));
        else
            world_decode(&w, 0)->pages = 4;
        RUN_UNTIL(&w, large.r == NULL);
        TD_TRUE(ended_within(&large, since, 3000));
        TD_EQ(TD_GRPC_OUT_OF_RANGE, large.outcome.status);
        TD_TRUE(strstr(large.outcome.message, "needs 5 KV pages") != NULL);
        TD_TRUE(strstr(large.outcome.message, "the largest has 4") != NULL);
        RUN_UNTIL(&w, world_decode(&w, 1)->n_calls == 1); /* no longer held up */
        td_dispatch_cancel(w.dispatch, small.r);
        if (running.r != NULL)
            td_dispatch_cancel(w.dispatch, running.r);
        world_close(&w);
    }
}

TEST(arrivals_of_one_turn_run_without_a_queue_when_there_is_room)
{
    world w;
    probe p[3];
    td_err err = {0};
    world_open(&w, &(world_conf){.max_requests = 2, .queue_length = NO_QUEUE});
    TD_EQ(TD_OK, submit(&w, &p[0], 10, 10, 5000, NULL));
    TD_EQ(TD_OK, submit(&w, &p[1], 11, 10, 5000, NULL));
    TD_EQ(TD_EXHAUSTED, submit(&w, &p[2], 12, 10, 5000, &err));
    started(&w, 1);
    for (int i = 0; i < 2; i++)
        td_dispatch_cancel(w.dispatch, p[i].r);
    world_close(&w);
}

TEST(a_request_out_of_time_in_the_queue_ends_with_resource_exhausted)
{
    world w;
    probe first, p;
    world_open(&w, &(world_conf){.max_requests = 1});
    TD_EQ(TD_OK, submit(&w, &first, 10, 10, 5000, NULL));
    started(&w, 0);
    int64_t since = td_now_ns();
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 300, NULL));
    RUN_UNTIL(&w, p.r == NULL);
    int64_t took_ms = (p.ended_ns - since) / TD_NS_PER_MS;
    TD_TRUE(took_ms >= 299 && took_ms < 1300);
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, p.outcome.status);
    TD_TRUE(strncmp(p.outcome.message, "no room: waited 0.3", 19) == 0);
    td_dispatch_cancel(w.dispatch, first.r);
    world_close(&w);
}

TEST(without_a_ready_pair_a_request_waits_a_while_then_is_unavailable)
{
    world w;
    probe p;
    world_open(&w, NULL);
    fake_worker *f = world_prefill(&w, 0);
    f->state = "starting";
    RUN_UNTIL(&w, !td_worker_ready(world_registered(&w, f)));
    int64_t since = td_now_ns();
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    RUN_UNTIL(&w, p.r == NULL);
    int64_t took_ms = (p.ended_ns - since) / TD_NS_PER_MS;
    TD_TRUE(took_ms >= 199 && took_ms < 1500);
    TD_EQ(TD_GRPC_UNAVAILABLE, p.outcome.status);
    TD_STR("no prefill daemon is ready", p.outcome.message);
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    f->state = "ready"; /* in time */
    fake_finish(started(&w, 0), "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(queued_requests_end_when_the_last_worker_is_lost)
{
    world w;
    probe running, queued;
    world_open(&w, &(world_conf){.max_requests = 1});
    TD_EQ(TD_OK, submit(&w, &running, 10, 10, 9000, NULL));
    started(&w, 0);
    TD_EQ(TD_OK, submit(&w, &queued, 10, 10, 9000, NULL));
    world_run_ms(&w, 250); /* past the wait for workers: it waits for room */
    int64_t since = td_now_ns();
    fake_kill(world_decode(&w, 0));
    RUN_UNTIL(&w, running.r == NULL && queued.r == NULL);
    TD_TRUE(td_now_ns() - since < 2 * TD_NS_PER_S);
    TD_EQ(TD_GRPC_UNAVAILABLE, queued.outcome.status);
    world_close(&w);
}
