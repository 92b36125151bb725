/* A record's way: queue, pair, once more on another pair, end; nothing is left behind. */
#include "tests/router/world.h"

TD_TEST_MAIN

typedef struct {
    td_record *r; /* NULL: ended */
    bool show;    /* as a front that shows every token at once */
    uint32_t ids[64], n_ids;
    td_outcome outcome;
    int64_t ended_ns;
} probe;

static void on_tokens(td_record *r, const uint32_t *ids, uint32_t n)
{
    probe *p = r->user;
    memcpy(p->ids + p->n_ids, ids, n * sizeof(*ids));
    p->n_ids += n;
    r->streamed = p->show;
}

static void on_end(td_record *r, const td_outcome *outcome)
{
    probe *p = r->user;
    p->outcome = *outcome;
    p->ended_ns = td_now_ns();
    p->r = NULL;
}

static td_status submit(world *w, probe *p, uint32_t n_prompt, uint32_t max_tokens,
                        int64_t deadline_ms, td_err *err)
{
    td_record *r = calloc(1, sizeof(*r));
    memset(p, 0, sizeof(*p));
    p->show = true;
    snprintf(r->id, sizeof(r->id), "req-%u", n_prompt);
    r->prompt = calloc(n_prompt, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_prompt; i++)
        r->prompt[i] = i;
    r->n_prompt = n_prompt;
    r->max_tokens = max_tokens;
    r->sampling = (td_record_sampling){
        .temperature = 0.5f, .top_p = 0.9f, .top_k = 4, .min_tokens = 2, .seed = 99};
    r->arrived_ns = td_now_ns();
    r->deadline_ns = r->arrived_ns + deadline_ms * TD_NS_PER_MS;
    r->on_tokens = on_tokens;
    r->on_end = on_end;
    r->user = p;
    td_status st = td_dispatch_submit(w->dispatch, r, err);
    p->r = st == TD_OK ? r : NULL;
    return st;
}

static fake_call *started(world *w, uint32_t i)
{
    RUN_UNTIL(w, world_n_calls(w) > i);
    return world_call(w, i);
}

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
