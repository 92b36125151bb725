/* Heartbeats, loss, restart, and who gets the next request. */
#include "tests/router/wire.h"
#include "tests/router/world.h"

TD_TEST_MAIN

static const td_claim small = {.pages = 1, .tokens = 10};
static const td_need little = {.n_prompt = 9, .max_tokens = 1};

TEST(a_worker_is_ready_when_its_heartbeat_says_so)
{
    world w;
    world_open(&w, NULL);
    fake_worker *f = world_decode(&w, 0);
    td_worker *worker = world_registered(&w, f);
    TD_STR("", worker->why);
    TD_STR(f->incarnation, worker->status->incarnation);
    TD_EQ(64, td_worker_total_pages(worker));
    f->state = "starting";
    RUN_UNTIL(&w, !td_worker_ready(worker));
    TD_TRUE(worker->reachable);
    world_close(&w);
}

TEST(a_draining_worker_gets_no_new_work)
{
    world w;
    world_open(&w, &(world_conf){.n_decode = 2});
    fake_worker *first = world_decode(&w, 0);
    first->state = "draining";
    RUN_UNTIL(&w, !td_worker_ready(world_registered(&w, first)));
    for (int i = 0; i < 3; i++)
        TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, little, NULL) ==
                world_registered(&w, world_decode(&w, 1)));
    TD_TRUE(!td_registry_any_ready(w.registry, TD_ROLE_DECODE,
                                   world_registered(&w, world_decode(&w, 1))));
    world_close(&w);
}

TEST(a_silent_worker_is_lost_within_the_heartbeats_deadline)
{
    world w;
    world_open(&w, NULL);
    fake_worker *f = world_decode(&w, 0);
    td_worker *worker = world_registered(&w, f);
    f->silent = true;
    int64_t since = td_now_ns();
    RUN_UNTIL(&w, !worker->reachable);
    int64_t took_ms = (td_now_ns() - since) / TD_NS_PER_MS;
    TD_TRUE(took_ms >= 100 && took_ms < 1500);
    TD_STR("no heartbeat for 150 ms", worker->why);
    f->silent = false;
    RUN_UNTIL(&w, td_worker_ready(worker));
    TD_STR("", worker->why);
    world_close(&w);
}

TEST(a_router_that_slept_reads_before_it_judges)
{
    world w;
    world_open(&w, NULL);
    td_worker *worker = world_registered(&w, world_decode(&w, 0));
    for (int i = 0; i < 8; i++) {
        td_sleep_ms(300); /* twice the heartbeat's deadline; its loop does nothing */
        for (int k = 0; k < 30; k++) {
            world_turn(&w);
            TD_TRUE(worker->reachable);
        }
    }
    world_close(&w);
}

TEST(a_killed_worker_is_lost_at_once_and_back_under_a_new_incarnation)
{
    world w;
    world_open(&w, NULL);
    fake_worker *f = world_decode(&w, 0);
    td_worker *worker = world_registered(&w, f);
    char before[17];
    memcpy(before, f->incarnation, sizeof(before));
    int64_t since = td_now_ns();
    fake_kill(f);
    RUN_UNTIL(&w, !worker->reachable);
    TD_TRUE(td_now_ns() - since < 2 * TD_NS_PER_S);
    TD_TRUE(worker->why[0] != '\0' && strstr(worker->why, "no heartbeat") == NULL);
    world_run_ms(&w, 300);
    fake_start(f);
    since = td_now_ns();
    RUN_UNTIL(&w, td_worker_ready(worker));
    TD_TRUE(td_now_ns() - since < 1500 * TD_NS_PER_MS); /* a restarted daemon serves within 2 s */
    TD_TRUE(strcmp(before, worker->status->incarnation) != 0);
    world_close(&w);
}

TEST(a_host_that_vanished_without_a_fin_is_used_again_when_it_is_back)
{
    world w;
    wire cable;
    world_open(&w, NULL);
    wire_open(&cable, world_decode(&w, 0)->port);
    TD_EQ(TD_OK, td_registry_add(w.registry, TD_ROLE_DECODE, cable.address, NULL));
    td_worker *worker = td_registry_worker(w.registry, td_registry_count(w.registry) - 1);
    RUN_UNTIL(&w, td_worker_ready(worker));
    wire_cut(&cable); /* the connection stands for ever, and nothing comes through */
    RUN_UNTIL(&w, !worker->reachable);
    world_run_ms(&w, 500);
    TD_TRUE(!worker->reachable);
    wire_mend(&cable); /* for new connections */
    int64_t since = td_now_ns();
    RUN_UNTIL(&w, td_worker_ready(worker));
    TD_TRUE(td_now_ns() - since < 10 * TD_NS_PER_S);
    world_close(&w);
    wire_close(&cable);
}

