/* A record's way: pair, stream, once more on another pair, end; nothing is left behind. */
#include "tests/router/probe.h"

TD_TEST_MAIN

TEST(a_request_runs_on_a_pair_and_ends)
{
    static const uint32_t ids[] = {5, 6, 7};
    world w;
    probe p;
    world_open(&w, NULL);
    TD_EQ(TD_OK, submit(&w, &p, 70, 20, 5000, NULL));
    fake_call *c = started(&w, 0);
    TD_EQ(1, world_gauge(&w, "tandem_requests_active"));
    TD_EQ(1, world_gauge(&w, "tandem_streams_open"));
    TD_EQ(2, world_registered(&w, world_decode(&w, 0))->claimed.pages); /* 90 tokens of 64 each */
    TD_EQ(2, world_registered(&w, world_prefill(&w, 0))->claimed.pages);
    TD_STR("req-70", c->request_id);
    TD_STR("req-70", c->request->request_id);
    TD_EQ(70, c->request->n_token_ids);
    TD_EQ(69, c->request->token_ids[69]);
    TD_EQ(20, c->request->max_tokens);
    TD_EQ(99, c->request->sampling->seed);
    TD_EQ(2, c->request->sampling->min_tokens);
    TD_STR(world_prefill(&w, 0)->address, c->request->prefill_address);
    TD_STR(world_prefill(&w, 0)->incarnation, c->request->prefill_incarnation);
    fake_send(c, ids, 1);
    RUN_UNTIL(&w, p.n_ids == 1);
    TD_TRUE(p.r->first_token_ns != 0 && p.r->prefill_s == 0.002);
    fake_send(c, ids + 1, 2);
    fake_finish(c, "length");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    TD_STR("length", p.outcome.finish_reason);
    TD_EQ(3, p.n_ids);
    world_close(&w);
}

TEST(drafts_are_part_of_the_claim)
{
    world w;
    probe p;
    world_open(&w, NULL);
    world_decode(&w, 0)->drafts = 4;
    td_worker *d = world_registered(&w, world_decode(&w, 0));
    RUN_UNTIL(&w, d->status->drafts == 4);
    TD_EQ(TD_OK, submit(&w, &p, 60, 2, 5000, NULL));
    started(&w, 0);
    TD_EQ(2, d->claimed.pages); /* 60 + 2 + 4 */
    TD_EQ(1, world_registered(&w, world_prefill(&w, 0))->claimed.pages);
    td_dispatch_cancel(w.dispatch, p.r);
    world_close(&w);
}

TEST(prefill_has_room_again_when_the_first_token_came)
{
    static const uint32_t id = 4;
    world w;
    probe p[2];
    world_open(&w, &(world_conf){.n_decode = 2, .max_requests = 1});
    TD_EQ(TD_OK, submit(&w, &p[0], 10, 10, 5000, NULL));
    TD_EQ(TD_OK, submit(&w, &p[1], 10, 10, 5000, NULL)); /* the one prefill is taken */
    fake_call *c = started(&w, 0);
    world_run_ms(&w, 50);
    TD_EQ(1, world_n_calls(&w));
    fake_send(c, &id, 1);
    started(&w, 1); /* while the first still runs */
    TD_EQ(1, world_registered(&w, world_prefill(&w, 0))->n_claims);
    for (int i = 0; i < 2; i++)
        td_dispatch_cancel(w.dispatch, p[i].r);
    world_close(&w);
}

TEST(cancelling_frees_claims_and_tells_decode)
{
    world w;
    probe p, queued;
    world_open(&w, &(world_conf){.max_requests = 1});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    TD_EQ(TD_OK, submit(&w, &queued, 10, 10, 5000, NULL));
    td_dispatch_cancel(w.dispatch, queued.r); /* one that waits */
    TD_EQ(1, td_dispatch_active(w.dispatch));
    td_dispatch_cancel(w.dispatch, p.r); /* one that runs */
    TD_EQ(0, td_dispatch_active(w.dispatch));
    TD_EQ(0, world_registered(&w, world_decode(&w, 0))->n_claims);
    RUN_UNTIL(&w, c->cancelled);
    TD_EQ(TD_GRPC_CANCELLED, c->why);
    world_close(&w);
}

TEST(a_lost_decode_means_one_more_try_on_another)
{
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_decode = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    fake_worker *lost = c->worker;
    fake_kill(lost);
    fake_call *again = started(&w, 1);
    RUN_UNTIL(&w, again->call != NULL || c->call == NULL);
    fake_worker *other = lost == world_decode(&w, 0) ? world_decode(&w, 1) : world_decode(&w, 0);
    TD_EQ(1, other->n_calls);
    fake_finish(&other->calls[0], "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    TD_EQ(1, td_metric_value(
                 td_metrics_get(w.metrics, TD_COUNTER, "tandem_requests_retried_total", "", "")));
    world_close(&w);
}

