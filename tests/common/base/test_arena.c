#include "tests/td_test.h"

#include "common/base/arena.h"
#include "tests/common/base/td_hard.h"

TEST(memory_is_zeroed_aligned_and_apart)
{
    td_arena *arena;
    TD_EQ(TD_OK, td_arena_create(1 << 20, &arena, NULL));
    unsigned char *last = NULL;
    for (size_t n = 0; n < 500; n++) {
        unsigned char *p = td_arena_alloc(arena, n);
        TD_TRUE(p != NULL);
        TD_EQ(0, (uintptr_t)p % 16);
        for (size_t i = 0; i < n; i++)
            TD_EQ(0, p[i]);
        memset(p, 0xaa, n);
        TD_TRUE(p != last);
        last = p;
    }
    TD_STR("text", td_arena_strdup(arena, "text"));
    td_arena_destroy(arena);
    td_arena_destroy(NULL);
}

TEST(the_bound_holds_and_what_was_given_out_counts)
{
    td_arena *arena;
    TD_EQ(TD_OK, td_arena_create(10000, &arena, NULL));
    TD_EQ(0, td_arena_used_bytes(arena));
    TD_TRUE(td_arena_alloc(arena, 9000) != NULL);
    TD_EQ(9008, td_arena_used_bytes(arena));
    TD_TRUE(td_arena_alloc(arena, 1000) == NULL);
    TD_TRUE(td_arena_alloc(arena, SIZE_MAX) == NULL);
    TD_TRUE(td_arena_alloc(arena, SIZE_MAX - 8) == NULL);
    TD_EQ(9008, td_arena_used_bytes(arena));
    TD_TRUE(td_arena_alloc(arena, 992) != NULL);
    TD_EQ(10000, td_arena_used_bytes(arena));
    TD_TRUE(td_arena_alloc(arena, 0) == NULL);
    td_arena_destroy(arena);
}

TEST(reset_gives_everything_back_and_zeroes_again)
{
    td_arena *arena;
    TD_EQ(TD_OK, td_arena_create(100000, &arena, NULL));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 99; i++) {
            unsigned char *p = td_arena_alloc(arena, 1000);
            TD_TRUE(p != NULL);
            TD_EQ(0, p[999]);
            memset(p, 0xaa, 1000);
        }
        TD_TRUE(td_arena_alloc(arena, 2000) == NULL);
        td_arena_reset(arena);
        TD_EQ(0, td_arena_used_bytes(arena));
    }
    td_arena_destroy(arena);
}

TEST(a_bound_of_nothing_or_everything_is_refused)
{
    td_arena *arena;
    TD_EQ(TD_INVALID, td_arena_create(0, &arena, NULL));
    TD_EQ(TD_INVALID, td_arena_create(SIZE_MAX, &arena, NULL));
}

static td_status use(void)
{
    td_arena *arena;
    td_status st = td_arena_create(100000, &arena, NULL);
    if (st != TD_OK)
        return st;
    if (td_arena_alloc(arena, 5000) == NULL || td_arena_alloc(arena, 20000) == NULL)
        st = TD_NOMEM;
    td_arena_destroy(arena);
    return st;
}

TEST(each_allocation_may_fail)
{
    TD_EACH_ALLOC_FAILS(TD_NOMEM, use(), );
}

TD_TEST_MAIN
