/* One request's prompt: what prefill announces, the gets for it, and what must hold before a page
 * is read. */
#include "tests/decode/draw_world.h"

TD_TEST_MAIN

static uint64_t layers_bytes(const td_request *r, uint32_t first, uint32_t last, uint64_t *offset)
{
    uint64_t n_bytes;
    td_kv_layout_range(td_decode_engine_layout(td_requests_get_conf(r->table)->engine), first, last,
                       offset, &n_bytes);
    return n_bytes;
}

static void all_jobs_end(world *w)
{
    for (uint32_t i = 0; i < w->n_jobs; i++)
        if (!w->jobs[i].over)
            job_ends(w, i, TD_OK, job_bytes(w, i));
}

TEST(announced_pages_are_drawn_while_later_layers_compute)
{
    world w;
    asking a;
    uint64_t offset;
    world_open(&w, 2);
    ask(&w, &a, 3 * 64 - 5, 20);
    stream *s = asked(&w, 0);
    td_request *r = request_of(&w, s);
    announce(s, 0, 1, 0, 3);
    RUN_UNTIL(&w, w.n_jobs == 2); /* pages 0 and 2 of rank 0, page 1 of rank 1 */
    for (uint32_t rank = 0; rank < 2; rank++) {
        const made_up_job *j = &w.jobs[rank];
        TD_EQ(rank, j->rank);
        TD_EQ(2 - rank, j->args.n_pages);
        TD_EQ(TD_XFER_PAGES, j->args.region);
        TD_EQ(r->owner, j->args.tag);
        TD_EQ(layers_bytes(r, 0, 1, &offset), j->args.n_bytes);
        TD_EQ(offset, j->args.offset);
        for (uint32_t i = 0; i < j->args.n_pages; i++) {
            uint32_t page = rank + 2 * i;
            TD_EQ(page, j->pages[i].number);
            TD_EQ(40 + page, j->pages[i].remote);
            TD_EQ(r->pages[page], j->pages[i].local);
            TD_EQ(7, j->pages[i].generation);
            TD_EQ(1000 + page, j->pages[i].crc32c);
        }
    }
    all_jobs_end(&w);
    TD_EQ(3 * layers_bytes(r, 0, 1, &offset), r->n_bytes_early); /* nothing waits for the end */
    announce(s, 1, N_LAYERS, 0, 3);
    announce(s, N_LAYERS, N_LAYERS + 1, 0, 3);
    finish(s);
    RUN_UNTIL(&w, w.n_jobs == 7);
    const made_up_job *blob = &w.jobs[6];
    TD_EQ(TD_XFER_BLOBS, blob->args.region);
    TD_EQ(0, blob->rank);
    TD_EQ(3, blob->pages[0].remote);
    TD_EQ(r->slot, blob->pages[0].local);
    TD_EQ(9, blob->pages[0].generation);
    TD_EQ(BLOB_BYTES, blob->args.n_bytes);
    TD_EQ(TD_REQUEST_DRAWING, r->state);
    all_jobs_end(&w);
    TD_EQ(TD_REQUEST_RUNNING, r->state);
    TD_EQ(1, world_joined(&w));
    RUN_UNTIL(&w, w.n_releases == 1 && a.n_tokens == 1);
    td_rpc_call_finish(taken(s), TD_GRPC_OK, NULL);
    give_up(&a);
    world_close(&w);
}

TEST(the_byte_formula_counts_pages_layers_and_hidden_state)
{
    for (uint32_t drafts = 0; drafts <= 1; drafts++) {
        world w;
        asking a;
        uint64_t offset;
        world_open(&w, drafts);
        ask(&w, &a, 65, 20);
        stream *s = asked(&w, 0);
        td_request *r = request_of(&w, s);
        uint64_t page = layers_bytes(r, 0, N_LAYERS + drafts, &offset);
        TD_EQ(2 * page + drafts * BLOB_BYTES, td_draw_bytes(w.requests, r));
        announce(s, 0, N_LAYERS + drafts, 0, 2);
        finish(s);
        RUN_UNTIL(&w, w.n_jobs == 2 + drafts);
        settle(&w);
        for (uint32_t i = 0; i < w.n_jobs; i++) /* one byte is missing */
            job_ends(&w, i, TD_OK, job_bytes(&w, i) - (i == 0));
        TD_EQ(TD_GRPC_DATA_LOSS, ended(&w, &a));
        TD_TRUE(strstr(a.message, "the formula says") != NULL);
        TD_STR("DATA_LOSS", a.cause);
        world_close(&w);
    }
}