TEST(a_lost_request_that_fits_on_no_other_decode_is_unavailable_at_once)
{
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_decode = 2});
    resize(&w, world_decode(&w, 1), 4);
    TD_EQ(TD_OK, submit(&w, &p, 300, 10, 9000, NULL));
    TD_TRUE(started(&w, 0)->worker == world_decode(&w, 0));
    int64_t since = td_now_ns();
    fake_kill(world_decode(&w, 0));
    RUN_UNTIL(&w, p.r == NULL);
    TD_TRUE(ended_within(&p, since, 2000));
    TD_EQ(TD_GRPC_UNAVAILABLE, p.outcome.status);
    TD_EQ(0, strncmp(p.outcome.message, "decode daemon 127.0.0.1:", 24)); /* what was lost */
    TD_TRUE(strstr(p.outcome.message, "needs 5 KV pages") != NULL);
    TD_TRUE(strstr(p.outcome.message, "of another decode daemon, the largest has 4") != NULL);
    world_close(&w);
}

TEST(a_lost_request_waits_while_the_other_pair_is_merely_full)
{
    world w;
    probe p[2];
    world_open(&w, &(world_conf){.n_decode = 2, .n_prefill = 2, .max_requests = 1});
    for (int i = 0; i < 2; i++)
        TD_EQ(TD_OK, submit(&w, &p[i], 10 + (uint32_t)i, 10, 9000, NULL));
    started(&w, 1);
    fake_worker *lost = world_call(&w, 0)->worker;
    uint32_t first = world_call(&w, 0)->request->n_token_ids - 10;
    fake_call *other = world_call(&w, 1);
    fake_kill(lost);
    world_run_ms(&w, 400); /* past the wait for workers */
    TD_TRUE(p[first].r != NULL && p[first].r->state == TD_RECORD_QUEUED);
    fake_finish(other, "stop");
    RUN_UNTIL(&w, other->worker->n_calls == 2);
    fake_finish(&other->worker->calls[1], "stop");
    RUN_UNTIL(&w, p[0].r == NULL && p[1].r == NULL);
    TD_EQ(TD_GRPC_OK, p[first].outcome.status);
    world_close(&w);
}

