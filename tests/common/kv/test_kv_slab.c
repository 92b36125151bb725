#include "common/kv/slab.h"
#include "tests/common/kv/fail_alloc.h"
#include "tests/td_test.h"

static td_kv_layout layout;

static void open_slab(td_kv_slab *slab, uint32_t n_pages, int poison)
{
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 2, 1, 512, 64, 128, NULL));
    TD_EQ(TD_OK, td_kv_slab_init(slab, &layout, n_pages, poison, NULL));
}

TEST(an_opened_page_is_zero)
{
    for (int poison = 0; poison <= 1; poison++) {
        td_kv_slab slab;
        open_slab(&slab, 3, poison);
        TD_EQ(0, (uintptr_t)slab.base % 4096);
        for (int use = 0; use < 2; use++) {
            unsigned char *page = td_kv_slab_page(&slab, 1);
            TD_EQ(TD_OK, td_kv_slab_open(&slab, 1, NULL));
            for (uint64_t i = 0; i < slab.page_stride; i++)
                TD_TRUE(page[i] == 0);
            memset(page, 0xab, slab.page_stride);
            td_kv_slab_retire(&slab, 1);
        }
        td_kv_slab_fini(&slab);
    }
}

TEST(a_late_write_into_a_freed_page_is_found_and_named)
{
    td_kv_slab slab;
    td_err err;
    open_slab(&slab, 4, 1);
    TD_EQ(TD_OK, td_kv_slab_open(&slab, 2, NULL));
    td_kv_slab_retire(&slab, 2);
    td_kv_slab_page(&slab, 2)[12345] ^= 1;
    TD_EQ(TD_DATA_LOSS, td_kv_slab_check(&slab, 2, &err));
    TD_TRUE(strstr(err.text, "page 2") != NULL && strstr(err.text, "12345") != NULL);
    TD_EQ(TD_OK, td_kv_slab_check(&slab, 1, &err)); /* stays as it is: see below */
    TD_EQ(TD_DATA_LOSS, td_kv_slab_open(&slab, 2, &err));
    TD_TRUE(strstr(err.text, "page 2") != NULL);
    TD_TRUE(strstr(err.text, "12345") != NULL);
    TD_EQ(TD_OK, td_kv_slab_open(&slab, 1, NULL)); /* neighbours are untouched */
    TD_EQ(TD_OK, td_kv_slab_open(&slab, 3, NULL));
    td_kv_slab_fini(&slab);
}

TEST(init_refuses_nonsense_and_failed_allocation)
{
    td_kv_slab slab;
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 2, 1, 512, 64, 128, NULL));
    TD_EQ(TD_INVALID, td_kv_slab_init(&slab, &layout, 0, 0, NULL));
    TD_EQ(TD_INVALID, td_kv_slab_init_remote(&slab, &layout, 0, &slab, NULL));
    layout.page_stride = UINT64_MAX / 2;
    TD_EQ(TD_INVALID, td_kv_slab_init(&slab, &layout, 4, 0, NULL));
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 2, 1, 512, 64, 128, NULL));
    fail_alloc_in = 1;
    TD_EQ(TD_NOMEM, td_kv_slab_init(&slab, &layout, 4, 0, NULL));
    fail_alloc_in = 0;
    td_kv_slab_fini(&slab); /* half-built */
    td_kv_slab_fini(&slab); /* and again */
}

TD_TEST_MAIN

/* No byte of it can be touched: nothing stands at that address. */
TEST(memory_that_the_host_cannot_reach_is_left_alone)
{
    td_kv_slab slab;
    td_kv_layout of_a_device = {.page_stride = 4096};
    unsigned char *nowhere = (unsigned char *)(uintptr_t)4096;
    TD_EQ(TD_OK, td_kv_slab_init_remote(&slab, &of_a_device, 3, nowhere, NULL));
    TD_EQ(TD_OK, td_kv_slab_open(&slab, 2, NULL));
    td_kv_slab_retire(&slab, 2);
    TD_EQ(TD_OK, td_kv_slab_check(&slab, 2, NULL));
    TD_TRUE(td_kv_slab_page(&slab, 2) == nowhere + 2UL * 4096);
    td_kv_slab_fini(&slab);
}