TEST(a_worker_of_the_other_role_is_not_used)
{
    world w;
    world_open(&w, NULL);
    fake_worker *f = world_decode(&w, 0);
    td_worker *worker = world_registered(&w, f);
    f->says_role = "prefill";
    RUN_UNTIL(&w, !worker->reachable);
    TD_STR("it is a prefill daemon, configured as decode", worker->why);
    world_close(&w);
}

TEST(the_least_loaded_worker_is_picked)
{
    world w;
    world_open(&w, &(world_conf){.n_decode = 3});
    td_worker *a = world_registered(&w, world_decode(&w, 0)),
              *b = world_registered(&w, world_decode(&w, 1)),
              *c = world_registered(&w, world_decode(&w, 2));
    td_worker_claim(a, small);
    td_worker_claim(b, (td_claim){1, 5});
    td_worker_claim(c, small);
    td_worker_claim(c, small);
    TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, little, NULL) == b); /* fewer tokens */
    TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, little, b) == a);
    world_decode(&w, 0)->active = world_decode(&w, 1)->active = 5; /* another router's */
    RUN_UNTIL(&w, a->status->requests_active == 5 && b->status->requests_active == 5);
    TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, little, NULL) == c);
    td_worker_unclaim(a, small);
    td_worker_unclaim(b, (td_claim){1, 5});
    td_worker_unclaim(c, small);
    td_worker_unclaim(c, small);
    world_close(&w);
}

TEST(equal_workers_take_turns)
{
    world w;
    world_open(&w, &(world_conf){.n_decode = 2});
    td_worker *first = td_registry_pick(w.registry, TD_ROLE_DECODE, little, NULL);
    td_worker_claim(first, small);
    td_worker_unclaim(first, small);
    TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, little, NULL) != first);
    world_close(&w);
}

TEST(room_is_pages_and_requests)
{
    world w;
    world_open(&w, &(world_conf){.pages = 10, .max_requests = 2});
    td_worker *d = world_registered(&w, world_decode(&w, 0));
    TD_TRUE(td_worker_has_room(d, (td_claim){10, 1}));
    TD_TRUE(!td_worker_has_room(d, (td_claim){11, 1}));
    td_worker_claim(d, (td_claim){4, 1});
    TD_TRUE(td_worker_has_room(d, (td_claim){6, 1}));
    TD_TRUE(!td_worker_has_room(d, (td_claim){7, 1}));
    td_worker_claim(d, (td_claim){1, 1});
    TD_TRUE(!td_worker_has_room(d, (td_claim){1, 1})); /* two requests */
    td_worker_unclaim(d, (td_claim){4, 1});
    td_worker_unclaim(d, (td_claim){1, 1});
    d->full = true; /* it said so */
    TD_TRUE(!td_worker_has_room(d, small));
    RUN_UNTIL(&w, td_worker_has_room(d, small)); /* until its next heartbeat */
    world_close(&w);
}

TEST(page_size_and_drafts_are_the_workers_own)
{
    const td_need need = {.n_prompt = 100, .max_tokens = 25};
    world w;
    world_open(&w, &(world_conf){.pages = 3, .n_decode = 2});
    td_worker *p = world_registered(&w, world_prefill(&w, 0)),
              *a = world_registered(&w, world_decode(&w, 0)),
              *b = world_registered(&w, world_decode(&w, 1));
    uint64_t changes = td_registry_changes(w.registry);
    world_run_ms(&w, 60);
    TD_EQ(changes, td_registry_changes(w.registry)); /* a heartbeat alone is no news */
    world_decode(&w, 0)->drafts = 4;
    world_decode(&w, 1)->page_tokens = 32;
    RUN_UNTIL(&w, a->status->drafts == 4 && b->status->page_tokens == 32);
    TD_TRUE(td_registry_changes(w.registry) != changes);
    TD_EQ(2, td_worker_claim_of(p, need).pages);
    TD_EQ(3, td_worker_claim_of(a, need).pages); /* 129 tokens */
    TD_EQ(4, td_worker_claim_of(b, need).pages); /* 125 of 32 each: more than it has */
    TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, need, NULL) == a);
    TD_TRUE(td_registry_pick(w.registry, TD_ROLE_DECODE, need, a) == NULL);
    TD_TRUE(td_registry_largest(w.registry, TD_ROLE_DECODE, NULL) == a);
    TD_TRUE(td_registry_largest(w.registry, TD_ROLE_DECODE, a) == b);
    world_decode(&w, 1)->state = "draining";
    RUN_UNTIL(&w, td_registry_largest(w.registry, TD_ROLE_DECODE, a) == NULL);
    world_close(&w);
}

TEST(bad_addresses_are_refused)
{
    world w;
    td_err err = {0};
    world_open(&w, NULL);
    TD_TRUE(td_registry_add(w.registry, TD_ROLE_DECODE, "nonsense", &err) < 0);
    TD_TRUE(strstr(err.text, "nonsense") != NULL);
    world_close(&w);
}