/* ---- announcements that cannot be right ---- */

typedef struct {
    const char *says; /* the refusal's words */
    uint32_t first_layer, last_layer, first_page, n_ids, n_generations, n_crc, generation;
    uint32_t layers_before; /* announced properly first, of both pages */
} bad_pages;

TEST(announcements_that_cannot_be_right_fail_the_request_and_say_why)
{
    static const bad_pages bad[] = {
        {"0 pages with 0 generations and 0 checksums", 0, 1, 0, 0, 0, 0, 7, 0},
        {"2 pages with 1 generations and 2 checksums", 0, 1, 0, 2, 1, 2, 7, 0},
        {"2 pages with 2 generations and 3 checksums", 0, 1, 0, 2, 2, 3, 7, 0},
        {"pages 0..3 of a prompt with 2", 0, 1, 0, 3, 3, 3, 7, 0},
        {"pages 4294967295..4294967296 of a prompt with 2", 0, 1, UINT32_MAX, 1, 1, 1, 7, 0},
        {"layers 1..1 of 3", 1, 1, 0, 2, 2, 2, 7, 0},
        {"layers 0..4 of 3", 0, 4, 0, 2, 2, 2, 7, 0},
        {"page 0: layers from 1 on, expected from 0 on", 1, 2, 0, 2, 2, 2, 7, 0}, /* a gap */
        {"page 1: layers from 0 on, expected from 2 on", 0, 1, 1, 1, 1, 1, 7, 2}, /* again */
        {"page 0: layers from 1 on, expected from 2 on", 1, 3, 0, 2, 2, 2, 7, 2}, /* in part */
        {"page 0 without a generation", 0, 1, 0, 2, 2, 2, 0, 0},
    };
    world w;
    world_open(&w, 1);
    for (uint32_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const bad_pages *b = &bad[i];
        asking a;
        uint32_t ids[4] = {1, 2, 3, 4}, generations[4], crc[4] = {0};
        ask(&w, &a, 65, 20);
        w.n_streams = 0;
        stream *s = asked(&w, 0);
        if (b->layers_before > 0)
            announce(s, 0, b->layers_before, 0, 2);
        for (int k = 0; k < 4; k++)
            generations[k] = b->generation;
        Tandem__V1__PagesReady p = TANDEM__V1__PAGES_READY__INIT;
        p.first_layer = b->first_layer;
        p.last_layer = b->last_layer;
        p.first_page = b->first_page;
        p.n_page_ids = b->n_ids;
        p.n_generations = b->n_generations;
        p.n_crc32c = b->n_crc;
        p.page_ids = ids;
        p.generations = generations;
        p.crc32c = crc;
        Tandem__V1__PrefillEvent e = pages_event(&p);
        say(s, &e);
        TD_EQ(TD_GRPC_INTERNAL, ended(&w, &a));
        if (strcmp(b->says, a.message) != 0)
            fail_msg("says \"%s\", want \"%s\"", a.message, b->says);
        TD_STR("PROTOCOL", a.cause);
        all_jobs_end(&w);
        RUN_UNTIL(&w, s->call == NULL); /* the stream is cancelled */
    }
    world_close(&w);
}

static void expect_lie(world *w, asking *a, const char *says)
{
    TD_EQ(TD_GRPC_INTERNAL, ended(w, a));
    if (strstr(a->message, says) == NULL)
        fail_msg("says \"%s\", want \"%s\"", a->message, says);
    all_jobs_end(w);
}

