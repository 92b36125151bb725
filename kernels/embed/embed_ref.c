#include "kernels/embed/embed.h"

#include <string.h>

td_status td_embed_ref(const td_embed_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_embed_valid(a))
        return TD_BAD_SHAPE;
    const size_t row = (size_t)a->D * td_dtype_bytes(a->act);
    for (int t = 0; t < a->T && row > 0; t++) {
        unsigned char *y = (unsigned char *)a->y + (size_t)t * row;
        int32_t id = a->ids[t];
        if (id >= 0 && id < a->V)
            memcpy(y, (const unsigned char *)a->table + (size_t)id * row, row);
        else
            memset(y, 0, row);
    }
    return TD_OK;
}
