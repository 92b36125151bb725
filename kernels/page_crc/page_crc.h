/* page_crc.h - CRC-32C of a byte range of each page (design.md, KV cache). */
#ifndef TD_KERNELS_PAGE_CRC_H
#define TD_KERNELS_PAGE_CRC_H
#include "kernels/shapes.h"

typedef struct {
    const unsigned char *base; /* slab */
    const int32_t *pages;      /* [n] */
    uint32_t *crc;             /* [n] */
    uint64_t page_stride, offset, n_bytes;
    int n;
} td_page_crc_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_page_crc_valid(const td_page_crc_args *a)
{
    if (a->n < 0 || a->n_bytes > a->page_stride || a->offset > a->page_stride - a->n_bytes)
        return 0;
    return a->n == 0 || (a->base != NULL && a->pages != NULL && a->crc != NULL);
}

td_status td_page_crc_ref(const td_page_crc_args *a,
                          td_stream *stream); /* plain judge: tests only */
td_status td_page_crc_cpu(const td_page_crc_args *a, td_stream *stream);
td_status td_page_crc_cuda(const td_page_crc_args *a, td_stream *stream); /* in the plug-in */
#endif
