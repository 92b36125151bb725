/* Prompts from their arrival to the last page given back. */
#include "tests/prefill/world.h"

TD_TEST_MAIN

static const Tandem__V1__PagesReady *pages_of(const asking *a, uint32_t i)
{
    TD_TRUE(i < a->n_events);
    TD_EQ(TANDEM__V1__PREFILL_EVENT__EVENT_PAGES, a->events[i]->event_case);
    return a->events[i]->pages;
}

TEST(a_prompt_is_announced_served_and_released)
{
    world w;
    asking a;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 5, .n_tokens = 100, .want_draft = true});
    const made_up_step *s = world_step(&w);
    TD_EQ(1, s->n);
    TD_EQ(100, s->n_tokens[0]);
    TD_EQ(-1, s->next_token[0]);
    TD_EQ(0, s->blob_slot[0]);
    TD_EQ(2, pages_in(&w, TD_PAGE_HELD));
    world_finish_step(&w);
    TD_EQ(TD_GRPC_OK, ended(&w, &a));
    TD_EQ(3, a.n_events);
    const Tandem__V1__PagesReady *p = pages_of(&a, 0);
    TD_EQ(0, p->first_layer);
    TD_EQ(N_LAYERS, p->last_layer);
    TD_EQ(0, p->first_page);
    TD_EQ(2, p->n_page_ids);
    TD_EQ(2, p->n_crc32c);
    for (int i = 0; i < 2; i++) {
        TD_EQ(p->page_ids[i] << 8, p->crc32c[i]);
        TD_EQ(1, p->generations[i]);
        TD_EQ(1, world_published(&w, p->page_ids[i]));
    }
    TD_EQ(N_LAYERS, pages_of(&a, 1)->first_layer);
    TD_EQ(42, a.events[2]->done->first_token);
    TD_EQ(7, a.events[2]->done->blob_crc32c);
    TD_EQ(1, a.events[2]->done->blob_generation);
    TD_EQ(1, world_blob_published(&w, a.events[2]->done->blob_slot));
    for (uint32_t i = 0; i < a.n_events; i++)
        TD_STR(td_serve_incarnation(w.serve), a.events[i]->incarnation);
    TD_EQ(2, pages_in(&w, TD_PAGE_SERVED));
    release(&w, DECODE_B, 5); /* not theirs */
    release(&w, DECODE_A, 6);
    TD_EQ(2, pages_in(&w, TD_PAGE_SERVED));
    release(&w, DECODE_A, 5);
    TD_EQ(0, pages_in(&w, TD_PAGE_SERVED));
    release(&w, DECODE_A, 5); /* again: nothing */
    forget(&a);
    world_close(&w);
}

TEST(a_page_used_again_has_another_generation)
{
    world w;
    world_open(&w, NULL);
    for (uint32_t use = 1; use <= 3; use++) {
        asking a;
        ask(&w, &a, &(prompt){.number = use, .n_tokens = 8 * 64, .want_draft = true});
        for (int page = 0; page < 8; page++) /* held, and not yet announced */
            TD_EQ(0, world_published(&w, (uint32_t)page));
        for (int chunk = 0; chunk < 4; chunk++)
            world_finish_step(&w);
        TD_EQ(TD_GRPC_OK, ended(&w, &a));
        for (uint32_t i = 0; i < 4; i++)
            for (int p = 0; p < 2; p++)
                TD_EQ(use, pages_of(&a, 2 * i)->generations[p]);
        TD_EQ(use, a.events[8]->done->blob_generation);
        release(&w, DECODE_A, use);
        for (uint32_t page = 0; page < 8; page++)
            TD_EQ(0, world_published(&w, page));
        forget(&a);
    }
    world_close(&w);
}

TEST(another_incarnations_messages_are_refused)
{
    world w;
    asking a;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 64});
    world_finish_step(&w);
    TD_EQ(TD_GRPC_OK, ended(&w, &a));
    TD_EQ(TD_GRPC_UNAVAILABLE, release_of(&w, "0000000000000000", DECODE_A, 1));
    TD_EQ(1, pages_in(&w, TD_PAGE_SERVED));
    TD_EQ(TD_GRPC_OK, release_of(&w, td_serve_incarnation(w.serve), DECODE_A, 1));
    TD_EQ(0, pages_in(&w, TD_PAGE_SERVED));
    forget(&a);
    world_close(&w);
}

