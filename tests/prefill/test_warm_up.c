/* The made-up prompt, over an engine of these three functions. */
#include "prefill/warm_up.h"
#include "tests/common/base/td_hard.h"
#include "tests/td_test.h"

TD_TEST_MAIN

struct td_prefill_engine {
    td_model_config config;
    uint32_t chunk, n_steps, n_drawn, n_retired;
    int32_t end; /* of the last step */
    bool ended;
};

const td_model_config *td_prefill_engine_config(const td_prefill_engine *e)
{
    return &e->config;
}

void td_prefill_engine_step(td_prefill_engine *e, const td_chunk *c, uint32_t n)
{
    TD_EQ(1, n);
    TD_TRUE(!e->ended && c->n_tokens >= 1 && (uint32_t)c->n_tokens <= e->chunk);
    TD_EQ(e->end, c->start);
    TD_EQ(0, c->start % TD_PAGE_TOKENS);
    TD_EQ(-1, c->blob_slot);
    e->end += c->n_tokens;
    e->ended = c->ends;
    TD_EQ(c->ends ? -1 : 0, c->next_token);
    e->n_drawn += c->sampling != NULL && c->ends;
    TD_EQ((e->end + TD_PAGE_TOKENS - 1) / TD_PAGE_TOKENS, c->n_pages);
    for (uint32_t i = 0; i < c->n_pages; i++)
        TD_EQ(i, c->pages[i]);
    for (int32_t i = 0; i < c->n_tokens; i++)
        TD_TRUE(c->tokens[i] >= 0 && c->tokens[i] < e->config.vocab_size);
    e->n_steps++;
}

void td_prefill_engine_retire(td_prefill_engine *e, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        TD_EQ(i, pages[i]);
    e->n_retired += n;
}

/* How many steps; *n_tokens: of the prompt. */
static uint32_t steps(uint32_t chunk, int32_t topk, uint32_t n_pages, int32_t max_positions,
                      int32_t *n_tokens)
{
    td_err err;
    td_warm_up warm;
    td_prefill_engine e = {.config = {.index_topk = topk, .vocab_size = 100}, .chunk = chunk};
    e.config.max_positions = max_positions;
    TD_EQ(TD_OK, td_warm_up_begin(&warm, &e, chunk, n_pages, &err));
    uint32_t n_done = 1;
    while (!td_warm_up_on_done(&warm))
        n_done++;
    TD_EQ(n_done, e.n_steps);
    TD_TRUE(e.ended);
    TD_EQ(1, e.n_drawn);
    TD_EQ((e.end + TD_PAGE_TOKENS - 1) / TD_PAGE_TOKENS, e.n_retired);
    TD_TRUE(e.n_retired <= n_pages && e.end <= max_positions);
    *n_tokens = e.end;
    return e.n_steps;
}

TEST(whole_chunks_reach_past_where_the_indexer_selects)
{
    int32_t n = 0;
    TD_EQ(6,
          steps(512, 2048, 1024, 163840, &n)); /* four select nothing, one does, one of a token */
    TD_EQ(2561, n);
    TD_EQ(2, steps(8192, 2048, 1024, 163840, &n));
    TD_EQ(8193, n);
    TD_EQ(2, steps(2048, 2047, 1024, 163840, &n));
    TD_EQ(2049, n);
}

TEST(a_small_pool_or_context_bounds_it)
{
    int32_t n = 0;
    TD_EQ(2, steps(512, 2048, 4, 163840, &n));
    TD_EQ(193, n);
    TD_EQ(3, steps(128, 2048, 4, 163840, &n));
    TD_EQ(193, n);
    TD_EQ(2, steps(512, 2048, 1024, 100, &n));
    TD_EQ(65, n);
    TD_EQ(1, steps(512, 2048, 1024, 64, &n));
    TD_EQ(1, n);
    TD_EQ(1, steps(512, 2048, 1024, 1, &n));
    TD_EQ(1, n);
}

TEST(the_largest_knobs_are_counted_right)
{
    TD_EQ((1 << 20) + 1, td_warm_up_tokens(1 << 20, 2048, 1 << 24, INT32_MAX));
    TD_EQ((1 << 21) + 1, td_warm_up_tokens(1 << 20, 1 << 20, 1 << 24, INT32_MAX));
    TD_EQ(1 << 20, td_warm_up_tokens(64, (1 << 20) - 1, 1 << 24, 1 << 30) - 1);
}

TEST(a_want_of_memory_is_said_and_nothing_begins)
{
    td_err err;
    td_warm_up warm;
    td_prefill_engine e = {.config = {.index_topk = 100, .vocab_size = 100, .max_positions = 1000},
                           .chunk = 64};
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_warm_up_begin(&warm, &e, 64, 32, &err), TD_EQ(1, e.n_steps));
    while (!td_warm_up_on_done(&warm)) {
    }
}
