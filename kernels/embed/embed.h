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

td_status td_embed_ref(const td_embed_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_embed_cpu(const td_embed_args *a, td_stream *stream);
#endif