TEST(a_free_page_that_was_written_to_is_found_at_the_end)
{
    world w;
    asking a;
    world_open(&w, NULL);
    TD_EQ(1, td_prompts_check_free(w.prompts));
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 8 * 64}); /* none is free */
    world_step(&w);
    TD_EQ(0, td_prompts_check_free(w.prompts));
    forget(&a);
    world_close(&w);
}

TEST(without_drafts_the_draft_layer_is_not_announced)
{
    world w;
    asking a;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 64});
    TD_EQ(-1, world_step(&w)->blob_slot[0]);
    world_finish_step(&w);
    TD_EQ(TD_GRPC_OK, ended(&w, &a));
    TD_EQ(2, a.n_events);
    TD_EQ(0, pages_of(&a, 0)->first_layer);
    release(&w, DECODE_A, 1);
    forget(&a);
    world_close(&w);
}

TEST(a_long_prompt_is_announced_chunk_by_chunk)
{
    world w;
    asking a;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 300});
    for (uint32_t i = 0; i < 3; i++) {
        const made_up_step *s = world_step(&w);
        TD_EQ(i * 128, s->start[0]);
        TD_EQ(i < 2 ? 128 : 44, s->n_tokens[0]);
        TD_EQ(i < 2 ? (int)(i + 1) * 128 : -1, s->next_token[0]);
        world_finish_step(&w);
        RUN_UNTIL(&w, a.n_events > i);
        TD_EQ(2 * i, pages_of(&a, i)->first_page);
        TD_EQ(i < 2 ? 2 : 1, pages_of(&a, i)->n_page_ids);
    }
    TD_EQ(TD_GRPC_OK, ended(&w, &a));
    release(&w, DECODE_A, 1);
    forget(&a);
    world_close(&w);
}

TEST(prompts_share_a_step_and_get_their_own_pages)
{
    world w;
    asking a[3];
    world_open(&w, NULL);
    for (uint32_t i = 0; i < 3; i++)
        ask(&w, &a[i], &(prompt){.number = i, .n_tokens = 10 + i});
    uint32_t seen = 0;
    while (td_prompts_count(w.prompts, TD_PROMPT_SERVED) < 3)
        world_finish_step(&w); /* they may come in one turn of the loop or in several */
    for (uint32_t i = 0; i < 3; i++) {
        TD_EQ(TD_GRPC_OK, ended(&w, &a[i]));
        uint32_t page = pages_of(&a[i], 0)->page_ids[0];
        TD_EQ(page << 8, pages_of(&a[i], 0)->crc32c[0]);
        TD_EQ(0, seen & 1U << page);
        seen |= 1U << page;
        release(&w, DECODE_A, i);
        forget(&a[i]);
    }
    world_close(&w);
}

TEST(who_does_not_fit_waits_and_is_not_overtaken)
{
    world w;
    asking a, b, c;
    world_open(&w, NULL); /* 8 pages */
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 5 * 64});
    RUN_UNTIL(&w, td_prompts_active(w.prompts) == 1);
    ask(&w, &b, &(prompt){.number = 2, .n_tokens = 5 * 64});
    RUN_UNTIL(&w, td_prompts_active(w.prompts) == 2);
    ask(&w, &c, &(prompt){.number = 3, .n_tokens = 64}); /* there are 3 free pages */
    RUN_UNTIL(&w, td_prompts_active(w.prompts) == 3);
    TD_EQ(2, td_prompts_count(w.prompts, TD_PROMPT_WAITING));
    for (int i = 0; i < 3; i++)
        world_finish_step(&w);
    TD_EQ(TD_GRPC_OK, ended(&w, &a));
    TD_EQ(2, td_prompts_count(w.prompts, TD_PROMPT_WAITING)); /* the pages are still served */
    release(&w, DECODE_A, 1);
    RUN_UNTIL(&w, td_prompts_count(w.prompts, TD_PROMPT_WAITING) == 0);
    TD_EQ(6, pages_in(&w, TD_PAGE_HELD));
    forget(&a);
    forget(&b);
    forget(&c);
    world_close(&w);
}

