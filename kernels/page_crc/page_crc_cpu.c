/* page_crc_cpu.c - a page per piece of work. Bound: the CRC instruction, about 11 GB/s a thread. */
#include "kernels/page_crc/page_crc.h"

#include "common/base/crc32c.h"
#include "common/device/cpu.h"

static void pages(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const td_page_crc_args *a = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        const unsigned char *page = a->base + (uint64_t)a->pages[i] * a->page_stride;
        a->crc[i] = td_crc32c(0, page + a->offset, a->n_bytes);
    }
}

td_status td_page_crc_cpu(const td_page_crc_args *a, td_stream *stream)
{
    if (!td_page_crc_valid(a))
        return TD_BAD_SHAPE;
    td_cpu_for(stream, a->n, (int64_t)(1 + 65536 / (a->n_bytes + 64)), pages, (void *)a);
    return TD_OK;
}
