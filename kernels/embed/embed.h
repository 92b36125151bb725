/* embed.h - rows of the embedding table: y[t] = table[ids[t]]. An id outside 0..V-1 gives a row of
 * zeros (padding rows carry -1; requests' ids were checked at the door). */
#ifndef TD_KERNELS_EMBED_H
#define TD_KERNELS_EMBED_H
#include "kernels/shapes.h"

typedef struct {
    const int32_t *ids; /* [T] */
    const void *table;  /* [V, D] act */
    void *y;            /* [T, D] act */
    int T, D, V;
    td_dtype act;
} td_embed_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_embed_valid(const td_embed_args *a)
{
    if (a->T < 0 || a->D < 0 || a->V < 0 || (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    if (a->T == 0 || a->D == 0)
        return 1;
    return a->ids != NULL && a->y != NULL && (a->V == 0 || a->table != NULL);
}

td_status td_embed_ref(const td_embed_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_embed_cpu(const td_embed_args *a, td_stream *stream);
td_status td_embed_cuda(const td_embed_args *a, td_stream *stream); /* in the plug-in */
#endif