TEST(who_can_never_fit_or_finds_the_queue_full_is_refused)
{
    world w;
    asking a, b, c, d, e;
    world_open(&w, NULL);
    ask(&w, &e, &(prompt){.number = 9, .n_tokens = 9 * 64});
    TD_EQ(TD_GRPC_OUT_OF_RANGE, ended(&w, &e));
    TD_TRUE(strstr(e.message, "need 9 KV pages, the pool has 8") != NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 8 * 64});
    ask(&w, &b, &(prompt){.number = 2, .n_tokens = 64});
    ask(&w, &c, &(prompt){.number = 3, .n_tokens = 64});
    ask(&w, &d, &(prompt){.number = 4, .n_tokens = 64});
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, ended(&w, &d));
    TD_TRUE(strstr(d.message, "2 prompts wait already") != NULL);
    forget(&a);
    forget(&b);
    forget(&c);
    world_close(&w);
}

TEST(no_more_prompts_than_rows)
{
    world w;
    asking a[5];
    world_open(&w, NULL); /* 4 rows */
    for (uint32_t i = 0; i < 5; i++)
        ask(&w, &a[i], &(prompt){.number = i, .n_tokens = 1});
    TD_EQ(TD_GRPC_RESOURCE_EXHAUSTED, ended(&w, &a[4]));
    TD_TRUE(strstr(a[4].message, "4 prompts are here") != NULL);
    for (uint32_t i = 0; i < 5; i++)
        forget(&a[i]);
    world_close(&w);
}

TEST(a_prompt_cancelled_within_a_step_keeps_its_pages_until_the_step_is_over)
{
    world w;
    asking a;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 300, .want_draft = true});
    world_step(&w);
    forget(&a);
    for (int i = 0; i < 30; i++)
        world_turn(&w);
    TD_EQ(5, pages_in(&w, TD_PAGE_HELD));
    TD_EQ(1, renew(&w, DECODE_A, (uint64_t[]){1}, 1)); /* gone already, for its reader */
    release(&w, DECODE_A, 1);
    TD_EQ(5, pages_in(&w, TD_PAGE_HELD));
    world_finish_step(&w);
    TD_EQ(0, pages_in(&w, TD_PAGE_HELD));
    TD_EQ(1, world_n_steps(&w)); /* no further chunk of it */
    world_close(&w);
}

TEST(a_prompt_released_before_its_end_ends)
{
    world w;
    asking a;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 10});
    world_step(&w);
    release(&w, DECODE_A, 1);
    TD_EQ(TD_GRPC_CANCELLED, ended(&w, &a));
    world_finish_step(&w);
    TD_EQ(0, td_prompts_active(w.prompts));
    world_close(&w);
}

TEST(a_deadline_ends_a_prompt_that_waits)
{
    world w;
    asking a, b;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 8 * 64});
    ask(&w, &b, &(prompt){.number = 2, .n_tokens = 64, .deadline_ms = 100});
    TD_EQ(TD_GRPC_DEADLINE_EXCEEDED, ended(&w, &b));
    RUN_UNTIL(&w, td_prompts_active(w.prompts) == 1);
    ask(&w, &b, &(prompt){.number = 3, .n_tokens = 64, .deadline_ms = NO_DEADLINE});
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, ended(&w, &b));
    TD_TRUE(strstr(b.message, "deadline") != NULL);
    forget(&a);
    world_close(&w);
}

TEST(served_pages_live_as_long_as_their_lease)
{
    world w;
    asking a, b;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 64});
    ask(&w, &b, &(prompt){.decode = DECODE_B, .number = 1, .n_tokens = 64});
    while (td_prompts_count(w.prompts, TD_PROMPT_SERVED) < 2)
        world_finish_step(&w);
    int64_t since = td_now_ns();
    while (td_now_ns() - since < 1000 * TD_NS_PER_MS) { /* A's is renewed, B's is not */
        TD_EQ(2, renew(&w, DECODE_A, (uint64_t[]){1, 2, 3}, 3));
        for (int i = 0; i < 20; i++)
            world_turn(&w);
    }
    TD_EQ(1, td_prompts_count(w.prompts, TD_PROMPT_SERVED));
    TD_EQ(1, renew(&w, DECODE_B, (uint64_t[]){1}, 1));
    RUN_UNTIL(&w, td_prompts_count(w.prompts, TD_PROMPT_SERVED) == 0);
    TD_TRUE(td_now_ns() - since < 10 * TD_NS_PER_S);
    forget(&a);
    forget(&b);
    world_close(&w);
}

