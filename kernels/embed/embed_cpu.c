/* embed_cpu.c - copies rows. Bound: memory. */
#include "kernels/embed/embed.h"

#include <string.h>

#include "common/device/cpu.h"

static void rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const td_embed_args *a = arg;
    const size_t row = (size_t)a->D * td_dtype_bytes(a->act);
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        unsigned char *y = (unsigned char *)a->y + (size_t)t * row;
        int32_t id = a->ids[t];
        if (id >= 0 && id < a->V)
            memcpy(y, (const unsigned char *)a->table + (size_t)id * row, row);
        else
            memset(y, 0, row);
    }
}

td_status td_embed_cpu(const td_embed_args *a, td_stream *stream)
{
    if (!td_embed_valid(a))
        return TD_BAD_SHAPE;
    if (a->D > 0)
        td_cpu_for(stream, a->T, 1 + 32768 / a->D, rows, (void *)a);
    return TD_OK;
}
