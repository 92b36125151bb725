/* slab.h - the memory behind a pool's pages on one rank: [n_pages] of page_stride bytes. With
 * poison on (a debug switch) freed pages are filled with a pattern, and the pattern is checked when
 * they are given out again and when the daemon ends: a byte that arrived late is found, and named.
 */
#ifndef TD_KV_SLAB_H
#define TD_KV_SLAB_H
#include "common/base/status.h"
#include "common/kv/layout.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    unsigned char *base; /* [n_pages, page_stride]; 4096-byte aligned */
    int is_owned;        /* base is freed with the slab */
    int is_remote;       /* memory that the host cannot reach (a GPU's): no byte is touched here */
    uint64_t page_stride;
    uint32_t n_pages;
    int poison;
} td_kv_slab;

td_status td_kv_slab_init(td_kv_slab *slab, const td_kv_layout *layout, uint32_t n_pages,
                          int poison, td_err *err);
/* In a device's memory (td_kv_slab_bytes() of it), which outlives the slab and which the host
 * cannot reach: without poison, and who gives a page out has it zeroed. */
td_status td_kv_slab_init_remote(td_kv_slab *slab, const td_kv_layout *layout, uint32_t n_pages,
                                 void *memory, td_err *err);
/* 0: there is no such slab. */
size_t td_kv_slab_bytes(const td_kv_layout *layout, uint32_t n_pages);
void td_kv_slab_fini(td_kv_slab *slab); /* zeroed or half-built is fine */
unsigned char *td_kv_slab_page(const td_kv_slab *slab, uint32_t page);
/* Page goes back: fill with the pattern (poison on), otherwise nothing. */
void td_kv_slab_retire(td_kv_slab *slab, uint32_t page);
/* Poison on: TD_DATA_LOSS names a free page and the first byte of it that was written to. */
td_status td_kv_slab_check(const td_kv_slab *slab, uint32_t page, td_err *err);
/* Page is given out: check the pattern (poison on; TD_DATA_LOSS names page and first wrong byte),
 * then zero it, so that unused slots travel as zeros. */
td_status td_kv_slab_open(td_kv_slab *slab, uint32_t page, td_err *err);
#endif