TEST(a_number_is_its_decode_daemons_own)
{
    world w;
    asking a, b, c;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 10});
    ask(&w, &b, &(prompt){.number = 1, .n_tokens = 10});
    ask(&w, &c, &(prompt){.decode = DECODE_B, .number = 1, .n_tokens = 10});
    TD_EQ(TD_GRPC_INVALID_ARGUMENT, ended(&w, &b));
    TD_TRUE(strstr(b.message, "number 1 is in use") != NULL);
    RUN_UNTIL(&w, td_prompts_active(w.prompts) == 2);
    forget(&a);
    forget(&c);
    world_close(&w);
}

TEST(a_draining_daemon_takes_no_prompt_and_finishes_those_it_has)
{
    world w;
    asking a, b;
    world_open(&w, NULL);
    ask(&w, &a, &(prompt){.number = 1, .n_tokens = 10});
    world_step(&w);
    td_serve_drain(w.serve);
    ask(&w, &b, &(prompt){.number = 2, .n_tokens = 10});
    TD_EQ(TD_GRPC_UNAVAILABLE, ended(&w, &b));
    world_finish_step(&w);
    TD_EQ(TD_GRPC_OK, ended(&w, &a));
    TD_EQ(0, renew(&w, DECODE_A, (uint64_t[]){1}, 1));
    release(&w, DECODE_A, 1);
    forget(&a);
    world_close(&w);
}

TEST(bad_prompts_are_refused)
{
    world w;
    asking a;
    uint32_t tokens[CONTEXT + 1] = {0}, stops[100] = {0};
    world_open(&w, NULL);
    for (int i = 0; i < 9; i++) {
        Tandem__V1__Sampling s = TANDEM__V1__SAMPLING__INIT;
        Tandem__V1__PrefillRequest r = TANDEM__V1__PREFILL_REQUEST__INIT;
        td_grpc_status want = TD_GRPC_INVALID_ARGUMENT;
        s.top_p = 1.0f;
        s.stop_token_ids = stops;
        r.request_id = (char *)"x";
        r.incarnation = (char *)td_serve_incarnation(w.serve);
        r.decode_incarnation = (char *)DECODE_A;
        r.token_ids = tokens;
        r.n_token_ids = 3;
        r.sampling = &s;
        tokens[1] = 0;
        switch (i) {
        case 0: r.n_token_ids = 0; break;
        case 1: r.n_token_ids = CONTEXT + 1; break;
        case 2: tokens[1] = VOCAB; break;
        case 3: r.request_id = (char *)"two words"; break;
        case 4: r.sampling = NULL; break;
        case 5: s.top_k = UINT32_MAX; break;
        case 6: s.n_stop_token_ids = 65; break;
        case 7:
            r.decode_incarnation = (char *)"cccccccccccccccc";
            want = TD_GRPC_FAILED_PRECONDITION;
            break;
        default:
            r.incarnation = (char *)"0000000000000000";
            want = TD_GRPC_UNAVAILABLE;
            break;
        }
        ask_raw(&w, &a, &r, 0);
        TD_EQ(want, ended(&w, &a));
        TD_EQ(0, td_prompts_active(w.prompts));
    }
    world_close(&w);
}

TEST(a_storm_of_prompts_and_cancels_leaves_nothing)
{
    world w;
    asking a[12] = {0};
    uint64_t seed = 1, number = 0;
    td_prefill_conf conf = world_conf();
    conf.w.max_requests = 6;
    conf.queue_length = 4;
    conf.lease_ms = 1000;
    world_open(&w, &conf);
    for (int i = 0; i < 1500; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        uint32_t r = (uint32_t)(seed >> 40), k = r % 12;
        switch (r / 12 % 4) {
        case 0:
            forget(&a[k]);
            ask(&w, &a[k],
                &(prompt){.number = ++number, .n_tokens = 1 + r % 500, .want_draft = r & 1});
            break;
        case 1: forget(&a[k]); break;
        case 2: world_turn(&w); break;
        default:
            if (td_prefill_engine_busy(w.engine))
                world_finish_step(&w);
        }
        if (r % 5 == 0 && number > 12)
            release(&w, DECODE_A, number - r % 12);
    }
    for (int i = 0; i < 12; i++)
        forget(&a[i]);
    world_close(&w); /* the leases end */
}
