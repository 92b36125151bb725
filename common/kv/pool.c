#include "common/kv/pool.h"
#include "common/base/clock.h"

#include <stdlib.h>

/* A stack of free ids: neither take() nor give() ever searches. */
struct td_kv_pool {
    td_page_info *pages; /* [n_pages] */
    uint32_t *free_ids;  /* [n_pages]; the first counts[TD_PAGE_FREE] are valid */
    uint32_t n_pages;
    uint32_t counts[TD_PAGE_N_STATES];
};

static void enter(td_kv_pool *pool, uint32_t id, td_page_state state, int64_t now_ns)
{
    td_page_info *page = &pool->pages[id];
    pool->counts[page->state]--;
    pool->counts[state]++;
    page->state = state;
    page->since_ns = now_ns;
}

static td_page_info *owned(td_kv_pool *pool, uint64_t owner, uint32_t id)
{
    td_assert(id < pool->n_pages);
    td_page_info *page = &pool->pages[id];
    td_assert(page->state != TD_PAGE_FREE && page->owner == owner);
    return page;
}

td_status td_kv_pool_create(uint32_t n_pages, td_kv_pool **out, td_err *err)
{
    if (n_pages == 0)
        return td_fail(err, TD_INVALID, "kv pool: no pages");
    td_kv_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL)
        goto fail;
    pool->pages = calloc(n_pages, sizeof(*pool->pages));
    pool->free_ids = calloc(n_pages, sizeof(*pool->free_ids));
    if (pool->pages == NULL || pool->free_ids == NULL)
        goto fail;
    int64_t now_ns = td_now_ns();
    for (uint32_t id = 0; id < n_pages; id++) {
        pool->free_ids[id] = n_pages - 1 - id; /* page 0 goes first */
        pool->pages[id].since_ns = now_ns;
    }
    pool->n_pages = n_pages;
    pool->counts[TD_PAGE_FREE] = n_pages;
    *out = pool;
    return TD_OK;
fail:
    td_kv_pool_destroy(pool);
    return td_fail(err, TD_NOMEM, "kv pool: no memory for %u pages", n_pages);
}

void td_kv_pool_destroy(td_kv_pool *pool)
{
    if (pool == NULL)
        return;
    free(pool->pages);
    free(pool->free_ids);
    free(pool);
}

td_status td_kv_pool_take(td_kv_pool *pool, uint32_t n, uint64_t owner, uint32_t *ids,
                          uint32_t *generations)
{
    td_assert(owner != 0);
    if (n > pool->counts[TD_PAGE_FREE])
        return TD_FULL;
    int64_t now_ns = td_now_ns();
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = pool->free_ids[pool->counts[TD_PAGE_FREE] - 1];
        td_page_info *page = &pool->pages[id];
        enter(pool, id, TD_PAGE_HELD, now_ns);
        page->owner = owner;
        if (++page->generation == 0) /* wrapped: 0 means never used */
            page->generation = 1;
        ids[i] = id;
        generations[i] = page->generation;
    }
    return TD_OK;
}

void td_kv_pool_give(td_kv_pool *pool, uint64_t owner, const uint32_t *ids, uint32_t n)
{
    int64_t now_ns = td_now_ns();
    for (uint32_t i = 0; i < n; i++) {
        td_page_info *page = owned(pool, owner, ids[i]);
        pool->free_ids[pool->counts[TD_PAGE_FREE]] = ids[i];
        enter(pool, ids[i], TD_PAGE_FREE, now_ns);
        page->owner = 0;
    }
}

void td_kv_pool_mark(td_kv_pool *pool, uint64_t owner, const uint32_t *ids, uint32_t n,
                     td_page_state state)
{
    td_assert(state != TD_PAGE_FREE && state < TD_PAGE_N_STATES);
    int64_t now_ns = td_now_ns();
    for (uint32_t i = 0; i < n; i++) {
        owned(pool, owner, ids[i]);
        enter(pool, ids[i], state, now_ns);
    }
}

td_page_info td_kv_pool_info(const td_kv_pool *pool, uint32_t id)
{
    td_assert(id < pool->n_pages);
    return pool->pages[id];
}

uint32_t td_kv_pool_n_pages(const td_kv_pool *pool)
{
    return pool->n_pages;
}

uint32_t td_kv_pool_count(const td_kv_pool *pool, td_page_state state)
{
    td_assert(state < TD_PAGE_N_STATES);
    return pool->counts[state];
}

const char *td_page_state_name(td_page_state state)
{
    switch (state) {
    case TD_PAGE_FREE: return "free";
    case TD_PAGE_HELD: return "held";
    case TD_PAGE_FILLING: return "filling";
    case TD_PAGE_SERVED: return "served";
    case TD_PAGE_N_STATES: break;
    }
    return "unknown";
}