TEST(a_stopped_decode_means_one_more_try_on_another)
{
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_decode = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    fake_worker *lost = c->worker;
    lost->silent = true;
    started(&w, 1);
    fake_worker *other = lost == world_decode(&w, 0) ? world_decode(&w, 1) : world_decode(&w, 0);
    RUN_UNTIL(&w, other->n_calls == 1);
    fake_finish(&other->calls[0], "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(a_lost_prefill_leaves_that_prefill_out)
{
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_prefill = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    char first[64];
    snprintf(first, sizeof(first), "%s", c->request->prefill_address);
    fake_fail(c, TD_GRPC_UNAVAILABLE, "prefill", "prefill is gone");
    c = started(&w, 1);
    TD_TRUE(strcmp(first, c->request->prefill_address) != 0);
    fake_finish(c, "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(after_two_attempts_it_is_unavailable)
{
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_prefill = 3});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    for (uint32_t i = 0; i < 2; i++)
        fake_fail(started(&w, i), TD_GRPC_UNAVAILABLE, "prefill", "prefill is gone");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_UNAVAILABLE, p.outcome.status);
    TD_STR("prefill is gone", p.outcome.message);
    world_close(&w);
}

TEST(a_lost_decode_without_another_is_unavailable_at_once)
{
    world w;
    probe p;
    world_open(&w, NULL);
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    started(&w, 0);
    int64_t since = td_now_ns();
    fake_kill(world_decode(&w, 0));
    RUN_UNTIL(&w, p.r == NULL);
    TD_TRUE(p.ended_ns - since < 2 * TD_NS_PER_S);
    TD_EQ(TD_GRPC_UNAVAILABLE, p.outcome.status);
    TD_TRUE(strstr(p.outcome.message, "no other decode daemon is ready") != NULL);
    world_close(&w);
}

TEST(a_stream_that_was_seen_is_not_started_again)
{
    static const uint32_t id = 3;
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_decode = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    fake_send(c, &id, 1);
    RUN_UNTIL(&w, p.n_ids == 1);
    int64_t since = td_now_ns();
    fake_kill(c->worker);
    RUN_UNTIL(&w, p.r == NULL);
    TD_TRUE(p.ended_ns - since < 2 * TD_NS_PER_S);
    TD_EQ(TD_GRPC_UNAVAILABLE, p.outcome.status);
    TD_EQ(1, world_n_calls(&w));
    world_close(&w);
}

TEST(tokens_that_nobody_saw_do_not_forbid_another_try)
{
    static const uint32_t id = 3;
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_decode = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    p.show = false;
    fake_call *c = started(&w, 0);
    fake_send(c, &id, 1);
    RUN_UNTIL(&w, p.n_ids == 1);
    fake_worker *lost = c->worker;
    fake_kill(lost);
    started(&w, 1);
    fake_worker *other = lost == world_decode(&w, 0) ? world_decode(&w, 1) : world_decode(&w, 0);
    fake_send(&other->calls[0], &id, 1);
    fake_finish(&other->calls[0], "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(a_worker_that_says_it_is_full_is_asked_again_later)
{
    world w;
    probe p;
    world_open(&w, NULL);
    fake_worker *d = world_decode(&w, 0);
    d->refuse_room = true;
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    RUN_UNTIL(&w, d->n_calls >= 3); /* after each heartbeat */
    TD_TRUE(p.r != NULL);
    d->refuse_room = false;
    uint32_t n = d->n_calls;
    RUN_UNTIL(&w, d->n_calls > n || d->calls[d->n_calls - 1].call != NULL);
    fake_finish(&d->calls[d->n_calls - 1], "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(other_failures_are_handed_on)
{
    world w;
    probe p;
    world_open(&w, &(world_conf){.n_decode = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_fail(started(&w, 0), TD_GRPC_DATA_LOSS, "prefill", "page 3 was damaged twice");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_DATA_LOSS, p.outcome.status);
    TD_STR("page 3 was damaged twice", p.outcome.message);
    TD_EQ(1, world_n_calls(&w));
    world_close(&w);
}

TEST(a_decode_that_breaks_the_protocol_ends_the_request)
{
    static const uint32_t ids[11];
    world w;
    probe p;
    world_open(&w, NULL);
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    fake_send(c, ids, 11); /* one too many */
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_INTERNAL, p.outcome.status);
    RUN_UNTIL(&w, c->cancelled);
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    c = started(&w, 1);
    td_rpc_call_send(c->call, "\xff\xff", 2); /* no message at all */
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_INTERNAL, p.outcome.status);
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    c = started(&w, 2);
    td_rpc_call_finish(c->call, TD_GRPC_OK, NULL); /* no reason */
    c->call = NULL;
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_INTERNAL, p.outcome.status);
    world_close(&w);
}

TEST(a_draining_decode_finishes_what_it_has_and_gets_nothing_new)
{
    world w;
    probe p, next;
    world_open(&w, &(world_conf){.n_decode = 2});
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_call *c = started(&w, 0);
    c->worker->state = "draining";
    RUN_UNTIL(&w, !td_worker_ready(world_registered(&w, c->worker)));
    for (uint32_t i = 0; i < 3; i++) {
        TD_EQ(TD_OK, submit(&w, &next, 10, 10, 5000, NULL));
        RUN_UNTIL(&w, world_n_calls(&w) == 2 + i);
        TD_EQ(1, c->worker->n_calls);
        td_dispatch_cancel(w.dispatch, next.r);
    }
    fake_finish(c, "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(a_restarted_decode_serves_again)
{
    world w;
    probe p;
    world_open(&w, NULL);
    fake_worker *d = world_decode(&w, 0);
    fake_kill(d);
    RUN_UNTIL(&w, !world_registered(&w, d)->reachable);
    fake_start(d);
    RUN_UNTIL(&w, td_worker_ready(world_registered(&w, d)));
    TD_EQ(TD_OK, submit(&w, &p, 10, 10, 5000, NULL));
    fake_finish(started(&w, 0), "stop");
    RUN_UNTIL(&w, p.r == NULL);
    TD_EQ(TD_GRPC_OK, p.outcome.status);
    world_close(&w);
}

TEST(a_storm_of_requests_and_losses_leaves_nothing)
{
    enum { N = 12 };
    static const uint32_t id = 1;
    world w;
    probe p[N];
    world_open(&w,
               &(world_conf){.n_decode = 3, .n_prefill = 2, .max_requests = 2, .queue_length = 32});
    for (uint32_t i = 0; i < N; i++)
        TD_EQ(TD_OK, submit(&w, &p[i], 10 + i, 10, 2000, NULL));
    started(&w, 3);
    fake_send(world_call(&w, 0), &id, 1);
    fake_kill(world_decode(&w, 0));
    world_run_ms(&w, 30);
    fake_kill(world_decode(&w, 1));
    fake_start(world_decode(&w, 0));
    world_run_ms(&w, 30);
    for (uint32_t i = 0; i < N; i += 3)
        if (p[i].r != NULL)
            td_dispatch_cancel(w.dispatch, p[i].r), p[i].r = NULL;
    for (uint32_t i = 0; i < N; i++)
        while (p[i].r != NULL) {
            for (uint32_t k = 0; k < world_n_calls(&w); k++)
                if (world_call(&w, k)->call != NULL)
                    fake_finish(world_call(&w, k), "stop");
            world_run_ms(&w, 5);
        }
    world_close(&w);
}
