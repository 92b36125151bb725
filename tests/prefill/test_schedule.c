/* Which chunks make the next step: in order of arrival, whole pages, never more than a step takes.
 */
#include "prefill/schedule.h"
#include "tests/td_test.h"

TD_TEST_MAIN

#define N_ROWS 8

static td_prompt rows[N_ROWS];
static td_step_plan plan;

static void computing(uint32_t row, uint64_t order, int32_t n_tokens, int32_t n_done)
{
    rows[row] = (td_prompt){
        .state = TD_PROMPT_COMPUTING, .order = order, .n_tokens = n_tokens, .n_done = n_done};
}

static void next(uint32_t max_tokens, uint32_t max_seqs)
{
    memset(&plan, 0xff, sizeof(plan));
    td_schedule_next(rows, N_ROWS, max_tokens, max_seqs, &plan);
}

#define EXPECT(i, row, n)                                                                          \
    do {                                                                                           \
        TD_EQ(row, plan.rows[i]);                                                                  \
        TD_EQ(n, plan.n_tokens[i]);                                                                \
    } while (0)

TEST(nothing_to_compute_is_an_empty_plan)
{
    next(512, 16);
    TD_EQ(0, plan.n);
    computing(3, 1, 100, 0);
    rows[3].state = TD_PROMPT_WAITING;
    next(512, 16);
    TD_EQ(0, plan.n);
    rows[3].state = TD_PROMPT_SERVED;
    next(512, 16);
    TD_EQ(0, plan.n);
}

TEST(prompts_share_a_step_in_order_of_arrival)
{
    computing(5, 1, 100, 0);
    computing(2, 2, 30, 0);
    computing(7, 3, 1, 0);
    next(512, 16);
    TD_EQ(3, plan.n);
    EXPECT(0, 5, 100);
    EXPECT(1, 2, 30);
    EXPECT(2, 7, 1);
}

TEST(a_prompt_longer_than_a_step_is_cut_at_a_page)
{
    computing(0, 1, 1000, 0);
    computing(1, 2, 1000, 0);
    next(200, 16); /* 192 are whole pages; 8 are left and too few for the other */
    TD_EQ(1, plan.n);
    EXPECT(0, 0, 192);
    rows[0].n_done = 960;
    next(200, 16); /* its last 40 tokens, and two pages of the other */
    TD_EQ(2, plan.n);
    EXPECT(0, 0, 40);
    EXPECT(1, 1, 128);
}

TEST(what_ends_a_prompt_needs_no_whole_page)
{
    computing(0, 1, 150, 0);
    computing(1, 2, 50, 0);
    next(200, 16);
    TD_EQ(2, plan.n);
    EXPECT(0, 0, 150);
    EXPECT(1, 1, 50);
}

TEST(the_number_of_prompts_in_a_step_is_bounded)
{
    for (uint32_t i = 0; i < N_ROWS; i++)
        computing(i, N_ROWS - i, 10, 0);
    next(512, 3);
    TD_EQ(3, plan.n);
    EXPECT(0, 7, 10);
    EXPECT(1, 6, 10);
    EXPECT(2, 5, 10);
}

TEST(a_cancelled_prompt_gets_no_further_chunk)
{
    computing(0, 1, 1000, 64);
    computing(1, 2, 64, 0);
    rows[0].cancelled = true;
    next(512, 16);
    TD_EQ(1, plan.n);
    EXPECT(0, 1, 64);
}

TEST(a_chunk_says_what_stands_before_and_behind_it)
{
    int32_t tokens[130];
    uint32_t pages[3] = {7, 8, 9};
    td_chunk c;
    for (int i = 0; i < 130; i++)
        tokens[i] = 1000 + i;
    computing(0, 1, 130, 64);
    rows[0].tokens = tokens;
    rows[0].pages = pages;
    rows[0].n_pages = 3;
    rows[0].blob_slot = 4;
    td_schedule_chunk(&rows[0], 64, &c);
    TD_TRUE(c.tokens == tokens + 64 && c.pages == pages && c.sampling == &rows[0].sampling);
    TD_EQ(64, c.start);
    TD_EQ(64, c.n_tokens);
    TD_EQ(1128, c.next_token);
    TD_EQ(2, c.n_pages); /* of the prompt so far */
    TD_EQ(0, c.ends);
    TD_EQ(4, c.blob_slot);
    td_schedule_chunk(&rows[0], 66, &c); /* to its end */
    TD_EQ(-1, c.next_token);
    TD_EQ(3, c.n_pages);
    TD_EQ(1, c.ends);
}

static uint32_t random_below(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(*state >> 33) % n;
}

/* Takes the plan's chunks, checking that each page is finished by one chunk. */
static void take_chunks(uint8_t finished[N_ROWS][64], uint32_t max_tokens, uint32_t max_seqs)
{
    int32_t sum = 0;
    TD_TRUE(plan.n > 0 && plan.n <= max_seqs);
    for (uint32_t i = 0; i < plan.n; i++) {
        td_prompt *r = &rows[plan.rows[i]];
        td_step_chunk c = td_schedule_pages(r, plan.n_tokens[i]);
        for (uint32_t p = c.first_page; p < c.last_page; p++)
            TD_EQ(0, finished[plan.rows[i]][p]++);
        sum += plan.n_tokens[i];
        r->n_done += plan.n_tokens[i];
        TD_TRUE(r->n_done <= r->n_tokens);
        TD_TRUE(r->n_done == r->n_tokens || r->n_done % TD_PAGE_TOKENS == 0);
        TD_TRUE(i == 0 || rows[plan.rows[i - 1]].order < r->order);
        if (r->n_done == r->n_tokens)
            r->state = TD_PROMPT_SERVED;
    }
    TD_TRUE(sum <= (int32_t)max_tokens);
}

TEST(every_page_is_finished_by_one_chunk_whatever_the_lengths)
{
    uint64_t seed = 1;
    for (int round = 0; round < 500; round++) {
        uint8_t finished[N_ROWS][64] = {{0}};
        uint32_t max_tokens = TD_PAGE_TOKENS * (1 + random_below(&seed, 8));
        uint32_t max_seqs = 1 + random_below(&seed, 5), left = N_ROWS, steps = 0;
        for (uint32_t i = 0; i < N_ROWS; i++)
            computing(i, (i * 5) % N_ROWS + 1, (int32_t)(1 + random_below(&seed, 4000)), 0);
        while (left > 0) {
            next(max_tokens, max_seqs);
            take_chunks(finished, max_tokens, max_seqs);
            left = 0;
            for (uint32_t i = 0; i < N_ROWS; i++)
                left += rows[i].state == TD_PROMPT_COMPUTING;
            TD_TRUE(++steps < 2000);
        }
        for (uint32_t i = 0; i < N_ROWS; i++)
            for (uint32_t p = 0; p < 64; p++)
                TD_EQ((int32_t)p * TD_PAGE_TOKENS < rows[i].n_tokens, finished[i][p]);
    }
}