TEST(events_out_of_order_fail_the_request)
{
    world w;
    asking a;
    world_open(&w, 1);
    ask(&w, &a, 65, 20);
    announce(asked(&w, 0), 0, 2, 0, 2);
    finish(&w.streams[0]);
    expect_lie(&w, &a, "page 0: 2 of 3 layers were announced");

    ask(&w, &a, 65, 20); /* an event behind the last one */
    announce(asked(&w, 1), 0, 3, 0, 2);
    finish(&w.streams[1]);
    finish(&w.streams[1]);
    expect_lie(&w, &a, "an event behind the last one");

    ask(&w, &a, 65, 20); /* another process's */
    Tandem__V1__PrefillDone d = TANDEM__V1__PREFILL_DONE__INIT;
    Tandem__V1__PrefillEvent e = done_event(&d);
    e.incarnation = (char *)"2222222222222222";
    say(asked(&w, 2), &e);
    expect_lie(&w, &a, "of incarnation \"2222222222222222\"");

    ask(&w, &a, 65, 20);
    e = done_event(NULL);
    e.event_case = TANDEM__V1__PREFILL_EVENT__EVENT__NOT_SET;
    say(asked(&w, 3), &e);
    expect_lie(&w, &a, "neither pages nor the last one");

    ask(&w, &a, 65, 20);
    announce(asked(&w, 4), 0, 3, 0, 2);
    d.first_token = VOCAB;
    e = done_event(&d);
    say(&w.streams[4], &e);
    expect_lie(&w, &a, "first token 1000 is outside the vocabulary");

    ask(&w, &a, 65, 20);
    td_rpc_call_finish(taken(asked(&w, 5)), TD_GRPC_OK, NULL);
    expect_lie(&w, &a, "ended the stream before its last event");
    world_close(&w);
}

/* ---- room ---- */

TEST(who_finds_the_transfer_layer_full_waits_and_is_served_in_turn)
{
    world w;
    asking a[3];
    world_open(&w, 0);
    w.room = 1;
    for (uint32_t i = 0; i < 3; i++) {
        ask(&w, &a[i], 2 * 64, 20);
        asked(&w, i);
    }
    int64_t since = td_now_ns();
    for (uint32_t i = 0; i < 3; i++) { /* two gets each, and again two */
        announce(&w.streams[i], 0, 1, 0, 2);
        announce(&w.streams[i], 1, N_LAYERS, 0, 2);
        settle(&w);
    }
    int64_t announced = td_now_ns();
    TD_EQ(1, w.n_jobs);
    uint32_t served[3] = {0};
    for (uint32_t job = 0; job < 12; job++) {
        TD_EQ(job + 1, w.n_jobs);
        TD_EQ(1, w.n_live);
        const made_up_job *j = &w.jobs[job];
        uint32_t who = 0;
        while (w.streams[who].number != j->args.tag)
            who++;
        served[who]++;
        for (int i = 0; i < 3; i++) /* the first began with one ahead */
            TD_TRUE(served[who] <= served[i] + 2);
        /* the time until there was room counts, too */
        TD_TRUE(j->args.deadline_ns >= since + 10000 * TD_NS_PER_MS &&
                j->args.deadline_ns <= announced + 10000 * TD_NS_PER_MS);
        td_sleep_ms(5);
        job_ends(&w, job, TD_OK, job_bytes(&w, job));
    }
    TD_EQ(12, w.n_jobs);
    for (uint32_t i = 0; i < 3; i++) {
        finish(&w.streams[i]);
        RUN_UNTIL(&w, a[i].n_tokens == 1);
        give_up(&a[i]);
    }
    world_close(&w);
}

TEST(nobody_overtakes_those_that_wait)
{
    world w;
    asking a[2];
    world_open(&w, 0);
    w.room = 0;
    for (uint32_t i = 0; i < 2; i++)
        ask(&w, &a[i], 64, 20), asked(&w, i);
    announce(&w.streams[0], 0, N_LAYERS, 0, 1);
    settle(&w);
    w.room = 1; /* nobody has told the first one yet */
    announce(&w.streams[1], 0, N_LAYERS, 0, 1);
    settle(&w);
    TD_EQ(0, w.n_jobs);
    td_draw_retry(w.requests);
    TD_EQ(1, w.n_jobs);
    TD_EQ(w.streams[0].number, w.jobs[0].args.tag);
    job_ends(&w, 0, TD_OK, job_bytes(&w, 0));
    TD_EQ(2, w.n_jobs);
    job_ends(&w, 1, TD_OK, job_bytes(&w, 1));
    for (uint32_t i = 0; i < 2; i++)
        give_up(&a[i]);
    world_close(&w);
}

/* ---- the end ---- */

