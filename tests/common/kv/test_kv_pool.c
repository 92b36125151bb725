#include "common/base/clock.h"
#include "common/kv/pool.h"
#include "tests/common/kv/fail_alloc.h"
#include "tests/td_test.h"

TEST(take_is_all_or_nothing)
{
    td_kv_pool *pool;
    uint32_t ids[4], generations[4];
    TD_EQ(TD_OK, td_kv_pool_create(4, &pool, NULL));
    TD_EQ(TD_OK, td_kv_pool_take(pool, 3, 7, ids, generations));
    TD_EQ(TD_FULL, td_kv_pool_take(pool, 2, 8, ids, generations)); /* one left: take none */
    TD_EQ(1, td_kv_pool_count(pool, TD_PAGE_FREE));
    TD_EQ(3, td_kv_pool_count(pool, TD_PAGE_HELD));
    TD_EQ(4, td_kv_pool_n_pages(pool));
    td_kv_pool_destroy(pool);
}

TEST(each_use_of_a_page_has_a_new_generation)
{
    td_kv_pool *pool;
    uint32_t id, generation, last = 0;
    TD_EQ(TD_OK, td_kv_pool_create(1, &pool, NULL));
    TD_EQ(0, td_kv_pool_info(pool, 0).generation);
    for (int i = 0; i < 3; i++) {
        TD_EQ(TD_OK, td_kv_pool_take(pool, 1, 9, &id, &generation));
        TD_TRUE(generation > last);
        last = generation;
        TD_EQ(generation, td_kv_pool_info(pool, id).generation);
        td_kv_pool_give(pool, 9, &id, 1);
        TD_EQ(generation, td_kv_pool_info(pool, id).generation);
    }
    td_kv_pool_destroy(pool);
}

TEST(info_shows_state_owner_and_age)
{
    td_kv_pool *pool;
    uint32_t ids[2], generations[2];
    int64_t start_ns = td_now_ns();
    TD_EQ(TD_OK, td_kv_pool_create(3, &pool, NULL));
    TD_EQ(TD_OK, td_kv_pool_take(pool, 2, 77, ids, generations));
    td_kv_pool_mark(pool, 77, ids, 1, TD_PAGE_FILLING);
    td_page_info info = td_kv_pool_info(pool, ids[0]);
    TD_EQ(TD_PAGE_FILLING, info.state);
    TD_EQ(77, info.owner);
    TD_TRUE(info.since_ns >= start_ns && info.since_ns <= td_now_ns());
    TD_EQ(TD_PAGE_HELD, td_kv_pool_info(pool, ids[1]).state);
    TD_EQ(1, td_kv_pool_count(pool, TD_PAGE_FILLING));
    td_kv_pool_mark(pool, 77, ids, 2, TD_PAGE_SERVED);
    TD_EQ(2, td_kv_pool_count(pool, TD_PAGE_SERVED));
    td_kv_pool_give(pool, 77, ids, 2);
    TD_EQ(0, td_kv_pool_count(pool, TD_PAGE_SERVED));
    TD_EQ(3, td_kv_pool_count(pool, TD_PAGE_FREE));
    TD_EQ(0, td_kv_pool_info(pool, ids[0]).owner);
    td_kv_pool_destroy(pool);
}

TEST(no_page_has_two_owners_under_random_use)
{
    enum { PAGES = 64, OWNERS = 8 };
    td_kv_pool *pool;
    uint32_t held[OWNERS + 1][PAGES], n_held[OWNERS + 1] = {0}, generations[PAGES], rng = 12345;
    TD_EQ(TD_OK, td_kv_pool_create(PAGES, &pool, NULL));
    for (int step = 0; step < 20000; step++) {
        rng = rng * 1664525U + 1013904223U;
        uint32_t who = 1 + (rng >> 8) % OWNERS, n = (rng >> 16) % 12;
        if ((rng >> 30) == 0) {
            td_kv_pool_give(pool, who, held[who], n_held[who]);
            n_held[who] = 0;
        } else if (td_kv_pool_take(pool, n, who, held[who] + n_held[who], generations) == TD_OK) {
            n_held[who] += n;
        }
        uint32_t total = 0;
        for (uint32_t o = 1; o <= OWNERS; o++) {
            total += n_held[o];
            for (uint32_t i = 0; i < n_held[o]; i++)
                TD_TRUE(td_kv_pool_info(pool, held[o][i]).owner == o);
        }
        TD_TRUE(total == td_kv_pool_count(pool, TD_PAGE_HELD));
        TD_TRUE(PAGES - total == td_kv_pool_count(pool, TD_PAGE_FREE));
    }
    td_kv_pool_destroy(pool);
}

TEST(create_refuses_no_pages_and_any_failed_allocation)
{
    td_kv_pool *pool = NULL;
    TD_EQ(TD_INVALID, td_kv_pool_create(0, &pool, NULL));
    for (int k = 1; k <= 3; k++) {
        fail_alloc_in = k;
        TD_EQ(TD_NOMEM, td_kv_pool_create(16, &pool, NULL));
        fail_alloc_in = 0;
        TD_TRUE(pool == NULL);
    }
    td_kv_pool_destroy(NULL);
}

TEST(states_have_names)
{
    TD_STR("free", td_page_state_name(TD_PAGE_FREE));
    TD_STR("held", td_page_state_name(TD_PAGE_HELD));
    TD_STR("filling", td_page_state_name(TD_PAGE_FILLING));
    TD_STR("served", td_page_state_name(TD_PAGE_SERVED));
}

TD_TEST_MAIN
