#include "common/base/crc32c.h"
#include "kernels/page_crc/page_crc.h"

td_status td_page_crc_ref(const td_page_crc_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_page_crc_valid(a))
        return TD_BAD_SHAPE;
    for (int i = 0; i < a->n; i++) {
        const unsigned char *page = a->base + (uint64_t)a->pages[i] * a->page_stride;
        a->crc[i] = td_crc32c_portable(0, page + a->offset, a->n_bytes);
    }
    return TD_OK;
}