TEST(a_request_that_ends_keeps_its_pages_until_its_last_job_has_ended)
{
    world w;
    asking a;
    world_open(&w, 0);
    w.room = 2;
    ask(&w, &a, 3 * 64, 20);
    announce(asked(&w, 0), 0, 1, 0, 3);
    RUN_UNTIL(&w, w.n_jobs == 2);
    announce(&w.streams[0], 1, N_LAYERS, 0, 3); /* waits for room, and is forgotten */
    settle(&w);
    give_up(&a);
    RUN_UNTIL(&w, w.jobs[0].cancelled && w.jobs[1].cancelled && w.n_releases == 1);
    TD_EQ(4, pages_in(&w, TD_PAGE_FILLING));
    job_ends(&w, 0, TD_CANCELLED, 0);
    TD_EQ(4, pages_in(&w, TD_PAGE_FILLING));
    job_ends(&w, 1, TD_OK, job_bytes(&w, 1)); /* it was quicker */
    TD_EQ(0, pages_in(&w, TD_PAGE_FILLING));
    TD_EQ(2, w.n_jobs);
    world_close(&w);
}

TEST(how_a_job_fails_tells_whose_fault_it_is)
{
    static const struct {
        td_status job;
        const char *cause, *side;
    } cases[] = {{TD_DATA_LOSS, "DATA_LOSS", "decode"},
                 {TD_PEER_LOST, "PEER_LOST", "prefill"},
                 {TD_MISMATCH, "PEER_LOST", "prefill"},  /* its lease ended */
                 {TD_DEADLINE, "PEER_LOST", "prefill"}}; /* of the transfer, not the request's */
    world w;
    world_open(&w, 0);
    for (uint32_t i = 0; i < 4; i++) {
        asking a;
        ask(&w, &a, 64, 20);
        announce(asked(&w, i), 0, N_LAYERS, 0, 1);
        RUN_UNTIL(&w, w.n_jobs == i + 1);
        job_ends(&w, i, cases[i].job, 0);
        ended(&w, &a);
        TD_STR(cases[i].cause, a.cause);
        TD_STR(cases[i].side, a.side);
        TD_TRUE(strstr(a.message, "the transfer layer says why") != NULL);
    }
    world_close(&w);
}

/* ---- a prefill daemon that forgot us ---- */

TEST(a_prefill_that_forgot_this_process_is_greeted_again_and_asked_again)
{
    world w;
    asking first, second;
    world_open(&w, 0);
    ask(&w, &first, 64, 20);
    asked(&w, 0);
    w.n_refusals = 1;
    ask(&w, &second, 64, 20);
    asked(&w, 1);
    TD_EQ(2, w.n_greetings);
    for (uint32_t i = 0; i < 2; i++) {
        announce(&w.streams[i], 0, N_LAYERS, 0, 1);
        finish(&w.streams[i]);
        RUN_UNTIL(&w, w.n_jobs == i + 1);
        job_ends(&w, i, TD_OK, job_bytes(&w, i));
    }
    RUN_UNTIL(&w, first.n_tokens == 1 && second.n_tokens == 1);
    give_up(&first);
    give_up(&second);
    world_close(&w);
}

TEST(who_is_refused_again_after_the_greeting_fails_alone)
{
    world w;
    asking first, second;
    world_open(&w, 0);
    ask(&w, &first, 64, 20);
    asked(&w, 0);
    w.n_refusals = 2;
    ask(&w, &second, 64, 20);
    TD_EQ(TD_GRPC_UNAVAILABLE, ended(&w, &second));
    TD_STR("prefill", second.side);
    TD_TRUE(first.req != NULL);
    give_up(&first);
    world_close(&w);
}

/* ---- admission ---- */

/* Pages for prompt + max_tokens + drafts, as the router counts them. */
TEST(a_request_is_admitted_up_to_the_last_token_that_fits)
{
    world w;
    asking a;
    world_open(&w, 3);
    const uint32_t n_tokens = N_PAGES * 64;
    ask(&w, &a, 100, n_tokens - 100 - 3 + 1);
    TD_EQ(td_grpc_from_status(TD_TOO_LARGE), ended(&w, &a));
    TD_TRUE(strstr(a.message, "need 17 KV pages, the pool has 16") != NULL);
    ask(&w, &a, 100, n_tokens - 100 - 3);
    asked(&w, 0);
    TD_EQ(N_PAGES, pages_in(&w, TD_PAGE_FILLING));
    give_up(&a);
    world_close(&w);
}
