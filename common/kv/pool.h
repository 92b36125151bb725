/* pool.h - which page belongs to whom. Hands out page ids, never pointers: the memory itself (a
 * slab per rank, all with the same page ids) belongs to the engine. One thread owns a pool (the
 * daemon's loop thread). Every page has a generation that grows each time it is given out, an owner
 * and an age, so that a stale reader is noticed and the CLI can show who holds what. create()
 * allocates; nothing else does. */
#ifndef TD_KV_POOL_H
#define TD_KV_POOL_H
#include "common/base/status.h"

#include <stdint.h>

typedef struct td_kv_pool td_kv_pool;

typedef enum {
    TD_PAGE_FREE,
    TD_PAGE_HELD,    /* belongs to a request that computes or decodes */
    TD_PAGE_FILLING, /* decode: gets into it are outstanding */
    TD_PAGE_SERVED,  /* prefill: finished, kept for its reader until Release, cancel or the lease's
                        end */
    TD_PAGE_N_STATES,
} td_page_state;

typedef struct {
    td_page_state state;
    uint32_t generation; /* 0 before the first use */
    uint64_t owner;      /* the request's number in this process; 0 when free */
    int64_t since_ns;    /* when it entered this state */
} td_page_info;

td_status td_kv_pool_create(uint32_t n_pages, td_kv_pool **out, td_err *err);
void td_kv_pool_destroy(td_kv_pool *pool); /* NULL is fine */
/* All n pages or none. TD_FULL: worth retrying after the next give(). ids and generations: [n].
 * owner != 0. */
td_status td_kv_pool_take(td_kv_pool *pool, uint32_t n, uint64_t owner, uint32_t *ids,
                          uint32_t *generations);
/* Gives back pages of this owner; a page that is not his is a bug (td_assert). */
void td_kv_pool_give(td_kv_pool *pool, uint64_t owner, const uint32_t *ids, uint32_t n);
void td_kv_pool_mark(td_kv_pool *pool, uint64_t owner, const uint32_t *ids, uint32_t n,
                     td_page_state state);
td_page_info td_kv_pool_info(const td_kv_pool *pool, uint32_t id);
uint32_t td_kv_pool_n_pages(const td_kv_pool *pool);
uint32_t td_kv_pool_count(const td_kv_pool *pool, td_page_state state); /* O(1) */
const char *td_page_state_name(td_page_state state); /* "free", "held", "filling", "served" */
#endif
