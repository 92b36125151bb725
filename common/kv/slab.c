#include "common/kv/slab.h"

#include <stdlib.h>
#include <string.h>

#define SLAB_ALIGN 4096U

/* Eight bytes that are no e4m3, bf16 or f32 value a cache holds in a row: each is a quiet NaN
 * somewhere. */
static const unsigned char poison_bytes[8] = {0xfd, 0x7f, 0xfd, 0xff, 0xfd, 0x7f, 0xfd, 0xff};

size_t td_kv_slab_bytes(const td_kv_layout *layout, uint32_t n_pages)
{
    uint64_t stride = layout->page_stride;
    if (n_pages == 0 || stride == 0 || stride > (SIZE_MAX - SLAB_ALIGN) / n_pages)
        return 0;
    return (size_t)((n_pages * stride + SLAB_ALIGN - 1) / SLAB_ALIGN * SLAB_ALIGN);
}

td_status td_kv_slab_init_remote(td_kv_slab *slab, const td_kv_layout *layout, uint32_t n_pages,
                                 void *memory, td_err *err)
{
    memset(slab, 0, sizeof(*slab));
    if (td_kv_slab_bytes(layout, n_pages) == 0)
        return td_fail(err, TD_INVALID, "kv slab: %u pages of %llu bytes", n_pages,
                       (unsigned long long)layout->page_stride);
    slab->base = memory;
    slab->page_stride = layout->page_stride;
    slab->n_pages = n_pages;
    slab->is_remote = 1;
    return TD_OK;
}

td_status td_kv_slab_init(td_kv_slab *slab, const td_kv_layout *layout, uint32_t n_pages,
                          int poison, td_err *err)
{
    size_t n_bytes = td_kv_slab_bytes(layout, n_pages);
    td_status st = td_kv_slab_init_remote(slab, layout, n_pages, NULL, err);
    if (st != TD_OK)
        return st;
    slab->is_remote = 0;
    slab->base = aligned_alloc(SLAB_ALIGN, n_bytes);
    if (slab->base == NULL)
        return td_fail(err, TD_NOMEM, "kv slab: no memory for %zu bytes", n_bytes);
    slab->is_owned = 1;
    slab->poison = poison;
    if (!poison)
        memset(slab->base, 0, n_bytes); /* touched at boot: a page fault has no place in a step */
    for (uint32_t page = 0; poison && page < n_pages; page++)
        td_kv_slab_retire(slab, page);
    return TD_OK;
}

void td_kv_slab_fini(td_kv_slab *slab)
{
    if (slab->is_owned)
        free(slab->base);
    memset(slab, 0, sizeof(*slab));
}

unsigned char *td_kv_slab_page(const td_kv_slab *slab, uint32_t page)
{
    td_assert(page < slab->n_pages);
    return slab->base + page * slab->page_stride;
}

void td_kv_slab_retire(td_kv_slab *slab, uint32_t page)
{
    unsigned char *bytes = td_kv_slab_page(slab, page);
    if (!slab->poison)
        return;
    td_assert(slab->page_stride % sizeof(poison_bytes) == 0);
    memcpy(bytes, poison_bytes, sizeof(poison_bytes));
    for (uint64_t n = sizeof(poison_bytes), left; n < slab->page_stride; n *= 2) {
        left = slab->page_stride - n;
        memcpy(bytes + n, bytes, left < n ? left : n);
    }
}

/* The first pattern is right, and every byte equals the one a pattern before it. */
static int is_poisoned(const unsigned char *bytes, uint64_t n)
{
    const size_t step = sizeof(poison_bytes);
    return memcmp(bytes, poison_bytes, step) == 0 && memcmp(bytes + step, bytes, n - step) == 0;
}

td_status td_kv_slab_check(const td_kv_slab *slab, uint32_t page, td_err *err)
{
    const unsigned char *bytes = td_kv_slab_page(slab, page);
    if (!slab->poison || is_poisoned(bytes, slab->page_stride))
        return TD_OK;
    uint64_t i = 0;
    while (bytes[i] == poison_bytes[i % sizeof(poison_bytes)])
        i++;
    return td_fail(err, TD_DATA_LOSS, "kv slab: free page %u was written to, first at byte %llu",
                   page, (unsigned long long)i);
}

td_status td_kv_slab_open(td_kv_slab *slab, uint32_t page, td_err *err)
{
    td_status st = td_kv_slab_check(slab, page, err);
    if (st == TD_OK && !slab->is_remote)
        memset(td_kv_slab_page(slab, page), 0, slab->page_stride);
    return st;
}
